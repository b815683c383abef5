"""The progress bar: seen at a terminal, silent everywhere else."""

import io
import sys

import pytest

from sims_kit.progress import progress_bar


class Screen(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self):
        """Pretend to be a terminal."""
        return True


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
