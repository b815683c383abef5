"""One progress bar for all long work: plain text, also in notebooks, and silent where nobody watches."""

import os
import sys

from tqdm import tqdm

# tqdm's own without percentage and rate: with three metrics it fits into 80 columns, so that the line is redrawn in
# place and does not wrap
SHORT = "{desc} {bar:4} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def progress_bar(iterable=None, **options) -> tqdm:
    """A `tqdm` bar that writes to the notebook's output or to the terminal.

    Plain text rather than a widget, so that a saved notebook keeps no widget state. Silent where the output is
    neither a notebook nor a terminal, in continuous integration (the environment variable `CI`), and in a notebook
    within a bar that is drawn already: there the cursor cannot go back a line.

    Parameters
    ----------
    iterable
        What to iterate over; None for a bar that is moved by hand.
    **options
        Passed to `tqdm.tqdm`: `total`, `desc`, `unit`, ...; `bar_format=None` for its own, with the rate.
    """
    notebook = in_notebook()
    options.setdefault("leave", False)
    options.setdefault("delay", 0 if options["leave"] else 1)  # seconds; a bar that would flash by is not drawn
    options.setdefault("bar_format", SHORT)
    is_inner = notebook and any(not bar.disable for bar in getattr(tqdm, "_instances", ()))
    return tqdm(
        iterable,
        file=sys.stdout if notebook else sys.stderr,
        disable=is_switched_on("CI") or is_inner or (False if notebook else None),  # None: silent unless a terminal
        dynamic_ncols=not notebook,
        **options,
    )


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    return "ipykernel" in sys.modules


def is_switched_on(variable: str) -> bool:
    """Whether an environment variable is set to something else than 0, false or no."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no")
