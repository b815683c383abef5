"""Measure CPU time and peak memory of every lesson's fast version into docs/notebooks.md; `make measure` runs this."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from editions import LESSONS, ROOT

PAGE = ROOT / "docs/notebooks.md"
INTRODUCTION = """# What the lessons need

<!-- Written by `make measure`. -->

Each lesson in its fast version, in a kernel of its own on one CPU thread: seconds of CPU, the imports of libraries
included, and the peak of resident memory. {machine}

| lesson | CPU (s) | memory (GB) |
|---|---|---|
"""
# the peak that getrusage tells is at least that of the process that started the kernel, so Linux is asked otherwise
ASK = """
import pathlib, re, resource
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
status = pathlib.Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else used[0].ru_maxrss / 1024
print(sum(u.ru_utime + u.ru_stime for u in used), peak)
"""


def measure(path: Path) -> tuple[float, float]:
    """Seconds of CPU and gigabytes at the peak that the notebook at `path` takes; it is left as it is."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=None, resources=resources).execute()
    seconds, kibibytes = map(float, notebook.cells[-1].outputs[0].text.split())
    return seconds, kibibytes * 1024 / 1e9


def row(path: Path, seconds: float, gigabytes: float) -> str:
    """A line of the table."""
    title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
    return f"| [{path.name[:2]} {title}](../notebooks/{path.name}) | {seconds:.0f} | {gigabytes:.2f} |"


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main(names: Sequence[str] = ()) -> None:
    """Measure all lessons, or only those named, and write the page; what was measured of the others stays."""
    os.environ |= {"SIMS_KIT_FAST": "1", "OMP_NUM_THREADS": "1"}  # handed on to the kernels
    measured = known_rows()
    paths = sorted(LESSONS.glob("*.ipynb"))
    for path in paths:
        if not names or path.name in {Path(name).name for name in names}:
            measured[path.name] = row(path, *measure(path))
            print(measured[path.name], flush=True)
    rows = "\n".join(measured[path.name] for path in paths if path.name in measured)
    machine = f"{processor()}, torch {version('torch')}."
    PAGE.write_text(f"{INTRODUCTION.format(machine=machine)}{rows}\n", encoding="utf-8")


def known_rows() -> dict[str, str]:
    """The lines of the page by the lesson's file name."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return {match[1]: line for line in lines if (match := re.search(r"\(\.\./notebooks/(.+?)\)", line))}


if __name__ == "__main__":
    main(sys.argv[1:])
