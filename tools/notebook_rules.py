"""What a committed notebook must be: run, tidy, safe in the gate, and built as a lesson.

`make notebooks` tells it to authors, the tests refuse what breaks it. Each function returns sentences about one
notebook, none when all is well.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from set_address import project

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 1_000_000  # GitHub shows larger notebooks slowly or not at all
TEMPLATES = {"10_annotate_your_data.ipynb"}  # run as a report on one's own cells: no exercises, quiz or slider in it
TAGS = {"parameters", "colab", "solution", "nbval-check-output", "hide-input", "hide-output", "hide-cell"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# an absolute path of two parts or more, not part of a web address, a tag, a relative path or markers (CD4+/...)
MACHINE_PATH = re.compile(r"(?<![\w.:/<~\\+-])/[\w.+-]+/[\w.+-]+|\b[A-Za-z]:\\{1,2}\w")
LEAVES = re.compile(r"^\s*(exit|quit)\b", re.MULTILINE)  # ends the kernel, and the gate takes the rest as passed
LINK = re.compile(r"\]\(<?([^)>\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
WIDGET = re.compile(r"\bipywidgets\.interact|\bwidgets\.(slider_figure|mask_explorer)\b")
CHECK = re.compile(r"^(assert |_ = |)sk\.lessons\.check\(", re.MULTILINE)
QUIZ = re.compile(r"^sk\.lessons\.quiz\(", re.MULTILINE)


def problems(path: Path) -> list[str]:
    """What keeps any notebook from being committed: size, counts, outputs, tags, commands to the machine."""
    notebook = nbformat.read(path, as_version=4)
    code = code_cells(notebook)
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"is {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are allowed")
    found += [f"has metadata.{key}" for key in ("widgets", "papermill") if key in notebook.metadata]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("has another kernel than python3")
    for tag in ("parameters", "colab"):
        if (n := sum(tag in tags(cell) for cell in code)) != 1:
            found.append(f"has {n} cells tagged {tag!r}; one is needed")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run from top to bottom: its execution counts are not 1, 2, 3, ...")
    if not any(cell.outputs for cell in code):
        found.append("has no outputs: readers on GitHub would see no figure")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number} {problem}" for problem in [*_unsafe(cell), *_untidy(cell)]]
    return found


def anatomy(path: Path, root: Path = ROOT) -> list[str]:
    """What a lesson lacks of its parts: opening, parameters, exercises, quiz, slider, ending, links that resolve."""
    notebook = nbformat.read(path, as_version=4)
    parts = [_opening(path, notebook), _colab(notebook), _parameters(notebook), _ending(notebook)]
    if path.name not in TEMPLATES:
        parts += [_exercises(notebook), _quizzes(notebook), _widgets(notebook)]
    broken = (f"links to {target}, which is not in the repository" for target in broken_links(path, root))
    return [problem for part in [*parts, broken] for problem in part]


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    """Relative links of a notebook or a Markdown page that lead to no file inside the folder `root`."""
    found = []
    for target in links(prose(path)):
        file = (path.parent / target.split("#")[0]).resolve()
        if not file.is_relative_to(root) or not file.exists():
            found.append(target)
    return found


def links(text: str) -> list[str]:
    """The relative targets of links and pictures in Markdown, in order."""
    targets = [either or other for either, other in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


def prose(path: Path) -> str:
    """The Markdown of a page or of a notebook's text cells, without code."""
    if path.suffix != ".ipynb":
        return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def is_folded(cell: NotebookNode) -> bool:
    """Whether JupyterLab opens the notebook with the source of the cell hidden."""
    return cell.metadata.get("jupyter", {}).get("source_hidden", False)


def is_answered_alike(cell: NotebookNode) -> bool:
    """Whether a cell's output cannot depend on machine or settings: the check of an untouched stub, or a quiz."""
    return "solution" not in tags(cell) and bool(CHECK.search(cell.source) or QUIZ.search(cell.source))


def is_noise(output: NotebookNode) -> bool:
    """Whether an output is stderr, a wiped progress bar, or the view of a widget, which is empty without its kernel."""
    wiped = output.output_type == "stream" and not output.text.strip()
    return output.get("name") == "stderr" or wiped or WIDGET_VIEW in output.get("data", {})


