"""What a committed notebook must be: run, tidy, safe in the gate, built as a lesson. Sentences say what is not."""

import math
import re
import tomllib
from base64 import b64decode
from collections.abc import Collection, Iterator
from copy import deepcopy
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"  # a release is tagged by its version
MAX_BYTES = 1_000_000  # GitHub shows larger notebooks slowly or not at all
TEMPLATES = {"10_annotate_your_data.ipynb"}  # run as a report on one's own cells: no exercises, quiz or slider in it
TAGS = {"parameters", "colab", "solution", "nbval-check-output", "hide-input", "hide-output", "hide-cell", "lesson"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MACHINE_PATH = re.compile(r"(?<![\w.:/<~\\+-])/[\w.+-]+/[\w.+-]+|\b[A-Za-z]:\\{1,2}\w")
LEAVES = re.compile(r"^\s*(exit|quit)\b", re.MULTILINE)  # ends the kernel, and the gate takes the rest as passed
LINK = re.compile(r"\]\(<?([^)>\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
WIDGET = re.compile(r"\bipywidgets\.interact|\bwidgets\.slider_figure\b")
CHECK = re.compile(r"^(assert |_ = |)sk\.lessons\.check\(\"\d\d\.\d+\", ", re.MULTILINE)
QUIZ = re.compile(r"^sk\.lessons\.quiz\(\"\d\d\.\d+\"\)$", re.MULTILINE)
SMALL = re.compile(r"(font|label)size\"?[=:] ?[1-7]\b")  # points, below what a projector shows
BAR = re.compile(r"\x1b\[A|^.*\[(?:\d+:)?\d\d:\d\d[<,][^]\n]*\]", re.MULTILINE)  # as tqdm draws them
UNTIMED = re.compile(r"## (In this notebook we|Limits|What comes next)")
TOTAL = re.compile(r"take about (\d+) minutes")
BADGES = ("mybinder.org", "colab.research.google.com")
COSTS = ("CPU", "fast version", "GPU", "memory", "download")
COLAB = f"""\
import sys

if "google.colab" in sys.modules:  # nothing happens anywhere else
    # Colab's own torch, numpy and the like stay as they are: pip may add packages, not replace these
    !pip list --format=freeze | grep -E "^(torch|numpy|scipy|pandas|scikit-learn|matplotlib)==" > present.txt
    !pip install -q "sims_kit[r] @ git+{ADDRESS}@{TAG}" -c present.txt
    from importlib.util import find_spec

    assert find_spec("sims_kit"), "sims_kit was not installed, pip says why: restart the session and run this again\""""


def problems(path: Path) -> list[str]:
    """What keeps any notebook from being committed: size, counts, outputs, tags, commands to the machine."""
    notebook = nbformat.read(path, as_version=4)
    code = code_cells(notebook)
    expectations = {
        f"is {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are allowed": path.stat().st_size <= MAX_BYTES,
        "has metadata.widgets or metadata.papermill": not {"widgets", "papermill"} & set(notebook.metadata),
        "has another kernel than python3": notebook.metadata.get("kernelspec", {}).get("name") == "python3",
        "needs one cell tagged 'parameters'": sum("parameters" in tags(cell) for cell in code) == 1,
        "needs one cell tagged 'colab'": sum("colab" in tags(cell) for cell in code) == 1,
        "was not run from top to bottom": [c.execution_count for c in code] == list(range(1, len(code) + 1)),
    }
    found = unmet(expectations)
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number} {problem}" for problem in [*_unsafe(cell), *_untidy(cell)]]
    return found


def anatomy(path: Path, root: Path = ROOT) -> list[str]:
    """What a lesson lacks of its parts: opening, parameters, exercises, quiz, slider, ending, links that resolve."""
    notebook = nbformat.read(path, as_version=4)
    found = [f"links to {target}, which is not in the repository" for target in broken_links(path, root)]
    found += [*_opening(path, notebook), *_frame(notebook)]
    found += ["has other minutes in its headings than its sections take"] * (stamp(deepcopy(notebook)) != notebook)
    if path.name not in TEMPLATES:
        found += [*_exercises(notebook), *_quizzes(notebook), *_widgets(notebook)]
    return found


def stamp(notebook: NotebookNode) -> NotebookNode:
    """Write the minutes of each section into its heading, and those of all into the first cell."""
    starts = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## ") and cell.cell_type != "code"]
    for start, end in pairwise([*starts, len(notebook.cells)]):
        cell, minutes = notebook.cells[start], sum(map(_minutes, notebook.cells[start:end]))
        title, _, rest = cell.source.partition("\n")
        if not UNTIMED.match(title):
            title = re.sub(r" \(\d+ min\)$", "", title) + f" ({max(1, round(minutes))} min)"
        cell.source = f"{title}\n{rest}".strip()
    total = 5 * math.ceil(sum(map(_minutes, notebook.cells)) / 5)
    notebook.cells[0].source = TOTAL.sub(f"take about {total} minutes", notebook.cells[0].source)
    return notebook


def _minutes(cell: NotebookNode) -> float:
    """Minutes of a reader: 130 words or 12 lines of code in one, and more for a guess, a figure, a task."""
    if {"solution", "colab"} & set(tags(cell)):
        return 0
    if cell.cell_type == "markdown":
        tasks = len(re.findall("^### (?:Exercise|Open question)", cell.source, re.MULTILINE))
        return len(cell.source.split()) / 130 + cell.source.count("**Guess") + 5 * tasks
    figures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
    asks = bool(QUIZ.search(cell.source) or WIDGET.search(cell.source))
    return len(cell.source.splitlines()) / 12 + figures / 2 + asks


def unmet(expectations: dict[str, object]) -> list[str]:
    """The problems whose expectations are not met."""
    return [problem for problem, is_met in expectations.items() if not is_met]


def broken_links(path: Path, root: Path = ROOT) -> list[str]:
    """Relative links of a notebook or a Markdown page that lead to no file inside the folder `root`."""
    files = {target: (path.parent / target.split("#")[0]).resolve() for target in links(prose(path))}
    return [target for target, file in files.items() if not (file.is_relative_to(root) and file.exists())]


def links(text: str) -> list[str]:
    """The relative targets of links and pictures in Markdown, in order."""
    targets = [either or other for either, other in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


def relink(text: str, folder: Path, pages: Collection[Path] = ()) -> str:
    """Lead links of a page in `folder` to files but lessons, pictures and `pages` to the published repository."""
    for target in set(links(text)):
        file = (folder / target.split("#")[0]).resolve()
        if file.suffix not in (".ipynb", ".png", ".svg") and file not in pages:
            there = f"{ADDRESS}/blob/{TAG}/{target.replace(target.split('#')[0], file.relative_to(ROOT).as_posix(), 1)}"
            text = re.sub(rf"(?<=[(<\"]){re.escape(target)}(?=[)>\"\s])", there, text)
    return text


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


def is_answered_alike(cell: NotebookNode) -> bool:
    """Whether a cell's output cannot depend on machine or settings: the check of an untouched stub, or a quiz."""
    return "solution" not in tags(cell) and bool(CHECK.search(cell.source) or QUIZ.search(cell.source))


def is_noise(output: NotebookNode) -> bool:
    """Whether an output is a progress bar on stderr, a wiped one, or a widget's view, empty without its kernel."""
    return WIDGET_VIEW in output.get("data", {}) or (output.output_type == "stream" and not without_bars(output))


def without_bars(output: NotebookNode) -> str:
    """The text of a stream; of stderr, what is left of it without progress bars, such as warnings."""
    return (BAR.sub("", output.text) if output.name == "stderr" else output.text).strip()


def shown_text(cell: NotebookNode) -> str:
    """What a code cell printed or showed as text."""
    texts = [text for output in cell.outputs for kind, text in output.get("data", {}).items() if kind[:5] == "text/"]
    return "\n".join([output.get("text", "") for output in cell.outputs] + texts)


def _unsafe(cell: NotebookNode) -> list[str]:
    """What would pass the gate although it failed, or do something to the reader's machine."""
    is_magic = "get_ipython(" in TransformerManager().transform_cell(cell.source)
    is_silent = "nbval-check-output" in tags(cell) and cell.source.rstrip().endswith(";")
    unknown = sorted(set(tags(cell)) - TAGS)
    expectations = {
        "has a shell command or a magic, whose failure goes unnoticed": not is_magic or "colab" in tags(cell),
        "ends its kernel": not LEAVES.search(cell.source),
        "instructs nbval by a comment; use the tag nbval-check-output": "NBVAL_" not in cell.source,
        "is compared and ends in a semicolon, which nbval ignores; write _ = ... instead": not is_silent,
        "has text below 8 points": not SMALL.search(cell.source),
        f"has the tag {', '.join(map(repr, unknown))}; known ones are {', '.join(sorted(TAGS))}": not unknown,
    }
    return unmet(expectations)


def _untidy(cell: NotebookNode) -> Iterator[str]:
    """What differs by machine or breaks a viewer."""
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"raised {output.ename}"
        if output.get("name") == "stderr" and without_bars(output):
            yield f"writes to stderr: {without_bars(output)}"
        if is_noise(output) or "\x1b[A" in output.get("text", ""):
            yield "has a bar, blank or widget output, or moves the cursor"
        if "image/png" in output.get("data", {}):
            dpi = Image.open(BytesIO(b64decode(output.data["image/png"]))).info.get("dpi", [110])[0]
            yield from [f"has a figure of {dpi:.0f} dpi; expected 110 or more"] * (dpi < 109)
    yield from (f"shows a path of this machine: {match[0]}" for match in MACHINE_PATH.finditer(shown_text(cell)))


def _opening(path: Path, notebook: NotebookNode) -> list[str]:
    """Title, badges and costs in the first cell; what is learned and needed; links to the lessons before and after."""
    title, head = notebook.cells[0].source, "\n".join(cell.source for cell in notebook.cells[:3])
    badge = rf"/\S*{ADDRESS.removeprefix('https://github.com/')}/\S*{TAG}\S*learner/{path.name}\)"
    expectations = {f"has no badge of {service} that opens it": re.search(service + badge, title) for service in BADGES}
    expectations |= {f"does not say {word!r} in its first cell": word in title for word in ("# ", *COSTS)}
    expectations |= {f"does not say {w!r} in its first cells": w in head for w in ("You will learn", "You need")}
    number, linked = int(path.name[:2]), links(prose(path))
    for file in [*path.parent.glob(f"{number - 1:02d}_*.ipynb"), *path.parent.glob(f"{number + 1:02d}_*.ipynb")]:
        is_linked = file.name in linked or path.name in TEMPLATES
        expectations[f"does not link to its neighbour {file.name}"] = is_linked
    return unmet(expectations)


def _frame(notebook: NotebookNode) -> list[str]:
    """The cell that installs on Colab, the parameters, the ending."""
    code, last = code_cells(notebook), notebook.cells[-1]
    installs = [cell.source.strip() for cell in code if "colab" in tags(cell)]
    settings = "\n".join(cell.source for cell in code if "parameters" in tags(cell))
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    shown = shown_text(last) if last.cell_type == "code" else ""
    names = ("FAST = False", "SEED = ", "(DATASET|REFERENCE) = ")
    expectations = {f"has no {n!r} in its parameters cell": re.search(f"^{n}", settings, re.MULTILINE) for n in names}
    ending = ("In this notebook we", "## Limits", "References")
    expectations |= {f"does not say {words!r} at its end": words in text for words in ending}
    expectations |= {
        f"has another colab cell than this one, which keeps Colab's own torch:\n{COLAB}": installs == [COLAB],
        "does not heed SIMS_KIT_FAST": any("SIMS_KIT_FAST" in cell.source for cell in code),
        "does not end with a cell that prints versions": f"sims_kit {PROJECT['version']}" in shown,
        "does not print its device in the last cell": "device:" in shown,
    }
    return unmet(expectations)


def _exercises(notebook: NotebookNode) -> Iterator[str]:
    found = exercises(notebook)
    if len(found) < 3:
        yield f"has {len(found)} sections headed 'Exercise'; expected 3 or more"
    for name, cells in found.items():
        solutions = [cell for cell in cells if "solution" in tags(cell)]
        checks = [cell for cell in cells if cell not in solutions and CHECK.search(cell.source)]
        is_folded = all(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in solutions)
        is_kept = all(shown_text(check).startswith("Not attempted yet.") for check in checks)
        expectations = {
            "has no stub: answer = ...": any(re.search(r"(= |    )\.\.\.$", c.source, re.MULTILINE) for c in cells),
            "has no check": checks,
            "has a check that praises the empty stub": is_kept,
            "has no solution that asserts its check": any("assert sk.lessons.check(" in c.source for c in solutions),
            "has a solution that is not folded (metadata jupyter.source_hidden)": is_folded,
            "has a solution that does not pass its check": not any("Not" in shown_text(cell) for cell in solutions),
        }
        yield from (f"{name} {problem}" for problem in unmet(expectations))


def exercises(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """The code cells of each section headed "Exercise ...", up to the next heading."""
    found, name = {}, None
    for cell in notebook.cells:
        if heading := re.match(r"#+ (.*)", cell.source) if cell.cell_type == "markdown" else None:
            name = heading[1] if heading[1].startswith("Exercise") else None
        elif name and cell.cell_type == "code":
            found.setdefault(name, []).append(cell)
    return found


def _quizzes(notebook: NotebookNode) -> list[str]:
    quizzes = [cell for cell in code_cells(notebook) if QUIZ.search(cell.source)]
    is_shown = all("<details>" in shown_text(c) and "nbval-check-output" in tags(c) for c in quizzes)
    without = "has a quiz without its output, or without the tag nbval-check-output"
    return unmet({"has no quiz (sk.lessons.quiz)": quizzes, without: is_shown})


def _widgets(notebook: NotebookNode) -> Iterator[str]:
    """A slider's figure must be there without a kernel: the cell's own picture, or one before it in its section."""
    has_figure = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            has_figure = has_figure and not cell.source.startswith("## ")
            continue
        has_figure = has_figure or any("image/png" in output.get("data", {}) for output in cell.outputs)
        if WIDGET.search(cell.source) and not has_figure:
            yield f"has a widget without a figure before it in its section: {cell.source.splitlines()[-1]}"
    if not any(WIDGET.search(cell.source) for cell in code_cells(notebook)):
        yield "has no widget"
