"""Feedback on a lesson's exercises, and its quizzes: both are read without a kernel too.

A stub leaves its answer as ``...``, so that a notebook runs from top to bottom before anyone has tried.
"""

from collections.abc import Mapping
from html import escape

import numpy as np
from IPython.display import HTML

from sims_kit.errors import SettingError

LETTERS = "ABCDEFGH"


def check(answer, expected, *, tolerance: float = 1e-6, hint: str = "") -> bool:
    """Compare an answer with what is expected, print what is right or wrong about it, and say whether it is right.

    Parameters
    ----------
    answer
        A number, string, or an array or sequence of these; ``...`` or None where nothing was tried yet.
    expected
        What it should be, of the same kind.
    tolerance
        By how much a number may differ.
    hint
        Printed where the answer is wrong.

    Returns
    -------
    bool
        Whether the answer was given and is right.
    """
    if answer is None or answer is ...:
        print("Not attempted yet.")
        return False
    problem = _problem(answer, expected, tolerance)
    print(f"Not yet: {problem}{' ' * bool(hint)}{hint}" if problem else "Right.")
    return not problem


def quiz(question: str, options: Mapping[str, str], right: str) -> HTML:
    """A question with options that unfold: each says whether it is right, and why.

    Parameters
    ----------
    question
        In plain text.
    options
        What can be answered, with the explanation of each.
    right
        The option that is right.

    Raises
    ------
    SettingError
        If `right` is not among the options, or there are more than eight of them.
    """
    if right not in options:
        raise SettingError(
            f"{right!r} is not among the options {list(options)}; name the right one as it stands there."
        )
    if len(options) > len(LETTERS):
        raise SettingError(f"{len(options)} options are too many; give {len(LETTERS)} or fewer.")
    lines = [f"<p><b>{escape(question)}</b></p>"]
    for letter, (option, why) in zip(LETTERS, options.items(), strict=False):
        verdict = "Right." if option == right else "No."
        lines.append(
            f"<details><summary>{letter}. {escape(option)}</summary><p><b>{verdict}</b> {escape(why)}</p></details>"
        )
    return HTML("\n".join(lines))


def _problem(answer, expected, tolerance: float) -> str:
    """What is wrong with an answer, or nothing."""
    given, wanted = np.asarray(answer), np.asarray(expected)
    if given.shape != wanted.shape:
        return f"your answer has shape {given.shape}, expected {wanted.shape}."
    if wanted.dtype.kind in "OUS" or given.dtype.kind in "OUS":
        wrong = given.astype(str) != wanted.astype(str)
        if not wrong.any():
            return ""
        return f"{answer!r} is not it." if not given.ndim else f"{wrong.sum()} of {wrong.size} entries are not right."
    off = np.abs(given.astype(float) - wanted.astype(float))
    if (off <= tolerance).all():  # NaN is not
        return ""
    if not given.ndim:
        side = "too small" if given < wanted else "too large" if given > wanted else "not a number that can be compared"
        return f"{answer:.6g} is {side}."
    return f"{(~(off <= tolerance)).sum()} of {off.size} numbers are off, by {np.nanmax(off):.3g} at most."
