"""The command line, `sims-kit train | annotate | explain | report | datasets`, thin over the package's functions."""

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import sims_kit as sk
from sims_kit.errors import SettingError, SimsError, UnknownNameError

HERE = Path(__file__).resolve().parent
REPORTS = (HERE / "report.ipynb", HERE.parent / "notebooks/10_annotate_your_data.ipynb")  # of the wheel, of a checkout
COMMANDS = {  # what each takes; its docstring is the help, its default of `out` what it writes
    "train": "references label labelfile orientation layer groups recipe epochs seed out",
    "annotate": "query model orientation layer species reject hierarchy vote device out",
    "explain": "query model orientation layer species top device out",
    "report": "reference label labelfile orientation layer groups seed query_file genes reject template out",
    "datasets": "action names",
}
PLACES = ("references", "reference", "query", "action", "names")  # given without a name, in this order
OPTIONS = {
    "references": dict(nargs="+", metavar="REFERENCE", help="files of labelled cells, or a dataset's name"),
    "reference": dict(help="a file of labelled cells, or a dataset's name"),
    "query": dict(help="a file of cells, or a dataset's name"),
    "query_file": dict(help="cells to annotate; without it, a fifth of the reference, its labels hidden"),
    "action": dict(choices=["list", "fetch", "verify"], help="names and sizes; download; compare with hashes"),
    "names": dict(nargs="*", metavar="NAME", help="of datasets or gene tables; list and verify: all"),
    "label": dict(help="the column of the labels"),
    "labelfile": dict(help="a table with the labels, if they are not in the reference"),
    "orientation": dict(choices=["cells_by_genes", "genes_by_cells"], help="of text files; by default cells in rows"),
    "layer": dict(help="where the values are if not in X: raw, or the name of a layer"),
    "groups": dict(help="the column of donors or samples: each is whole in training or in the test"),
    "recipe": dict(choices=["default", "thesis"], default="default", help="how to train"),
    "epochs": dict(type=int, help="length of the training; by default the recipe's"),
    "seed": dict(type=int, default=0, help="same seed, same result; by default 0"),
    "model": dict(required=True, help="a model file, or a ready model: human-blood, human-pancreas, mouse-immune"),
    "species": dict(choices=["human", "mouse"], help="of the query, where the model is of the other"),
    "reject": dict(type=float, help="share of errors to accept, as in 0.1; less certain cells become Unknown"),
    "hierarchy": dict(choices=["ontology"], help="less certain cells get a broader type of the Cell Ontology"),
    "vote": dict(help="auto, or a column of clusters: adds the label of most cells of each cluster"),
    "top": dict(type=int, default=10, help="how many genes of each label to print; by default 10"),
    "genes": dict(choices=["reference", "shared"], help="learn from all genes, or from those that the query has, too"),
    "template": dict(help="a notebook to run in place of the kit's, with a cell tagged parameters"),
    "out": dict(help="what to write, if not what stands above"),
    "device": dict(help="cpu or cuda; by default a GPU if there is one"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 when all is well, 1 and a line on stderr when it failed; a wrong call exits with 2."""
    parser = argparse.ArgumentParser(prog="sims-kit", description=sk.__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=sk.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, takes in COMMANDS.items():
        says, _, example = globals()[name].__doc__.partition("\n\n    ")
        command = commands.add_parser(name, help=says, description=says, epilog=example)
        for option in takes.split():
            command.add_argument(option if option in PLACES else f"--{option.partition('_')[0]}", **OPTIONS[option])
    options = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    command = options.pop("command")
    try:
        return globals()[command](**options) or 0
    except (SimsError, OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"sims-kit {command}: {error}", file=sys.stderr)
        return 1


def train(references: list[str], out="model.safetensors", label=None, epochs=None, **options) -> None:
    """Train on labelled cells, test on cells that were held out, and write the model (model.safetensors).

    Example:  sims-kit train reference.h5ad --label cell_type --groups donor --out model.safetensors
    """
    check_ending(out, ".safetensors")
    known = sk.datasets.catalogue().index
    data = [sk.load(name) if name in known else name for name in references]
    if labelfile := options.pop("labelfile", None):
        options["labelfiles"] = [labelfile] * len(references)
    model = sk.fit(data, label, max_epochs=epochs, **options)
    sk.save_model(model, out)
    print(f"{out}: {len(model.classes)} labels, {len(model.genes):,} genes. Cells held out:")
    print(model.test_metrics[["accuracy_micro", "median_f1"]].round(3).to_string())


def annotate(query: str, model: str, out="annotated.h5ad", orientation: str | None = None, **options) -> None:
    """Label the cells of a query; writes them with their labels (annotated.h5ad), or the labels alone (.csv).

    Example:  sims-kit annotate query.h5ad --model model.safetensors --reject 0.1 --out labels.csv
    """
    is_table = check_ending(out, ".h5ad", ".csv") == ".csv"
    cells = sk.read(query, orientation=orientation) if orientation else query
    cells = sk.annotate(cells, model, **options, out=None if is_table else out, copy=True)
    if is_table:
        cells.obs.filter(regex="^sims_").to_csv(out)
    print(cells.obs["sims_label"].value_counts().to_string())


def explain(query: str, model: str, top: int, out="genes.csv", orientation: str | None = None, **options) -> None:
    """Name the genes behind each label, and write what every gene adds to every label (genes.csv).

    Example:  sims-kit explain query.h5ad --model model.safetensors --out genes.csv
    """
    check_ending(out, ".csv")
    explanation = sk.explain(model, sk.read(query, orientation=orientation) if orientation else query, **options)
    explanation.genes.join(explanation.class_contributions.T).to_csv(out)
    print(explanation.top_genes(top).to_string())


def report(out="results", template: str | None = None, **options) -> int:
    """Train, test, annotate and explain; writes cells, model, tables, figures and report.html to a folder (results).

    Example:  sims-kit report reference.h5ad --label cell_type --query query.h5ad --out results
    """
    os.environ |= {"JUPYTER_PATH": "", "JUPYTER_PREFER_ENV_PATH": "1"}  # the kernel is this environment's Python
    try:
        import nbformat
        import papermill
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise SettingError(f"The report needs {error.name}: pip install 'sims_kit[lab]'") from error
    notebook, folder = nbformat.read(template or next(filter(Path.exists, REPORTS)), as_version=4), Path(out)
    notebook.cells = [cell for cell in notebook.cells if "lesson" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:  # a lesson's minutes
        cell.source = re.sub(r"^(## .+) \(\d+ min\)$", r"\1", cell.source, flags=re.MULTILINE)
    notebook.metadata.title = "Annotation of cells"  # of the page
    streams = dict(stdout_file=sys.stdout, stderr_file=sys.stderr, coalesce_streams=True)
    quiet = dict(progress_bar=False, extra_arguments=["--log-level=ERROR"])  # the notebook shows its own progress
    values, executed = {name.upper(): value for name, value in options.items()} | {"OUT": out}, folder / "report.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(notebook, executed, values, kernel_name="python3", cwd=".", **streams, **quiet)
    except papermill.PapermillExecutionError as error:  # the traceback is in the notebook
        print(f"\n{error.ename}: {error.evalue}\n{executed} holds what ran until then.", file=sys.stderr)
        return 1
    page, _ = HTMLExporter(exclude_input=True, exclude_output_prompt=True).from_filename(str(executed))
    (folder / "report.html").write_text(page, encoding="utf-8")
    executed.unlink()
    print(f"The report is {folder / 'report.html'}")
    return 0


def datasets(action: str, names: list[str]) -> int:
    """List datasets, download them, or check their files.

    Example:  sims-kit datasets fetch worm-neurons gencode-human
    """
    from sims_kit.datasets.fetch import cached_path, checked_hash
    from sims_kit.datasets.load import prepare
    from sims_kit.datasets.registry import read_registry

    entries, status = read_registry().datasets | read_registry().tables, 0
    if unknown := [name for name in names if name not in entries]:
        raise UnknownNameError("dataset", unknown[0], entries)
    if action == "fetch" and not names:
        raise SettingError("fetch needs a NAME; see `sims-kit datasets list`.")
    sources = {name: entries[name].source for name in names or entries}
    files = {name: [(of, cached_path(of_all.folder, of)) for of in of_all.files] for name, of_all in sources.items()}
    if action == "list":
        table = sk.datasets.catalogue()[["tier", "cells", "genes", "classes", "megabytes"]].reindex(list(sources))
        table["in cache"] = [all(path.exists() for _, path in of) for of in files.values()]
        print(table.to_string(na_rep="?"))
        return 0
    for name, of in files.items():
        try:
            if action == "fetch":
                prepare(name)
            there = [(file, path) for file, path in of if path.exists()]
            hashes = [checked_hash(file, path) + " (none is published)" * (not file.sha256) for file, path in there]
            print(f"{name}: {'ready' if len(hashes) == len(of) else 'not in the cache'}", *hashes)
        except (OSError, ValueError, zipfile.BadZipFile) as error:  # one that fails does not keep the others back
            print(f"{name}: failed: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
            status = 1
    return status


def check_ending(out: str, *endings: str) -> str:
    """The ending of a file to write, which must be one of these; asked before any long work."""
    if (ending := Path(out).suffix) not in endings:
        raise SettingError(f"--out {out} does not end in {' or '.join(endings)}.")
    return ending


if __name__ == "__main__":
    sys.exit(main())
