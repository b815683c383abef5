"""Run a notebook with parameters, for `make demo`: what it prints is seen at once, and a failure is one message."""

import sys

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError


def main(notebook: str, executed: str, *parameters: str) -> int:
    """Execute what is not tagged `lesson` into the file `executed`, with ``NAME=value``; 0 when every cell ran."""
    report = nbformat.read(notebook, as_version=4)
    report.cells = [cell for cell in report.cells if "lesson" not in cell.metadata.get("tags", [])]
    report.metadata.title = "Annotation of cells"  # of the page
    streams = dict(stdout_file=sys.stdout, stderr_file=sys.stderr, coalesce_streams=True)
    quiet = dict(progress_bar=False, extra_arguments=["--log-level=ERROR"])  # the notebook shows its own progress
    values = dict(parameter.split("=", 1) for parameter in parameters)
    try:
        papermill.execute_notebook(report, executed, values, kernel_name="python3", cwd=".", **streams, **quiet)
    except PapermillExecutionError as error:  # the traceback is in `executed`
        print(f"\n{error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
