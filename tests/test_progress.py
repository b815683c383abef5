"""The progress bar: seen at a terminal, silent everywhere else."""

import io
import sys

import pytest

from sims_kit.progress import progress_bar

Screen = type("Screen", (io.StringIO,), {"isatty": lambda self: True})  # a terminal that keeps what was written


@pytest.mark.parametrize("screen", [Screen, io.StringIO], ids=["terminal", "log"])
@pytest.mark.parametrize("ci", ["", "0", "false", "true", "1"])
def test_bar_is_drawn_only_where_somebody_watches(monkeypatch, screen, ci):
    """At a terminal the bar is drawn; in a log or in continuous integration (CI) nothing is written."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("sys.stderr", screen())
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list(progress_bar(range(3), desc="counting", delay=0)) == [0, 1, 2]
    written = sys.stderr.getvalue()
    assert ("counting" in written) == (screen is Screen and ci in ("", "0", "false"))


def test_in_a_notebook_only_the_outer_bar_is_drawn(monkeypatch):
    """A bar within another would move the cursor, which a saved notebook cannot; the next bar is drawn again."""
    monkeypatch.setenv("CI", "")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("sys.stdout", screen := Screen())
    for _ in progress_bar(range(2), desc="outer", delay=0):
        assert list(progress_bar(range(3), desc="inner", delay=0)) == [0, 1, 2]
    assert list(progress_bar(range(1), desc="later", delay=0)) == [0]
    written = screen.getvalue()
    assert "outer" in written and "later" in written and "inner" not in written and "\x1b" not in written
