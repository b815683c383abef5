"""Feedback on a lesson's exercises, and its quizzes, both of which can be read without a kernel."""

from collections.abc import Mapping
from html import escape
from string import ascii_uppercase

import numpy as np
from IPython.display import HTML

from sims_kit.errors import SettingError

__all__ = ["check", "quiz"]


def check(answer, expected, *, tolerance: float = 1e-6, hint: str = "") -> bool:
    """Compare an answer with what is expected, print what is wrong with it, and return whether it is right.

    Both are a number, a string, or an array or sequence of these; the answer is ``...`` or None before a first try.
    Numbers may differ by `tolerance`. `hint` is printed where the answer is wrong.

    >>> check(2, 3, hint="Count again.")
    Not yet: 2 is too small. Count again.
    False
    """
    if answer is None or answer is ...:
        print("Not attempted yet.")
        return False
    problem = _problem(answer, expected, tolerance)
    print(f"Not yet: {problem}{' ' * bool(hint)}{hint}" if problem else "Right.")
    return not problem


def quiz(question: str, options: Mapping[str, str], right: str) -> HTML:
    """Return a question with options that unfold: each says whether it is right, and why.

    `options` maps each possible answer to its explanation; `right` is one of them.

    >>> quiz("Which gene marks B cells?", {"CD79A": "Part of their receptor.", "CD3E": "T cells have it."}, "CD79A")
    """
    if right not in options:
        raise SettingError(f"{right!r} is not among the options {list(options)}.")
    lines = [f"<p><b>{escape(question)}</b></p>"]
    for letter, (option, why) in zip(ascii_uppercase, options.items(), strict=False):
        verdict = "Right." if option == right else "No."
        summary = f"<summary>{letter}. {escape(option)}</summary>"
        lines.append(f"<details>{summary}<p><b>{verdict}</b> {escape(why)}</p></details>")
    return HTML("\n".join(lines))


def _problem(answer, expected, tolerance: float) -> str:
    """What is wrong with an answer; empty where it is right."""
    given, wanted = np.asarray(answer), np.asarray(expected)
    if given.shape != wanted.shape:
        return f"your answer has shape {given.shape}, expected {wanted.shape}."
    if wanted.dtype.kind in "OUS" or given.dtype.kind in "OUS":
        wrong = given.astype(str) != wanted.astype(str)
        if not wrong.any():
            return ""
        return f"{wrong.sum()} of {wrong.size} entries are not right." if given.ndim else f"{answer!r} is not it."
    off = np.abs(given.astype(float) - wanted.astype(float))
    if (off <= tolerance).all():  # NaN is not
        return ""
    if not given.ndim:
        side = "too small" if given < wanted else "too large" if given > wanted else "not a number that can be compared"
        return f"{answer:.6g} is {side}."
    return f"{(~(off <= tolerance)).sum()} of {off.size} numbers are off, by {np.nanmax(off):.3g} at most."
