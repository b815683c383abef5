"""One progress bar for all long work: plain text, also in notebooks, and silent where nobody watches."""

import os
import sys

from tqdm import tqdm

# tqdm's own format without percentage and rate: with three metrics, the line fits into 80 columns and does not wrap
SHORT = "{desc} {bar:4} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def progress_bar(iterable=None, **options) -> tqdm:
    """A `tqdm` bar in plain text, which leaves no widget state in a saved notebook; `options` are those of `tqdm`.

    It is silent in a log, in continuous integration (the environment variable `CI`), and in a notebook inside another
    bar, where the cursor cannot go back a line.
    """
    notebook = in_notebook()
    options.setdefault("leave", False)
    options.setdefault("delay", 0 if options["leave"] else 1)  # seconds; a bar that would flash by is not drawn
    options.setdefault("bar_format", SHORT)
    is_inner = notebook and any(not getattr(bar, "disable", True) for bar in [*getattr(tqdm, "_instances", ())])
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
