"""The learner's edition and the book: made from the committed lessons, which stay as they are."""

import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

import editions
import notebook_rules as rules
import write_exercises

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ["sphinx", "myst_nb", "sphinx_book_theme"]
missing = [name for name in NEEDED if find_spec(name) is None]
needs_book = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: make book installs it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](02_learning_a_classifier.ipynb)", "[a](02_learning_a_classifier.ipynb)"),
        (
            "[a](../benchmarks/RESULTS.md#top), `(b)`",
            "[a](https://github.com/sims-kit/sims_kit/blob/v0.1.0/benchmarks/RESULTS.md#top), `(b)`",
        ),
        ("[a](https://example.org/x.md) [b](#top)", "[a](https://example.org/x.md) [b](#top)"),
        ("![a](../docs/demo.png)", "![a](demo.png)"),
    ],
)
def test_links_out_of_the_folder_lead_to_the_repository(text, expected):
    """Lessons link to each other, pictures to a copy, pages of the repository get its address; the rest is left."""
    assert editions.relink(text, ROOT / "notebooks") == expected


def test_exercises_have_no_solutions(tmp_path):
    """The learner's edition has every cell but solutions and their announcements, and no outputs."""
    committed = {path: path.read_bytes() for path in LESSONS}
    write_exercises.main(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in LESSONS]
    for path in LESSONS:
        whole, learner = (nbformat.read(p, as_version=4) for p in (path, tmp_path / path.name))
        gone = {cell.id for cell in whole.cells} - {cell.id for cell in learner.cells}
        by_id = {cell.id: cell for cell in whole.cells}
        assert {cell.id for cell in whole.cells if "solution" in rules.tags(cell)} <= gone
        assert all("solution" in rules.tags(by_id[i]) or "solution" in by_id[i].source.lower() for i in gone)
        assert len(gone) == 2 * len(rules.exercises(whole))
        assert not any(cell.outputs or cell.execution_count for cell in rules.code_cells(learner))
        checks = [cell for cell in rules.code_cells(learner) if "sk.lessons.check(" in cell.source]
        assert len(checks) == len(rules.exercises(whole)) and not any("assert" in cell.source for cell in checks)
    assert committed == {path: path.read_bytes() for path in LESSONS}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of a book that was just built."""
    import build_book

    folder = tmp_path_factory.mktemp("book")
    assert build_book.main(str(folder / "book"), str(folder / "work")) == 0
    return folder / "book"


@needs_book
def test_book_has_every_lesson_with_its_figures(book):
    """Each lesson is a page with all its figures and tables, and a picture is one that is there."""
    for path in LESSONS:
        page = (book / path.with_suffix(".html").name).read_text()
        outputs = [o for c in rules.code_cells(nbformat.read(path, as_version=4)) for o in c.outputs]
        figures = re.findall(r'<img [^>]*src="(_images/[^"]+)"', page)
        assert len(figures) == sum("image/png" in output.get("data", {}) for output in outputs) >= 3
        assert all((book / figure).stat().st_size > 1_000 for figure in figures)


@needs_book
def test_links_of_the_book_lead_somewhere(book):
    """Links within the site lead to a page and a part of it that exist; those to the repository, to files of it."""
    from bs4 import BeautifulSoup

    pages = {path.name: BeautifulSoup(path.read_text(), "html.parser") for path in book.glob("*.html")}
    n_links = 0
    for name, page in pages.items():
        for link in page.find_all("a", href=True):
            target, _, part = link["href"].partition("#")
            if inside := re.match(r"https://github\.com/sims-kit/sims_kit/blob/v0\.1\.0/(.*)", target):
                assert (ROOT / inside[1]).exists(), link
            elif not re.match(r"[a-z]+:", target):
                assert not target or (book / target).exists(), (name, link)
                if part and (target or name) in pages:
                    assert pages[target or name].find(id=part), (name, link)
                n_links += 1
    assert n_links > 100


@needs_book
def test_book_folds_solutions_and_keeps_quizzes_closed(book):
    """Solutions are folded, a quiz shows its question and not its source, and the site can be searched."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup((book / "02_learning_a_classifier.html").read_text(), "html.parser")
    solutions = page.find_all("div", class_="tag_solution")
    assert len(solutions) == 4
    for solution in solutions:
        fold = solution.find("details", class_="hide")
        assert "assert sk.lessons.check" in fold.get_text() and not fold.has_attr("open")
    assert "What now?" in page.get_text() and "sk.lessons.quiz(" not in page.get_text()
    assert len(page.select("section#quiz details")) == 9
    index = (book / "searchindex.js").read_text()
    assert "doublet" in index and "overfit" in index
