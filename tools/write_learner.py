"""Write learner/, the edition of the lessons without outputs and solutions; `make learner` runs this."""

import re
import sys
from base64 import b64encode
from pathlib import Path

import nbformat

from notebook_rules import ADDRESS, ROOT, TAG, links, relink, tags

COLAB = f"https://colab.research.google.com/github/{ADDRESS.removeprefix('https://github.com/')}/blob/{TAG}/learner"


def learner(path: Path) -> nbformat.NotebookNode:
    """Return the lesson at `path` without outputs and solutions; pictures are inside, links lead to published pages."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells, guessed, ran = [cell for cell in notebook.cells if "solution" not in tags(cell)], False, False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count, ran = [], None, True
            cell.metadata["tags"] = [tag for tag in tags(cell) if tag != "nbval-check-output"]  # there is none
            continue
        is_guess = re.search(r"\*\*(Guess|Play)", cell.source) and "Wherever it says" not in cell.source
        cell.source = _folded(cell.source, first=guessed and ran)
        guessed, ran = bool(is_guess) or (guessed and not ran), False
        for picture in (path.parent / target for target in links(cell.source) if target.endswith(".png")):
            picture_data = {"image/png": b64encode(picture.read_bytes()).decode()}
            cell.setdefault("attachments", {})[picture.name] = picture_data
            cell.source = re.sub(rf"\]\([^)]*{re.escape(picture.name)}\)", f"](attachment:{picture.name})", cell.source)
        cell.source = relink(cell.source, path.parent)
        if cell.source.startswith("## What comes next"):  # Colab has no folder to find a neighbour in
            lessons = sorted(target for target in links(cell.source) if target.endswith(".ipynb"))
            cell.source += "\n\nOn Colab: " + ", ".join(f"[{name[:2]}]({COLAB}/{name})" for name in lessons) + "."
    return notebook


def _folded(text: str, first: bool) -> str:
    """Hide what answers a guess: results, which are quoted, and the `first` paragraph after the cells that show it."""
    parts = text.split("\n\n")
    for place, part in enumerate(parts):
        is_first = first and place == 0 and not re.match(r"#|.*\*\*(Guess|Play)", part, re.DOTALL)
        if part.startswith("> ") or is_first:
            parts[place] = f"<details><summary>After you ran it: unfold</summary>\n\n{part}\n\n</details>"
    return "\n\n".join(parts)


def main(folder: Path) -> None:
    """Write every lesson's learner edition into `folder`."""
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        nbformat.write(learner(path), folder / path.name)


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
