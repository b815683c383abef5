"""The lessons: committed whole, built as lessons, and a gate that a broken one does not pass."""

import json
import re
import subprocess
import sys
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import measure_notebooks
import notebook_rules as rules
import run_notebooks

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSON = ROOT / "notebooks/02_learning_a_classifier.ipynb"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_committed_lesson_is_whole(path):
    """A lesson is committed run, tidied and small, with all its parts, links that resolve and outputs to compare."""
    assert not [*rules.problems(path), *rules.anatomy(path)], "run `make notebooks`"
    cells = rules.code_cells(nbformat.read(path, as_version=4))
    assert sum("nbval-check-output" in rules.tags(cell) and bool(cell.outputs) for cell in cells) >= 3


def test_every_lesson_is_measured_and_fits_on_binder():
    """docs/notebooks.md has the cost of each lesson, and two take 1.7 GB of memory at most in the fast version."""
    rows = measure_notebooks.known_rows()
    assert set(rows) == {path.name for path in LESSONS}, "run `make measure`"
    *_, second, first = sorted(float(row.split("|")[-2]) for row in rows.values())
    assert second + first - 0.25 <= 1.7  # gigabytes; a quarter of one are files of libraries that kernels share
    stated = {path.name: rules.TOTAL.search(path.read_text())[1] for path in LESSONS}
    assert {name: row.split("|")[-4].strip() for name, row in rows.items()} == stated, "run `make measure`"


def test_executed_notebook_is_tidied(make_notebook, tmp_path):
    """Running saves outputs without bars, widgets, timestamps or stale counts, and keeps figures, text and tags."""
    source = 'from tqdm import tqdm\nprint("kept", *tqdm("ab", desc="dropped"))'
    slider = "import ipywidgets\ndisplay(ipywidgets.IntSlider())"
    shown = picture(110).data | {rules.WIDGET_VIEW: {"model_id": "1"}}
    figure = f"display({shown}, raw=True)"
    check = 'import sims_kit as sk\n_ = sk.lessons.check("02.1", ...)'
    quiz = 'sk.lessons.quiz("02.1")'
    path = make_notebook(tmp_path / "tiny.ipynb", source, slider, figure, check, quiz)
    run_notebooks.execute(path)
    assert rules.problems(path) == []
    saved = json.loads(path.read_text())
    assert "kept a b" in path.read_text() and "dropped" not in json.dumps(saved["cells"][2]["outputs"])
    assert saved["cells"][3]["outputs"] == [] and set(saved["metadata"]) == {"kernelspec", "language_info"}
    assert [list(output["data"]) for output in saved["cells"][4]["outputs"]] == [["image/png"]]
    tags = [cell["metadata"].get("tags", []) for cell in saved["cells"]]
    assert tags == [["colab"], ["parameters"], [], [], [], ["nbval-check-output"], ["nbval-check-output"]]


def test_warning_of_a_cell_is_named(make_notebook, tmp_path):
    """A warning on stderr stays, and is named with its cell and without the progress bar beside it."""
    source = 'import warnings\nfrom tqdm import tqdm\nfor _ in tqdm("ab"):\n    warnings.warn("genes are missing")'
    run_notebooks.execute(path := make_notebook(tmp_path / "tiny.ipynb", "print(1)", source))
    (found, *_) = rules.problems(path)
    assert re.match("code cell 4 writes to stderr: .*UserWarning: genes are missing", found) and "%|" not in found


