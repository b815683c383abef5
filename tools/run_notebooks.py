"""Run notebooks and save their outputs in place, tidied; say what keeps them from being committed.

`make notebooks` runs this. Readers on GitHub see the saved figures; nothing of the machine that drew them is
kept.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from notebook_rules import QUIZ, WIDGET_VIEW, anatomy, code_cells, is_answered_alike, is_noise, problems, tags

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


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
    """Keep sources, tags and figures; drop, in place, what differs by machine or breaks a viewer.

    Checks and quizzes get the tag that makes the gate compare their outputs, and the source of a quiz, which tells the
    answer, is folded.
    """
    kept = {key: value for key, value in notebook.metadata.items() if key == "accelerator"}  # Colab: a GPU helps
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}, **kept})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")})
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
        for output in cell.outputs:
            output.pop("transient", None)
            if "execution_count" in output:
                output.execution_count = count
            if "image/png" in output.get("data", {}):  # a slider's figure stays, its view is empty without the kernel
                output.data.pop(WIDGET_VIEW, None)
        cell.outputs = [output for output in cell.outputs if not is_noise(output)]
        if is_answered_alike(cell) and "nbval-check-output" not in tags(cell):
            cell.metadata["tags"] = [*tags(cell), "nbval-check-output"]
        if QUIZ.search(cell.source):
            cell.metadata["jupyter"] = {"source_hidden": True}


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
        for problem in (found := [*problems(path), *anatomy(path)]):
            print(f"{path} {problem}", file=sys.stderr)
        status = 1 if found else status
        print(f"{path} saved, {time.monotonic() - start:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
