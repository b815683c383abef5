"""What the benchmarks share: the folder of the project, the command line, tables, intervals, machine and memory."""

import argparse
import platform
import re
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


def command_line(text: str, tasks: Collection[str]) -> argparse.ArgumentParser:
    """Options of a benchmark with tasks, none of which --report measures; figures go to files."""
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=tasks)
    parser.add_argument("--report", dest="tasks", action="store_const", const=[], help="write the page alone")
    return parser


def machine(*others: str) -> str:
    """Where and with what a page was measured; `others` are further packages."""
    names = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "scikit-learn", "numpy", *others))
    return f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {names}."


def peak_megabytes() -> int:
    """The highest memory of this process until now (Linux); that of `getrusage` starts with its parent's."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 // 10**6


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


def draw_scores(scores: pd.DataFrame, score: str, rows="method", hue=None, reference=None, line=None) -> np.ndarray:
    """A panel per task: each score with its interval, a tick at `reference`, a line at the score of the row `line`."""
    from matplotlib import pyplot as plt

    from sims_kit.plotting import METHOD_COLOURS

    tasks, names = scores["task"].unique(), list(scores[rows].unique())
    groups = list(scores.groupby(hue, sort=False)) if hue else [("", scores)]
    shape = -(-len(tasks) // 4), min(4, len(tasks))
    options = dict(figsize=(2.6 * shape[1] + 2, shape[0] * (0.9 + 0.22 * len(names))), layout="constrained")
    axes = plt.subplots(*shape, **options, sharey=True, squeeze=False)[1].ravel()
    for ax in axes[len(tasks) :]:
        ax.set_axis_off()
    for ax, task in zip(axes, tasks, strict=False):
        for place, (group, table) in enumerate(groups):
            table = table[table["task"] == task]
            y = table[rows].map(names.index) + 0.7 * ((place + 0.5) / len(groups) - 0.5)
            colours = table["method"].map(METHOD_COLOURS).fillna("#7F7F7F")
            ax.hlines(y, table[f"{score}_low"], table[f"{score}_high"], color=colours)
            ax.scatter(table[score], y, 24, color=colours, zorder=3, label=group)
            if reference:
                ax.scatter(table[reference], y, marker="|", color=colours)
            ax.vlines(table.loc[table[rows] == line, score], -0.5, len(names) - 0.5, color="#7F7F7F", linestyle=":")
        ax.set(xlabel=score, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        ax.set_title(task.replace(" across ", "\nacross "), fontsize=9)
    if hue:
        axes[len(tasks) - 1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return axes[: len(tasks)]
