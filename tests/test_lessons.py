"""Lessons: feedback on answers, and quizzes."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sims_kit import lessons

FILES = {path.stem: yaml.safe_load(path.read_text()) for path in Path(lessons.__file__).parent.glob("[0-9]*.yaml")}
QUIZZES = {f"{n}.{own}": entry for n, lesson in FILES.items() for own, entry in lesson["quizzes"].items()}
NUMBERS = pd.Series([0.25, 0.5, 1.0], dtype=object)
EXERCISES = {
    1: {"expected": "np.log1p(3.7)", "tolerance": 0.001, "hint": "Look again.", "mistakes": {"3.7 / 2": "Half of it."}},
    2: {"expected": "[0.25, 0.5, 1]", "mistakes": {"[1, 2]": "Two numbers."}},
    3: {"expected": "'L4 IT'", "hint": "It is in the cortex."},
    4: {"expected": "scores.idxmax()"},
    5: {"cases": {"f([1, 2])": 1.5, "f([3])": 3}, "mistakes": {"3": "That is the sum."}},
    6: {"expected": "['CD3E', 'CD79A']", "any_order": True},
    7: {"expected": "[False, True, False]"},
    8: {"expected": "3", "mistakes": {"right + 1": "One too many."}},
}


@pytest.fixture
def exercises(monkeypatch):
    """Exercises in place of the packaged ones."""
    kept = {"01": {"exercises": EXERCISES}, "usual_mistakes": lessons._file("usual_mistakes")}
    monkeypatch.setattr(lessons, "_file", lambda name: kept.get(name, {}))


FEEDBACK = {
    "Not attempted yet.": [(1, ...), (1, None), (2, [0.1, ..., ...]), (5, ...), (5, lambda values: ...)],
    "Right.": [(1, 1.5476), (2, NUMBERS), (4, "b"), (5, np.mean), (6, {"CD79A", "CD3E"})],
    "The logarithm is missing; after it, 1 goes inside.": [(1, 3.7)],
    "The 1 is missing inside the logarithm (np.log1p).": [(1, np.log(3.7))],
    "It looks rounded; it may be off by 0.001 at most.": [(1, 1.5)],
    "Half of it.": [(1, 1.85)],
    "1 is too small. Look again.": [(1, 1)],
    "Expected numbers; this is text.": [(1, "1.5476")],
    "Expected text; this is other data.": [(3, np.mean), (6, ["CD3E", ["CD79A"]])],
    "Expected numbers; this is other data.": [(1, np.mean), (2, [0.25, 0.5, [1.0]])],
    "Expected a single value; this is a list of 1.": [(1, [1.5476])],
    "Expected a list of 3; this is a single value.": [(2, 0.25)],
    "The right ones, in another order.": [(2, [1, 0.5, 0.25])],
    "2 of 3 are not right.": [(2, [0.4, 0.5, 0.9]), (7, [True, False, False])],
    "One too many.": [(8, 4)],
    "That is a percentage; give a share between 0 and 1.": [(2, [25, 50, 100])],
    "Mind upper and lower case, and blanks.": [(3, "l4 it ")],
    "'L5 ET' is not it. It is in the cortex.": [(3, "L5 ET")],
    "sum([1, 2]) returns 3. That is the sum.": [(5, sum)],
    "<lambda>([1, 2]) returns nothing; end it with return, not print.": [(5, lambda values: print(values))],
    "Pass the function itself, by its name without parentheses.": [(5, 1.5)],
    "<lambda>([1, 2]) raises IndexError: list index out of range": [(5, lambda values: values[5])],
    "1 of 2 are not right.": [(6, ["CD79A", "GNLY"])],
}


@pytest.mark.parametrize("words", FEEDBACK)
def test_feedback(exercises, capsys, words):
    """What is right, what was not tried, and what kind of mistake was made."""
    for number, answer in FEEDBACK[words]:
        results = {"scores": pd.Series({"a": 1, "b": 2})} if number == 4 else {}
        assert lessons.check(f"01.{number}", answer, **results) == (words == "Right.")
        expected = words if words in ("Right.", "Not attempted yet.") else f"Not yet. {words}"
        assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize("number", QUIZZES)
def test_quiz(number):
    """Every option unfolds to a verdict and a reason; a number that no lesson has is refused."""
    entry, shown = QUIZZES[number], lessons.quiz(number).data
    verdicts = re.findall(r"<b>(Right|Wrong)\.</b>", shown)
    assert sorted(verdicts) == ["Right"] * len(entry["right"]) + ["Wrong"] * len(entry["wrong"])
    assert ("(Several are right.)" in shown) == (len(entry["right"]) > 1)
    with pytest.raises(KeyError, match=rf"no number of quizzes '{number}9'"):
        lessons.quiz(f"{number}9")


def test_quizzes_cannot_be_passed_unread():
    """The longest option is right in at most half of the quizzes, and no letter in most of them."""
    longest = [max([*entry["right"], *entry["wrong"]], key=len) in entry["right"] for entry in QUIZZES.values()]
    verdicts = [re.findall(r"<b>(Right|Wrong)\.</b>", lessons.quiz(number).data) for number in QUIZZES]
    letters = [own.index("Right") for own in verdicts if own.count("Right") == 1]
    assert np.mean(longest) <= 0.5 and max(np.bincount(letters)) <= 0.6 * len(letters)
