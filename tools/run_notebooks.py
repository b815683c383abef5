"""Run notebooks and save their outputs in place, tidied; say what a committed notebook must not contain.

`make notebooks` runs this. Readers on GitHub see the saved figures; nothing of the machine that drew them is
kept.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

MAX_BYTES = 1_000_000  # GitHub shows larger notebooks slowly or not at all
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# an absolute path of two parts or more, not part of a web address, a tag, a relative path or markers (CD4+/...)
MACHINE_PATH = re.compile(r"(?<![\w.:/<~\\+-])/[\w.+-]+/[\w.+-]+|\b[A-Za-z]:\\{1,2}\w")
INSTALL = re.compile(r"^\s*[!%](pip|conda|mamba)\b", re.MULTILINE)


def execute(path: Path) -> None:
    """Run the notebook at `path` in its own folder, as a reader would, and save it tidied.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises; the file is then left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    options = dict(timeout=None, coalesce_streams=True, resources=resources)
    quiet = ["--log-level=ERROR"]  # the kernel's own notes say nothing of the lesson
    NotebookClient(notebook, kernel_name="python3", extra_arguments=quiet, **options).execute()
    tidy(notebook)
    nbformat.write(notebook, path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep sources, tags and figures; drop, in place, what differs by machine or breaks a viewer."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    count = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")})
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for output in cell.outputs:
            output.pop("transient", None)
            if "execution_count" in output:
                output.execution_count = count


def _is_noise(output: nbformat.NotebookNode) -> bool:
    # a widget's view is empty without its kernel; the lesson draws the same figure statically before it
    return output.get("name") == "stderr" or WIDGET_VIEW in output.get("data", {})


def problems(path: Path) -> list[str]:
    """What keeps the notebook at `path` from being committed, one sentence each; empty when nothing does."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"is {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are allowed")
    found += [f"has metadata.{key}" for key in ("widgets", "papermill") if key in notebook.metadata]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("has another kernel than python3")
    for tag in ("parameters", "colab"):
        if (n := sum(tag in cell.metadata.get("tags", []) for cell in code)) != 1:
            found.append(f"has {n} cells tagged {tag!r}; one is needed")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("was not run from top to bottom: its execution counts are not 1, 2, 3, ...")
    if not any(cell.outputs for cell in code):
        found.append("has no outputs: readers on GitHub would see no figure")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number} {problem}" for problem in _cell_problems(cell)]
    return found


def _cell_problems(cell: nbformat.NotebookNode):
    if "papermill" in cell.metadata:
        yield "has papermill metadata"
    if "colab" not in cell.metadata.get("tags", []) and INSTALL.search(cell.source):
        yield "installs packages; only the cell tagged 'colab' may"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"raised {output.ename}"
        if _is_noise(output):
            yield "has stderr or widget output"
        texts = [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
        for match in MACHINE_PATH.finditer("\n".join([output.get("text", ""), *texts])):
            yield f"shows a path of this machine: {match[0]}"


def main(names: list[str]) -> int:
    """Execute the notebooks `names`; 0 when each ran and may be committed."""
    status = 0
    for path in map(Path, names):
        start = time.monotonic()
        print(f"{path} ...", flush=True)
        try:
            execute(path)
        except CellExecutionError as error:
            print(f"{path} stopped and is left as it was:\n{error}", file=sys.stderr)
            status = 1
            continue
        for problem in (found := problems(path)):
            print(f"{path} {problem}", file=sys.stderr)
        status = 1 if found else status
        print(f"{path} saved, {time.monotonic() - start:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
