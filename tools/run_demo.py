"""Run a notebook with parameters, for `make demo`: what it prints is seen at once, and a failure is one message."""

import sys

import papermill
from papermill.exceptions import PapermillExecutionError


def main(notebook: str, executed: str, *parameters: str) -> int:
    """Execute `notebook` into the file `executed`, in the current folder; 0 when every cell ran.

    Parameters
    ----------
    notebook, executed
        Paths of the notebook to read and of the one to write; the latter holds what ran, also after a failure.
    *parameters
        ``NAME=value`` each, passed on as text.
    """
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
            coalesce_streams=True,  # the report keeps the last state of a progress bar only
            extra_arguments=["--log-level=ERROR"],  # the kernel's own notes say nothing of cells
        )
    except PapermillExecutionError as error:  # the traceback is in `executed`
        print(f"\n{error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
