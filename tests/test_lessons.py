"""Lessons: feedback and quizzes."""

import numpy as np
import pytest

from sims_kit import lessons


@pytest.mark.parametrize("answer", [..., None])
def test_an_untouched_stub_is_not_wrong(answer, capsys):
    """Nothing was tried: it says so, and does not fail."""
    assert not lessons.check(answer, 3)
    assert capsys.readouterr().out == "Not attempted yet.\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (3, 3.0),
        (0.1 + 0.2, 0.3),
        ([1, 2], np.array([1.0, 2.0])),
        ("CD79A", "CD79A"),
        (["a", "b"], ["a", "b"]),
        (True, True),
    ],
)
def test_right_answers(answer, expected, capsys):
    """Numbers within the tolerance, words as they stand."""
    assert lessons.check(answer, expected, hint="Look again.")
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (2, 3, "2 is too small. Look again."),
        (4.5, 3, "4.5 is too large."),
        (float("nan"), 3, "not a number"),
        ([1, 2, 4], [1, 2, 3], "1 of 3 numbers are off, by 1 at most."),
        ([1, 2], [1, 2, 3], "shape (2,), expected (3,)"),
        ("CD3E", "CD79A", "'CD3E' is not it."),
        (["a", "c"], ["a", "b"], "1 of 2 entries"),
    ],
)
def test_wrong_answers_say_what_is_wrong(answer, expected, words, capsys):
    """Too small, too large, how many are off, another shape."""
    assert not lessons.check(answer, expected, hint="Look again.")
    assert words in capsys.readouterr().out


def test_quiz_explains_every_option():
    """Each option unfolds to a verdict and a reason; text is escaped."""
    shown = lessons.quiz("Is 1 < 2?", {"yes": "One is less.", "no": "Count & see."}, "yes").data
    assert shown.count("<details>") == 2 and "Is 1 &lt; 2?" in shown and "Count &amp; see." in shown
    assert "<b>Right.</b> One is less." in shown and "<b>No.</b> Count" in shown


def test_quiz_needs_its_right_answer():
    """A quiz without a right option is refused."""
    with pytest.raises(ValueError, match="'maybe' is not among the options"):
        lessons.quiz("?", {"yes": "", "no": ""}, "maybe")
    with pytest.raises(ValueError, match="9 options"):
        lessons.quiz("?", {str(n): "" for n in range(9)}, "1")
