"""Lessons: feedback and quizzes."""

import numpy as np
import pytest

from sims_kit import lessons


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (..., 3, "Not attempted yet."),
        (0.1 + 0.2, 0.3, "Right."),
        ([1, 2], np.array([1.0, 2.0]), "Right."),
        (["a", "b"], ["a", "b"], "Right."),
        (True, True, "Right."),
        (2, 3, "2 is too small. Look again."),
        (4.5, 3, "4.5 is too large."),
        (float("nan"), 3, "not a number"),
        ([1, 2, 4], [1, 2, 3], "1 of 3 numbers are off, by 1 at most."),
        ([1, 2], [1, 2, 3], "shape (2,), expected (3,)"),
        ("CD3E", "CD79A", "'CD3E' is not it."),
        (["a", "c"], ["a", "b"], "1 of 2 entries"),
    ],
)
def test_answers(answer, expected, words, capsys):
    """What is right, what was not tried, and what is wrong: too small, too large, how many, another shape."""
    assert lessons.check(answer, expected, hint="Look again.") == (words == "Right.")
    printed = capsys.readouterr().out
    assert printed == f"{words}\n" if words in ("Right.", "Not attempted yet.") else words in printed


def test_quiz_explains_every_option():
    """Each option unfolds to a verdict and a reason; text is escaped; the right one must be among them."""
    shown = lessons.quiz("Is 1 < 2?", {"yes": "One is less.", "no": "Count & see."}, "yes").data
    assert shown.count("<details>") == 2 and "Is 1 &lt; 2?" in shown and "Count &amp; see." in shown
    assert "<b>Right.</b> One is less." in shown and "<b>No.</b> Count" in shown
    with pytest.raises(ValueError, match="'maybe' is not among the options"):
        lessons.quiz("?", {"yes": "", "no": ""}, "maybe")
