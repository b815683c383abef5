"""What the pages of the benchmarks share: the folder of the project, tables, intervals, the machine."""

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


def machine(*others: str) -> str:
    """Where and with what a page was measured; `others` are further packages."""
    names = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "scikit-learn", "numpy", *others))
    return f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {names}."


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table, the index left out, numbers with three decimals."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|---" * frame.shape[1] + "|"]
    for row in frame.itertuples(index=False):
        cells = ["" if v != v else f"{v:.3f}".removesuffix(".000") if isinstance(v, float) else str(v) for v in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_interval(row: pd.Series, score: str, form: str = ".3f") -> str:
    """A score and its interval, as in the other pages."""
    low, high = ("low", "high") if score == "difference" else (f"{score}_low", f"{score}_high")
    return f"{row[score]:{form}} ({row[low]:{form}} to {row[high]:{form}})"
