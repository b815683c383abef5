"""How Sphinx builds the book: README and the committed lessons as they are; `make book` runs it."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from notebook_rules import ADDRESS, QUIZ, relink  # noqa: E402

LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("glossary", "instructors", "servers")]
project = "sims_kit"
author = "the authors of sims_kit"
root_doc = "README"
include_patterns = ["README.md", "notebooks/*.ipynb", *(f"docs/{page.name}" for page in PAGES)]
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to parts of a page, as on GitHub
nb_execution_mode = "off"  # the committed outputs are the book's
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Unfold", "Fold"
html_theme = "sphinx_book_theme"
html_title = "sims_kit"
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "repository_url": ADDRESS,
    "use_repository_button": True,
    "use_download_button": True,  # of the notebook
    "show_toc_level": 2,
    "navbar_persistent": [],  # one field to search in is enough
}


def prepare(app, name: str, source: list[str]) -> None:
    """List the lessons on the first page; in a lesson, fold solutions and hide the answers of quizzes."""
    folder = (ROOT / name).parent
    if name == root_doc:
        listed = [*(f"notebooks/{lesson}" for lesson in LESSONS), *(f"docs/{page.stem}" for page in PAGES)]
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", *listed, "```\n"])
    if not name.startswith("notebooks/"):
        source[0] = relink(source[0], folder, PAGES)
        return
    notebook = json.loads(source[0])
    notebook["metadata"]["language_info"]["pygments_lexer"] = "ipython3"  # Colab's installation is no Python
    for cell in notebook["cells"]:
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            cell["source"] = relink(text, folder, PAGES)
        elif {"solution", "colab"} & set(tags):
            cell["metadata"]["tags"] = [*tags, "hide-cell"]
        elif QUIZ.search(text):
            cell["metadata"]["tags"] = [*tags, "remove-input"]
    source[0] = json.dumps(notebook)


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