def shown_text(cell: NotebookNode) -> str:
    """What a code cell printed or showed as text."""
    texts = [text for output in cell.outputs for kind, text in output.get("data", {}).items() if kind[:5] == "text/"]
    return "\n".join([output.get("text", "") for output in cell.outputs] + texts)


def _unsafe(cell: NotebookNode) -> Iterator[str]:
    """What would pass the gate although it failed, or do something to the reader's machine."""
    if "colab" not in tags(cell) and "get_ipython(" in TransformerManager().transform_cell(cell.source):
        yield "has a shell command or a magic, whose failure goes unnoticed; only the cell tagged 'colab' may"
    if LEAVES.search(cell.source):
        yield "ends its kernel"
    if "NBVAL_" in cell.source:
        yield "tells nbval by a comment what to do; use the tag nbval-check-output"
    if "nbval-check-output" in tags(cell) and cell.source.rstrip().endswith(";"):
        yield "is compared and ends in a semicolon, which nbval does not heed; write _ = ... instead"
    for tag in sorted(set(tags(cell)) - TAGS):
        yield f"has the tag {tag!r}; known ones are {', '.join(sorted(TAGS))}"


def _untidy(cell: NotebookNode) -> Iterator[str]:
    """What differs by machine or breaks a viewer."""
    if "papermill" in cell.metadata:
        yield "has papermill metadata"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"raised {output.ename}"
        if is_noise(output):
            yield "has stderr, blank or widget output"
        if "\x1b[A" in output.get("text", ""):
            yield "moves the cursor up, which a saved output cannot"
    for match in MACHINE_PATH.finditer(shown_text(cell)):
        yield f"shows a path of this machine: {match[0]}"


def _opening(path: Path, notebook: NotebookNode) -> Iterator[str]:
    title, head = notebook.cells[0].source, "\n".join(cell.source for cell in notebook.cells[:3])
    if not title.startswith("# "):
        yield "does not begin with its title"
    for service in ("mybinder.org", "colab.research.google.com"):
        if not re.search(rf"{re.escape(service)}/\S*{project()['slug']}/\S*notebooks/{path.name}\)", title):
            yield f"has no badge of {service} that opens it, in its first cell"
    for word in ("CPU", "fast version", "GPU", "memory", "download"):
        if word not in title:
            yield f"does not say {word!r} in its first cell, which tells minutes, memory and download"
    for words in ("You will learn to", "You need"):
        if words not in head:
            yield f"does not say {words!r} in its first cells"
    number = int(path.name[:2])
    for neighbour in (number - 1, number + 1):
        for file in sorted(path.parent.glob(f"{neighbour:02d}_*.ipynb")):
            if file.name not in links(prose(path)) and path.name not in TEMPLATES:
                yield f"does not link to its neighbour {file.name}"


def _colab(notebook: NotebookNode) -> Iterator[str]:
    """The one cell that installs: on Colab only, this package at its tag, what Colab brings kept as it is."""
    for cell in code_cells(notebook):
        if "colab" not in tags(cell):
            continue
        if 'if "google.colab" in sys.modules:' not in cell.source or re.search(r"^[!%]", cell.source, re.MULTILINE):
            yield "does something outside Colab in its colab cell"
        wanted = f"sims_kit @ git+{project()['url']}@{project()['tag']}"
        for line in re.findall(r"^\s*[!%](pip install .*)$", cell.source, re.MULTILINE):
            if [word for word in shlex.split(line)[2:] if word not in ("-q", "-c", "present.txt")] != [wanted]:
                yield f"installs something else than {wanted!r} on Colab: {line}"
            if "-c present.txt" not in line or not re.search(r"\(torch\|numpy\|.*> present\.txt", cell.source):
                yield "lets pip replace Colab's own torch and numpy: pin what is present, with -c present.txt"