def picture(dpi):
    """A figure's output."""
    buffer = BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG", dpi=(dpi, dpi))
    return nbformat.v4.new_output("display_data", {"image/png": b64encode(buffer.getvalue()).decode()})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda nb: [cell.update(outputs=[], execution_count=None) for cell in nb.cells], "was not run"),
        (lambda nb: nb.cells[2].update(execution_count=7), "was not run"),
        (lambda nb: nb.metadata.update(widgets={}), "metadata.widgets"),
        (lambda nb: nb.metadata.kernelspec.update(name="sims"), "another kernel"),
        (lambda nb: nb.cells[1].metadata.update(tags=[]), "'parameters'"),
        (lambda nb: nb.cells[2].update(source="if True:\n    files = !ls"), "a shell command or a magic"),
        (lambda nb: nb.cells[2].update(source="%%bash\nfalse"), "a shell command or a magic"),
        (lambda nb: nb.cells[2].update(source="exit()"), "ends its kernel"),
        (lambda nb: nb.cells[2].update(source="# NBVAL_SKIP\n1"), "by a comment"),
        (lambda nb: nb.cells[2].update(source="ax.set_title('small', fontsize=7)"), "text below 8 points"),
        (lambda nb: nb.cells[2].outputs.append(picture(80)), "a figure of 80 dpi; expected 110"),
        (lambda nb: nb.cells[2].update(source="1;", metadata={"tags": ["nbval-check-output"]}), "a semicolon"),
        (lambda nb: nb.cells[2].metadata.update(tags=["raises-exception"]), "the tag 'raises-exception'"),
        (lambda nb: nb.cells[2].outputs[0].update(text="in /home/someone/cells.h5ad"), "/home/someone"),
        (lambda nb: nb.cells[2].outputs[0].update(name="stderr"), "stderr"),
        (lambda nb: nb.cells[2].outputs.append(nbformat.v4.new_output("error", ename="KeyError")), "raised KeyError"),
        (lambda nb: nb.cells[2].outputs[0].update(text="x" * 1_000_000), "bytes"),
    ],
)
def test_unfit_notebook_is_refused(make_notebook, tmp_path, damage, complaint):
    """Each thing that a committed notebook must not have is found and named; without it nothing is."""
    harmless = "T/B cells, CD4+/CD45RA+/CD25- T, https://a.b/c/d, results/demo, 50 %"
    path = make_notebook(tmp_path / "tiny.ipynb", f"print({harmless!r})")
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(notebook.cells, 1):
        cell.execution_count = count
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text=f"{harmless}\n")]
    nbformat.write(notebook, path)
    assert rules.problems(path) == []
    damage(notebook)
    nbformat.write(notebook, path)
    assert any(complaint in problem for problem in rules.problems(path))


@pytest.fixture
def lesson(tmp_path):
    """A copy of a lesson as a notebook, and its path in a folder where its links lead to empty files."""
    path = tmp_path / "notebooks" / LESSON.name
    for target in [LESSON.name, *rules.links(rules.prose(LESSON))]:
        (path.parent / target).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / target).touch()
    return rules.stamp(nbformat.read(LESSON, as_version=4)), path


def test_minutes_follow_from_the_text(lesson):
    """Sections state their minutes, the first cell those of all; a changed text that is not stamped is noticed."""
    notebook, path = lesson
    text = "\n".join(cell.source for cell in notebook.cells)
    sections = [int(found) for found in re.findall(r"^## .*\((\d+) min\)$", text, re.MULTILINE)]
    total = int(re.search(r"take about (\d+) minutes", notebook.cells[0].source)[1])
    assert len(sections) > 5 and sum(sections) < total < 1.3 * sum(sections) and rules.stamp(notebook) == notebook
    cell_of(notebook, "## ").source += " word" * 130
    nbformat.write(notebook, path)
    assert rules.anatomy(path, path.parents[1]) == ["has other minutes in its headings than its sections take"]


def cell_of(notebook, words):
    """The first cell whose source contains the words."""
    return next(cell for cell in notebook.cells if words in cell.source)


def replace(words, by):
    """Damage: other words in the first cell that has them."""

    def damage(notebook):
        cell = cell_of(notebook, words)
        cell.source = cell.source.replace(words, by)

    return damage


