"""What the learner's edition and the book share: where the lessons are, and links that lead out of their folder."""

import re
from pathlib import Path

import nbformat

from notebook_rules import links
from set_address import project

ROOT = Path(__file__).resolve().parents[1]
LESSONS = ROOT / "notebooks"


def lessons() -> dict[str, nbformat.NotebookNode]:
    """Every lesson by its file's name, in order, ready to be changed: its links do not need the folders around it."""
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in sorted(LESSONS.glob("*.ipynb"))}
    for notebook in notebooks.values():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(cell.source, LESSONS)
    return notebooks


def relink(text: str, folder: Path) -> str:
    """`text`, Markdown of a page in `folder`, for a page that lies among the lessons.

    Links to lessons lead to their neighbour, pictures to a copy beside the page, and others to the repository.
    """
    facts = project()
    for target in set(links(text)):
        path, _, part = target.partition("#")
        file = (folder / path).resolve()
        if file.parent == LESSONS or file.suffix == ".png":
            there = file.name
        else:
            there = f"{facts['url']}/blob/{facts['tag']}/{file.relative_to(ROOT).as_posix()}"
        text = re.sub(rf"(?<=[(<\"]){re.escape(target)}(?=[)>\"\s])", there + ("#" + part if part else ""), text)
    return text
