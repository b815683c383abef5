"""The learner's edition and the site: made from the committed lessons, which stay as they are."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import notebook_rules as rules
import write_learner

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ["sphinx", "myst_nb", "sphinx_book_theme"]
missing = [name for name in NEEDED if find_spec(name) is None]
needs_docs = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: make docs installs it")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_learner_edition_is_in_step(path, tmp_path):
    """learner/ has every lesson without outputs, solutions and pictures outside; `make learner` writes it."""
    whole, kept = (nbformat.read(folder / path.name, as_version=4) for folder in (path.parent, ROOT / "learner"))
    nbformat.write(write_learner.learner(path), tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == (ROOT / "learner" / path.name).read_bytes(), "run `make learner`"
    assert len(kept.cells) == sum("solution" not in rules.tags(cell) for cell in whole.cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") or cell.source[:2] == "> " for cell in kept.cells)
    assert all(target.endswith(".ipynb") for target in rules.links(rules.prose(ROOT / "learner" / path.name)))
    assert sorted(path.name for path in (ROOT / "learner").glob("*.ipynb")) == [path.name for path in LESSONS]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was just built, by the command of `make docs` with other folders."""
    folder = tmp_path_factory.mktemp("site")
    recipe = re.search(r"^docs:.*\n\t@\$\(RUN\) ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    folders = {"build/doctrees": str(folder / "doctrees"), "dist/docs": str(folder / "site")}
    command = [folders.get(word, word) for word in recipe.replace("\\\n", " ").split()]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@needs_docs
def test_site_has_every_lesson_with_its_figures(site):
    """Each lesson is a page with all its figures; solutions are folded, and quizzes do not show their source."""
    from bs4 import BeautifulSoup

    for path in LESSONS:
        page = BeautifulSoup((site / "notebooks" / path.with_suffix(".html").name).read_text(), "html.parser")
        code = rules.code_cells(nbformat.read(path, as_version=4))
        pictures = [target for target in rules.links(rules.prose(path)) if target.endswith(".png")]
        figures = [image["src"] for image in page.find_all("img") if "_images" in image["src"]]
        n_figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
        assert len(figures) == n_figures + len(pictures) and n_figures >= 3
        assert all((site / "notebooks" / figure).stat().st_size > 1_000 for figure in figures)
        solutions = page.select("div.tag_solution.code_cell, div.code_cell.tag_solution, div.cell.tag_solution")
        assert len(solutions) == sum("solution" in rules.tags(cell) for cell in code)
        assert not any(solution.find("details", class_="hide").has_attr("open") for solution in solutions)
        assert "sk.lessons.quiz(" not in page.get_text()


@needs_docs
def test_links_of_the_site_lead_somewhere(site):
    """Links within the site lead to a page and a part of it that exist; those to the repository, to files of it."""
    from bs4 import BeautifulSoup

    texts = [path for path in site.rglob("*.html") if path.stem not in ("genindex", "py-modindex", "search")]
    pages = {path.resolve(): BeautifulSoup(path.read_text(), "html.parser") for path in texts}
    inside = re.escape(f"{rules.ADDRESS}/blob/{rules.TAG}/") + "([^#]+)"
    n_links = 0
    for path, page in pages.items():
        for link in page.select("article a[href]"):
            target, _, part = link["href"].partition("#")
            if found := re.match(inside, target):
                assert (ROOT / found[1]).exists(), link
            elif not re.match(r"[a-z]+:", target):
                file = (path.parent / target).resolve() if target else path
                assert file.exists() and (not part or file not in pages or pages[file].find(id=part)), (path, link)
                n_links += 1
    assert n_links > 300
