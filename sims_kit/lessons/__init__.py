"""Feedback on exercises, and quizzes; their answers, hints and options are in ``NN.yaml``, a file for each lesson.

What an exercise expects, the mistakes that it knows and the calls of a function to write are Python expressions.
"""

import random
from contextlib import redirect_stdout
from functools import cache
from html import escape
from importlib.resources import files
from io import StringIO

import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML

from sims_kit.errors import UnknownNameError

__all__ = ["check", "quiz"]


def check(number: str, answer, **results) -> bool:
    """Print what is wrong with the answer to an exercise, and return whether it is right.

    `number` is that of lesson and exercise. The answer is a number, a text, a list or array of these, or the function
    that was asked for; ``...`` before a first try. `results` are those of the lesson that decide what is right.

    >>> sk.lessons.check("02.1", ...)
    Not attempted yet.
    False
    """
    exercise, problem = _entry("exercises", number), ""
    scope = {"np": np, "pd": pd, "f": answer, **results}
    for call, expected in exercise["cases"].items() if "cases" in exercise else [("", exercise["expected"])]:
        given, problem = _called(call, scope) if call and answer is not ... else (answer, "")
        if not problem and any(part is None or part is ... for part in np.ravel(np.asarray(given, dtype=object))):
            print("Not attempted yet.")
            return False
        problem = problem or _problem(given, expected, exercise, scope)
        if problem:
            problem = f"{call} returns {_array(given).tolist()!r}. {problem}" if call and given is not None else problem
            problem = problem.replace(call, call.replace("f(", f"{getattr(answer, '__name__', 'f')}(", 1), 1)
            break
    print(f"Not yet. {problem}" if problem else "Right.")
    return not problem


def quiz(number: str) -> HTML:
    """Return a question whose options unfold: each says whether it is right, and why.

    >>> question = sk.lessons.quiz("02.1")
    """
    entry = _entry("quizzes", number)
    options = [(option, why, verdict) for verdict in ("right", "wrong") for option, why in entry[verdict].items()]
    random.Random(number).shuffle(options)
    lines = [f"<p><b>{escape(entry['question'])}</b>{' (Several are right.)' * (len(entry['right']) > 1)}</p>"]
    for letter, (option, why, verdict) in zip("ABCDEF", options, strict=False):
        summary = f"<summary>{letter}. {escape(str(option))}</summary>"
        lines.append(f"<details>{summary}<p><b>{verdict.title()}.</b> {escape(why)}</p></details>")
    return HTML("\n".join(lines))


@cache
def _file(name: str) -> dict:
    return yaml.safe_load((files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))


def _entry(kind: str, number: str) -> dict:
    lessons = sorted(path.name[:2] for path in files(__name__).iterdir() if path.name[:2].isdigit())
    known = {f"{lesson}.{own}": entry for lesson in lessons for own, entry in _file(lesson).get(kind, {}).items()}
    if number not in known:
        raise UnknownNameError(f"number of {kind}", number, known)
    return known[number]


def _called(call: str, scope: dict) -> tuple[object, str]:
    """What a learner's function returns, and what is wrong with it if it returns nothing."""
    if not callable(scope["f"]):
        return None, "Pass the function itself, by its name without parentheses."
    try:
        with redirect_stdout(StringIO()):
            given = eval(call, scope)
    except Exception as error:
        return None, f"{call} raises {type(error).__name__}: {error}"
    written = getattr(getattr(scope["f"], "__code__", None), "co_names", ())  # none, before a first try
    return given, f"{call} returns nothing; end it with return, not print." if given is None and written else ""


def _problem(given, expected, exercise: dict, scope: dict) -> str:
    """What is wrong with an answer, or with what a function returned; empty where it is right."""
    given, wanted = _array(given), _array(_value(expected, scope))
    if given.shape != wanted.shape:
        return f"Expected {_shape(wanted)}; this is {_shape(given)}."
    is_text = wanted.dtype.kind in "OUS"
    if given.dtype.kind in ("O" if is_text else "OUS"):
        return f"Expected {'text' if is_text else 'numbers'}; this is {'other data' if given.dtype == 'O' else 'text'}."
    given, wanted = (values.astype(str if is_text else float) for values in (given, wanted))
    if exercise.get("any_order"):
        given, wanted = np.sort(given), np.sort(wanted)
    exact = exercise.get("tolerance", 0 if is_text else 1e-6 * max(1, np.abs(wanted).max(initial=0)))

    def is_like(two, one=given, rtol=2e-3) -> bool:
        two = _array(two)
        return np.array_equal(one, two) if is_text else one.shape == two.shape and np.allclose(one, two, rtol, exact)

    if is_like(wanted, rtol=0):
        return ""
    scope = scope | {"right": wanted}
    found = [words for mistake, words in exercise.get("mistakes", {}).items() if is_like(_value(mistake, scope))]
    if is_text:
        bare = [np.char.lower(np.char.strip(values)) for values in (wanted, given)]
        found += ["Mind upper and lower case, and blanks."] * is_like(*bare)
    else:
        with np.errstate(all="ignore"):
            found += [words for words, mistake in _file("usual_mistakes").items() if is_like(_value(mistake, scope))]
        found += [f"It looks rounded; it may be off by {exact:g} at most."] * any(
            np.allclose(given, wanted.round(n), rtol=0, atol=1e-6) for n in range(int(np.abs(wanted).max() < 10), 7)
        )
    if given.ndim:
        all_differ = np.unique(wanted).size == wanted.size
        found += ["The right ones, in another order."] * (all_differ and is_like(np.sort(wanted), np.sort(given)))
        off = given != wanted if is_text else ~np.isclose(given, wanted, rtol=0, atol=exact)
        off = ~np.isin(given, wanted) if exercise.get("any_order") else off
        found += [f"{off.sum()} of {off.size} are not right."]
    else:
        size = "too small" if given < wanted else "too large" if given > wanted else "no result"
        found += [f"{str(given)!r} is not it." if is_text else f"{given:.6g} is {size}."]
    hint = exercise.get("hint", "") if found[0] == found[-1] else ""  # a mistake that was recognised says enough
    return f"{found[0]} {hint}".strip()


def _value(expression, scope: dict):
    return eval(expression, dict(scope)) if isinstance(expression, str) else expression


def _array(value) -> np.ndarray:
    value = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, set) else value
    try:
        return np.asarray(np.asarray(value).tolist())  # objects become numbers or text, where they all are
    except ValueError:  # lists of several lengths
        return np.asarray(value, dtype=object)


def _shape(values: np.ndarray) -> str:
    return f"a list of {' x '.join(f'{n:,}' for n in values.shape)}" if values.ndim else "a single value"