def _parameters(notebook: NotebookNode) -> Iterator[str]:
    code = code_cells(notebook)
    settings = "\n".join(cell.source for cell in code if "parameters" in tags(cell))
    for name in ("FAST = False", "SEED = ", "(DATASET|REFERENCE) = "):
        if not re.search(f"^{name}", settings, re.MULTILINE):
            yield f"has no {name!r} in its parameters cell"
    if not any("SIMS_KIT_FAST" in cell.source for cell in code):
        yield "does not heed SIMS_KIT_FAST"


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    found = exercises(notebook)
    if len(found) < 3:
        yield f"has {len(found)} sections headed 'Exercise'; expected 3 or more"
    for name, cells in found.items():
        solutions = [cell for cell in cells if "solution" in tags(cell)]
        checks = [cell for cell in cells if cell not in solutions and CHECK.search(cell.source)]
        if not any(re.search(r"= \.\.\.", cell.source) for cell in cells):
            yield f"{name} has no stub: answer = ..."
        if not checks or not solutions:
            yield f"{name} has {len(checks)} checks and {len(solutions)} cells tagged 'solution'; expected one or more"
        for cell in checks:
            if not shown_text(cell).startswith("Not attempted yet."):
                yield f"{name}: the empty stub does not come out as not attempted"
            if "nbval-check-output" not in tags(cell):
                yield f"{name}: its check lacks the tag nbval-check-output"
        if solutions and not any("assert sk.lessons.check(" in cell.source for cell in solutions):
            yield f"{name}: no solution asserts that it passes the check"
        for cell in solutions:
            if not is_folded(cell):
                yield f"{name}: a solution is not folded (metadata jupyter.source_hidden)"
            if "Not" in shown_text(cell):
                yield f"{name}: the solution does not pass its check"

    for name in sorted(_needed_from_solutions(notebook)):
        yield f"uses {name!r} of a solution in a later cell, where the learner's edition, without solutions, would stop"


def _needed_from_solutions(notebook: NotebookNode) -> set[str]:
    """Names that only solutions define and that other cells use."""
    defined, solved, needed = set(), set(), set()
    for cell in code_cells(notebook):
        if "colab" in tags(cell):
            continue
        names = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        if "solution" in tags(cell):
            solved |= stored
        else:
            defined |= stored
            needed |= {node.id for node in names if isinstance(node.ctx, ast.Load)} & solved - defined
    return needed


def exercises(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """The code cells of each section headed "Exercise ...", up to the next heading."""
    found, name = {}, None
    for cell in notebook.cells:
        if heading := re.match(r"#+ (.*)", cell.source) if cell.cell_type == "markdown" else None:
            name = heading[1] if heading[1].startswith("Exercise") else None
        elif name and cell.cell_type == "code":
            found.setdefault(name, []).append(cell)
    return found


def _quizzes(notebook: NotebookNode) -> Iterator[str]:
    quizzes = [cell for cell in code_cells(notebook) if QUIZ.search(cell.source)]
    if not quizzes:
        yield "has no quiz (sk.lessons.quiz)"
    for cell in quizzes:
        if "<details>" not in shown_text(cell) or "nbval-check-output" not in tags(cell):
            yield "has a quiz without its output, or without the tag nbval-check-output"
        if not is_folded(cell):
            yield "has a quiz whose source, which tells the answer, is not folded (metadata jupyter.source_hidden)"


def _widgets(notebook: NotebookNode) -> Iterator[str]:
    """A slider's figure must be there without a kernel: the cell's own picture, or one before it in its section."""
    n_widgets, has_figure = 0, False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            has_figure = has_figure and not cell.source.startswith("## ")
            continue
        has_figure = has_figure or any("image/png" in output.get("data", {}) for output in cell.outputs)
        if WIDGET.search(cell.source):
            n_widgets += 1
            if not has_figure:
                yield f"has a widget without a figure before it in its section: {cell.source.splitlines()[-1]}"
    if not n_widgets:
        yield "has no widget"


def _ending(notebook: NotebookNode) -> Iterator[str]:
    for words in ("In this notebook we", "## Limits", "References"):
        if not any(words in cell.source for cell in notebook.cells if cell.cell_type == "markdown"):
            yield f"does not say {words!r} at its end"
    last = notebook.cells[-1]
    if last.cell_type != "code" or f"sims_kit {project()['version']}" not in shown_text(last):
        yield "does not end with a cell that prints versions"
    elif "device:" not in shown_text(last):
        yield "does not print its device in the last cell"
