"""Write the learner's edition of the lessons, without solutions and outputs; `make exercises` runs this."""

import sys
from pathlib import Path

import nbformat

from editions import lessons
from notebook_rules import code_cells, tags


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out, in place, solutions with the line before each that announces it, and all outputs."""
    cells = notebook.cells
    kept = []
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        announces = cell.cell_type == "markdown" and following is not None and "solution" in tags(following)
        if "solution" in tags(cell) or (announces and "solution" in cell.source.lower()):
            continue
        kept.append(cell)
    notebook.cells = kept
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def main(folder: str = "dist/exercises") -> None:
    """Write every lesson into `folder`."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, notebook in lessons().items():
        nbformat.write(without_solutions(notebook), out / name)
        print(out / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
