"""The page of studies, benchmarks/STUDIES.md: each script writes its own section and leaves the others as they are."""

import platform
import re
from importlib.metadata import version
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks/STUDIES.md"
SECTIONS = ("Generalization", "Ablation", "Inference on tissue cultures", "Masked pretraining")  # order of the page
HEAD = "# The thesis's experiments\n\nWritten by the scripts that each section names; do not edit.\n"


def write_section(title: str, parts: list[str]) -> None:
    """Put a section in its place on the page: the first paragraph names the script that wrote it."""
    text = PAGE.read_text() if PAGE.exists() else HEAD
    found = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE))
    found[title] = "\n" + "\n\n".join(parts) + "\n"
    order = [name for name in SECTIONS if name in found] + [name for name in found if name not in SECTIONS]
    PAGE.write_text(HEAD + "".join(f"\n## {name}\n\n{found[name].strip()}\n" for name in order))


def machine() -> str:
    """Where and with what a section was measured."""
    packages = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "scikit-learn", "numpy"))
    return f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {packages}."


def table(frame: pd.DataFrame) -> str:
    """A Markdown table, the index left out."""
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|---" * frame.shape[1] + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def with_interval(row: pd.Series, score: str, form: str = ".3f") -> str:
    """A score and its interval, as in the other pages."""
    low, high = ("low", "high") if score == "difference" else (f"{score}_low", f"{score}_high")
    return f"{row[score]:{form}} ({row[low]:{form}} to {row[high]:{form}})"
