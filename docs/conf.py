"""How Sphinx builds the site: README, guides, the committed lessons, API and results; `make docs` runs it."""

import json
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import sims_kit as sk  # noqa: E402
from notebook_rules import ADDRESS, QUIZ, relink  # noqa: E402

LESSONS = sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb"))
GUIDES = ("own_files", "groups", "confidence", "explain", "compare", "genes", "seurat", "cellxgene")
GUIDES += ("large_files", "devices")
ROOMS = {"sims_kit": sk.__all__} | {
    room: import_module(f"sims_kit.{room}").__all__ for room in sk.__all__ if room in sk._ROOMS
}
RESULTS = ("RESULTS", "TRUST", "INTERPRETATION", "STUDIES", "STUDIES_INFERENCE", "STUDIES_PRETRAINING")
RESULTS += ("RECIPE", "TRIALS")
SECTIONS = {  # the table of contents
    "Start": ["docs/install", "docs/quickstart", "docs/when"],
    "Guides": ["docs/models", *(f"docs/guides/{name}" for name in GUIDES), "docs/recipes"],
    "Lessons": ["docs/lessons", *LESSONS],
    "Reference": [*(f"docs/api/{room}" for room in ROOMS), "docs/datasets", "docs/simulation", "docs/glossary"],
    "Results": ["docs/results", *(f"benchmarks/{name}" for name in RESULTS), "docs/scale", "docs/notebooks"],
    "Project": [
        "CHANGELOG",
        "CONTRIBUTING",
        "CODE_OF_CONDUCT",
        "SECURITY",
        "docs/instructors",
        "docs/servers",
        "docs/security",
    ],
}
SECTIONS = {title: [n for n in names if list(ROOT.glob(f"{n}.*"))] for title, names in SECTIONS.items()}
NAMES = [name for names in SECTIONS.values() for name in names]
PAGES = [ROOT / "README.md", *(ROOT / f"{name}.md" for name in NAMES if name not in LESSONS)]
CLASSES = {  # beside what a room lists: what its functions take and return
    "sims_kit": ["explanation.Explanation", "explanation.CellExplanation", "cells.genes.GeneCoverage"],
    "calibration": ["calibration.Rejection"],
    "datasets": ["datasets.simulate.SimulationSettings"],
    "studies": ["studies.runs.Tables"],
}
CLASSES["sims_kit"] += ["cells.splits.Split", "model.pretraining.MaskedPretraining"]

project = "sims_kit"
author = "the authors of sims_kit"
root_doc = "README"
include_patterns = ["README.md", *(f"{name}.*" for name in NAMES)]
exclude_patterns = ["**.png", "**.py", "**.csv"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to parts of a page, as on GitHub
nb_execution_mode = "off"  # the committed outputs are the site's
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Unfold", "Fold"
default_role = "code"  # docstrings write `name`
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!sims_kit).*|sims_kit.*\.(CellLoader|Trainer|Module)")
]  # other people's, inner ones
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_default_options = {
    "exclude-members": "set_fit_request, set_predict_request, set_score_request"
}  # scikit-learn's
napoleon_use_param = False  # parameters that share a sentence stay together
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
    """Add contents to the first page and entries to an API page; fold solutions and hide answers in a lesson."""
    folder = (ROOT / name).parent
    if name not in LESSONS:
        source[0] = relink(source[0], folder, PAGES)
        if name == root_doc:
            for title, names in SECTIONS.items():
                source[0] += "\n".join(["\n```{toctree}", f":caption: {title}", ":hidden:", *names, "```\n"])
        elif name.startswith("docs/api/"):
            source[0] += entries(name.removeprefix("docs/api/"))
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


def entries(room: str) -> str:
    """What a room shows: a table, each name with its docstring, and the classes that its functions return."""
    module = "sims_kit" if room == "sims_kit" else f"sims_kit.{room}"
    names = sorted(ROOMS[room], key=lambda name: (not name.islower(), name))  # functions, then classes and mappings
    values = {name: getattr(import_module(module), name) for name in names if name not in sk._ROOMS}
    blocks = [".. autosummary::", "", *(f"   ~{module}.{name}" for name in values if callable(values[name])), ""]
    for name, value in values.items():
        if callable(value):
            is_class = isinstance(value, type)
            blocks += [
                f".. auto{'class' if is_class else 'function'}:: {module}.{name}",
                *["   :members:"] * is_class,
                "",
            ]
        else:
            keys = ", ".join(f"``{key!r}``" for key in value)
            blocks += [f".. py:data:: {module}.{name}", "", f"   A mapping with the keys {keys}.", ""]
    for name in CLASSES.get(room, ()):
        members = "Explanation" in name and "Cell" not in name
        blocks += [f".. autoclass:: sims_kit.{name}", *["   :members:"] * members, ""]
    return "\n".join(["\n```{eval-rst}", *blocks, "```\n"])


def plain_stars(app, what, name, value, options, lines: list[str]) -> None:
    """Keep docutils from reading `**settings` in a sentence as the start of bold text."""
    lines[:] = [line.replace(" **settings", " ``**settings``") for line in lines]


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", plain_stars)
