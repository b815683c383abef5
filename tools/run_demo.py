"""Run a notebook with parameters, for `make demo`: what it prints is seen at once, and a failure is one message."""

import sys

import papermill
from papermill.exceptions import PapermillExecutionError


def main(notebook: str, executed: str, *parameters: str) -> int:
    """Execute `notebook` into the file `executed`, with parameters ``NAME=value``; 0 when every cell ran."""
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters=dict(parameter.split("=", 1) for parameter in parameters),
            kernel_name="python3",
            cwd=".",
            progress_bar=False,  # of cells; the notebook has its own, of epochs
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],  # the kernel's own notes say nothing of cells
        )
    except PapermillExecutionError as error:  # the traceback is in `executed`
        print(f"\n{error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
