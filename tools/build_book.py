"""Build the lessons into a static site, from their saved outputs; `make book` runs this.

Sphinx with MyST-NB, what Jupyter Book 1 is made of. Nothing is executed. A link that leads nowhere stops the build.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat
from sphinx.cmd.build import build_main

from editions import ROOT, lessons, relink
from notebook_rules import QUIZ, code_cells, links, tags

FOLDED = {"solution", "colab"}


def write_sources(folder: Path) -> None:
    """Write the first page and the lessons into `folder`, which is emptied; tag what is to be folded or left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notebooks = lessons()
    for name, notebook in notebooks.items():
        for cell in code_cells(notebook):
            folded = "hide-cell" if FOLDED & set(tags(cell)) else "remove-input" if QUIZ.search(cell.source) else None
            cell.metadata["tags"] = [*tags(cell), *filter(None, [folded])]
        notebook.metadata.language_info.pygments_lexer = "ipython3"  # Colab's installation is no Python
        nbformat.write(notebook, folder / name)
    (folder / "index.md").write_text(first_page(list(notebooks)), encoding="utf-8")
    for picture in links((ROOT / "README.md").read_text(encoding="utf-8")):
        if picture.endswith(".png"):
            shutil.copy(ROOT / picture, folder)


def first_page(names: list[str]) -> str:
    """README's opening and its table of lessons, and the order of the pages."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opening, table = readme.split("\n## ")[0], re.search(r"\n## Lessons\n.*?(?=\n## )", readme, re.DOTALL)[0]
    contents = "\n".join(["```{toctree}", ":hidden:", *(name.removesuffix(".ipynb") for name in names), "```"])
    return relink("\n".join([opening, table, "", contents, ""]), ROOT)


def main(folder: str = "dist/book", work: str = "build/book") -> int:
    """Build the site into `folder`, by way of `work`, and replace what is there; 0 when all went well."""
    sources, site = Path(work) / "sources", Path(work) / "html"
    write_sources(sources)
    strict = ["-q", "-W", "--keep-going", "-E"]  # nothing of an earlier build
    if status := build_main(
        [*strict, "-c", str(ROOT / "docs/book"), "-d", f"{work}/doctrees", str(sources), str(site)]
    ):
        return status
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(site, folder)
    print(f"The book is {folder}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