def says(text, of):
    """Damage: what the first cell of a kind puts out."""
    return lambda nb: next(filter(of, rules.code_cells(nb))).outputs[0].update(text=f"{text}\n")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (replace("mybinder.org", "example.org"), "no badge of mybinder.org"),
        (replace("02_learning_a_classifier.ipynb)", "01.ipynb)"), "no badge of colab"),
        (replace("| memory |", "| |"), "'memory'"),
        (replace("You need", "Needed"), "'You need'"),
        (replace("](01_preprocessing_background.ipynb)", "](01_other.ipynb)"), "links to 01_other.ipynb"),
        (replace("FAST = False", "FAST = True"), "'FAST = False'"),
        (replace(f"@{rules.TAG}", ""), "another colab cell"),
        (replace("### Exercise 1", "### First"), None),
        (lambda nb: [replace(f"### Exercise {i}", "### Task")(nb) for i in (1, 2)], "has 2 sections"),
        (lambda nb: cell_of(nb, "assert sk.lessons").metadata.update(tags=[]), "no solution that asserts"),
        (lambda nb: cell_of(nb, "assert sk.lessons").metadata.pop("jupyter"), "not folded"),
        (replace("assert sk.lessons", "sk.lessons"), "no solution that asserts"),
        (says("Not yet: 3 is too large.", lambda cell: "solution" in rules.tags(cell)), "solution that does not pass"),
        (says("Right.", rules.is_answered_alike), "Exercise 1 has a check that praises the empty stub"),
        (replace("answer = ...", "answer = 1"), "no stub"),
        (lambda nb: cell_of(nb, "sk.lessons.quiz(").metadata.update(tags=[]), "a quiz without"),
        (lambda nb: [c.update(source="1") for c in nb.cells if "lessons.quiz(" in c.source], "has no quiz"),
        (lambda nb: [c.update(outputs=[]) for c in nb.cells if "plt.subplots(" in c.source], "widget without a figure"),
        (lambda nb: [c.update(source="1") for c in nb.cells if rules.WIDGET.search(c.source)], "has no widget"),
        (replace("In this notebook we", "We"), "'In this notebook we'"),
        (lambda nb: nb.cells.pop(), "prints versions"),
    ],
)
def test_incomplete_lesson_is_refused(lesson, damage, complaint):
    """Each part that a lesson lacks is named; a fourth exercise is not asked for."""
    notebook, path = lesson
    nbformat.write(notebook, path)
    assert rules.anatomy(path, path.parents[1]) == []
    damage(notebook)
    nbformat.write(rules.stamp(notebook), path)
    problems = rules.anatomy(path, path.parents[1])
    assert not problems if complaint is None else any(complaint in problem for problem in problems)


def test_gate_fails_on_mutated_notebooks(make_notebook, clean_environment, tmp_path):
    """nbval, as `make test` calls it, passes what is right and fails a raising cell, slider, and a changed output."""
    slider = "import ipywidgets\nipywidgets.interact(lambda x: 1 / x, x=(0, 1));"
    sources = {"right": "print(6 * 7)", "changed": "print(6 * 9)", "raising": "1 / 0", "slider": slider}
    for name, source in sources.items():
        path = make_notebook(tmp_path / f"{name}.ipynb", source)
        notebook = nbformat.read(path, as_version=4)
        if name in ("right", "changed"):
            output = nbformat.v4.new_output("stream", text="42\n")
            metadata = {"tags": ["nbval-check-output"]}
            notebook.cells[2].update(outputs=[output], metadata=metadata, execution_count=3)
            nbformat.write(notebook, path)
    flags = re.search(r"-m pytest (--nbval[\w -]*) notebooks", (ROOT / "Makefile").read_text())[1].split()
    command = [sys.executable, "-m", "pytest", "-q", *flags, "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=clean_environment)
    assert result.returncode == 1, result.stdout
    failed = {(name, "2") for name in ("changed", "raising", "slider")}
    assert set(re.findall(r"FAILED (\w+)\.ipynb::Cell (\d)", result.stdout)) == failed
    assert "3 failed, 9 passed" in result.stdout and "ZeroDivisionError" in result.stdout
