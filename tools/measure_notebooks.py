"""Measure CPU time and peak memory of every lesson's fast version into docs/notebooks.md; `make measure` runs this."""

import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from notebook_rules import ROOT, TOTAL

PAGE = ROOT / "docs/notebooks.md"
RULE = "|---|---|---|---|\n"  # above it are introduction and head of the table, which stay as they are
ASK = """
import pathlib, re, resource
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
status = pathlib.Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else used[0].ru_maxrss / 1024
print(sum(u.ru_utime + u.ru_stime for u in used), float(peak) * 1024 / 1e9)
"""


def measured_row(path: Path) -> str:
    """A line of the table, from running the notebook at `path`, which is left as it is."""
    notebook = nbformat.read(path, as_version=4)
    opening = notebook.cells[0].source
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=None, resources=resources).execute()
    seconds, gigabytes = map(float, notebook.cells[-1].outputs[0].text.split())
    title, minutes = opening.splitlines()[0].removeprefix("# "), TOTAL.search(opening)[1]
    return f"| [{path.name[:2]} {title}](../notebooks/{path.name}) | {minutes} | {seconds:.0f} | {gigabytes:.2f} |"


def known_rows() -> dict[str, str]:
    """The lines of the page by the lesson's file name."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {match[1]: line for line in lines if (match := re.search(r"\(\.\./notebooks/(.+?)\)", line))}


def main(names: list[str]) -> None:
    """Measure all lessons, or only those named, and write the page; rows of the others stay."""
    os.environ |= {"SIMS_KIT_FAST": "1", "OMP_NUM_THREADS": "1"}  # for the kernels
    rows, paths = known_rows(), sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in paths:
        if not names or path.name in {Path(name).name for name in names}:
            rows[path.name] = measured_row(path)
            print(rows[path.name], flush=True)
    machine = f"Measured last on {platform.processor() or platform.machine()}, torch {version('torch')}."
    lines = [rows[path.name] for path in paths if path.name in rows]
    introduction = PAGE.read_text(encoding="utf-8").partition(RULE)[0]
    PAGE.write_text(introduction + RULE + "\n".join([*lines, "", machine, ""]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
