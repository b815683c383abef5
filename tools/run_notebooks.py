"""Run notebooks and save their outputs in place, tidied; `make notebooks` runs this."""

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from notebook_rules import WIDGET_VIEW, anatomy, code_cells, is_answered_alike, is_noise, problems, stamp, tags

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def execute(path: Path) -> None:
    """Run the notebook at `path` in its own folder and save it tidied; if a cell raises, the file stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    options = dict(timeout=None, coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}})
    NotebookClient(notebook, kernel_name="python3", extra_arguments=["--log-level=ERROR"], **options).execute()
    tidy(notebook)
    nbformat.write(notebook, path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep sources, tags, figures, and warnings for `problems`; drop bars and widgets; tag checks, state times."""
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
                output.data["image/png"] = smaller(output.data["image/png"])
        cell.outputs = [output for output in cell.outputs if not is_noise(output)]
        if is_answered_alike(cell) and "nbval-check-output" not in tags(cell):
            cell.metadata["tags"] = [*tags(cell), "nbval-check-output"]
    stamp(notebook)


def smaller(picture: str) -> str:
    """Return a PNG (base64) with a palette of 256 colours: a third of the bytes."""
    image, buffer = Image.open(BytesIO(b64decode(picture))), BytesIO()
    if image.mode != "P" and min(image.size) > 1:
        image.convert("RGB").quantize(256, dither=0).save(buffer, "PNG", optimize=True, dpi=image.info.get("dpi"))
    return b64encode(buffer.getvalue()).decode() or picture


def main(names: list[str]) -> int:
    """Execute the notebooks `names`; 0 when each ran and may be committed."""
    status = 0
    for path in map(Path, names):
        print(f"{path} ...", flush=True)
        try:
            execute(path)
            found = [*problems(path), *anatomy(path)]
        except CellExecutionError as error:
            found = [f"stopped and is left as it was:\n{error}"]
        for problem in found:
            print(f"{path} {problem}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
