"""The demo: what `10_annotate_your_data` leaves behind on files of one's own, and lines of README and guides."""

import re
from pathlib import Path

import anndata as ad
import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sims_kit as sk
from sims_kit.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks/10_annotate_your_data.ipynb"
PAGES = [page for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md"))
         if re.search(r"(?<! -->\n)```python\n", page.read_text())]  # fmt: skip
FIGURES = ["class_genes", "confidence", "confusion", "gene_panel", "markers", "reference_labels", "summary"]
FIGURES += ["top_genes", "training", "umap"]


@pytest.fixture
def files(make_cells, tmp_path, monkeypatch):
    """A reference as others export it, genes x cells with a label file, and a query of other genes and duplicates."""
    monkeypatch.setenv("SIMS_KIT_FAST", "1")
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=330, n_genes=80)
    reference, query = cells[:270], cells[270:, 10:][:, ::-1].copy()
    reference.to_df().T.astype(int).to_csv("counts.csv.gz")
    reference.obs["cell_type"].rename("type").to_csv("labels.csv")
    query.obs_names = ["twice", "twice", *query.obs_names[2:]]
    query.obs["type"] = query.obs.pop("cell_type").replace("class_2", "class_9")  # the reference has no such label
    query.write_h5ad("labelled.h5ad")
    del query.obs["type"]
    query.write_h5ad("query.h5ad")
    return tmp_path


def run_in_process(**parameters):
    """Run the report's code here, without a kernel of its own; returns its variables."""
    variables = {}
    with matplotlib.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        for cell in nbformat.read(LESSON, as_version=4).cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and "lesson" not in tags:
                exec(compile(cell.source, cell.id, "exec"), variables)
                if "parameters" in tags:
                    assert set(parameters) <= set(variables)
                    variables.update(parameters)
        matplotlib.pyplot.close("all")
    return variables


@pytest.mark.slow
def test_demo_on_files(files, capsys):
    """Text file, label file and an unlabelled query of other genes give every output, whole and right."""
    arguments = "counts.csv.gz --label type --labelfile labels.csv --orientation genes_by_cells --query query.h5ad"
    assert main(["report", *arguments.split(), "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert "Gene coverage: 70 of the model's 80 genes found (87.5%)" in shown and "median F1" in shown
    report = Path("out/report.html").read_text()
    page = re.sub(r"(?s)<(style|script).*?</\1>|<img.*?>", "", report)
    assert "vnd.jupyter.stderr" not in page and page.count("<h1>Cell types of query.h5ad, learned from counts") == 1
    assert "<b>Test</b>: 27 cells" in page  # filled in at the end
    words = re.sub("(?s)<.*?>", "", page)
    assert not re.search(r"(?i)lesson|guess|exercise|colab|badge|pbmc|In this notebook|\d min\)|Out\[", words)

    query, annotated = ad.read_h5ad("query.h5ad"), ad.read_h5ad("out/annotated.h5ad")
    assert (annotated.X != query.X).nnz == 0 and list(annotated.var_names) == list(query.var_names)
    assert list(annotated.obs_names[:3]) == ["twice", "twice-1", query.obs_names[2]]
    columns = ["label", "confidence", "second_label", "unseen", "vote", "vote_proportion", "or_unknown"]
    assert [*annotated.obs] == [*pd.read_csv("out/labels.csv", index_col=0)] == [f"sims_{name}" for name in columns]
    assert set(pd.read_csv("out/gene_panel.csv")["label"]) == {"class_0", "class_1", "class_2"}
    truth = ad.read_h5ad("labelled.h5ad").obs["type"].astype(str).replace("class_9", "class_2")
    assert (annotated.obs["sims_label"].to_numpy() == truth.to_numpy()).mean() > 0.8

    model = sk.load_model("out/model.safetensors")
    assert model.classes == ["class_0", "class_1", "class_2"] and len(model.genes) == 80
    metrics = pd.read_csv("out/metrics.csv", index_col=0)
    assert list(metrics.index) == ["reference test cells"] and metrics["n_cells"].item() == 27
    assert metrics["median_f1"].item() > 0.8 and len(metrics.columns) == 15
    for name in FIGURES:
        with Image.open(f"out/{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1) and np.ptp(image.convert("L")) > 100
    assert {path.name for path in files.iterdir()} & {"lightning_logs", "checkpoints"} == set()


def test_labelled_query_is_the_exam(files, capsys, monkeypatch):
    """A query's own labels are hidden from the model, are the exam, and are saved beside the new ones."""
    reference = sk.read("counts.csv.gz", orientation="genes_by_cells")
    sk.datasets.attach_labels(reference, "labels.csv", "type")
    reference.write_h5ad("reference.h5ad")
    annotate, columns = sk.annotate, []
    monkeypatch.setattr(sk, "annotate", lambda query, *a, **o: columns.append([*query.obs]) or annotate(query, *a, **o))
    run_in_process(REFERENCE="reference.h5ad", LABEL="type", QUERY="labelled.h5ad", OUT="out")
    assert "type" not in columns[0]
    shown = capsys.readouterr().out
    assert "reference    270 cells" in shown and "cannot answer with them: class_9" in shown
    labelled, annotated = ad.read_h5ad("labelled.h5ad"), ad.read_h5ad("out/annotated.h5ad")
    assert list(annotated.obs["type"]) == list(labelled.obs["type"])
    right = annotated.obs["sims_label"].astype(str) == annotated.obs["type"].astype(str)
    metrics = pd.read_csv("out/metrics.csv", index_col=0)
    assert list(metrics.index) == ["query"] and metrics["accuracy_micro"].item() == pytest.approx(right.mean())
    assert 0.4 < right.mean() < 0.8  # a third of the cells has a label that cannot be given


def test_layer_is_used_throughout(files, make_cells):
    """With scaled values in X and counts in a layer or in raw, LAYER is enough, and X is saved as it was."""
    cells = make_cells(n_cells=200, n_genes=60)
    scaled = make_cells(n_cells=200, n_genes=60, state="scaled")
    cells.raw, cells.layers["counts"], cells.X = cells.copy(), cells.X.copy(), scaled.X
    cells.write_h5ad("scaled.h5ad")
    for layer in ("raw", "counts"):
        seen = run_in_process(REFERENCE="scaled.h5ad", LABEL="cell_type", LAYER=layer, OUT=layer)
        assert seen["metrics"]["accuracy_micro"] > 0.8
        assert seen["story"].notna().all(axis=None) and seen["panel"].notna().all(axis=None)
        annotated = ad.read_h5ad(f"{layer}/annotated.h5ad")
        np.testing.assert_array_equal(annotated.to_df(), cells[annotated.obs_names].to_df())


def test_demo_stops_with_one_message(files, capsys):
    """A wrong label column ends the run with what was asked for and the nearest name, without a traceback."""
    assert main(["report", "labelled.h5ad", "--label", "typ", "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert "'typ'" in error and "'type'" in error and "Traceback" not in error
    assert "UnknownNameError" in Path("out/report.ipynb").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lines_of_pages_run(page, tmp_path, monkeypatch):
    """README's and the guides' lines of Python run as they stand, but for those whose page says why not."""
    monkeypatch.chdir(tmp_path)
    fit, variables = sk.fit, {"sk": sk}
    monkeypatch.setattr(sk, "fit", lambda *data, **options: fit(*data, **{"max_epochs": 8} | options))  # sooner
    blocks = re.findall(r"(<!-- not run: .+ -->\n)?```python\n(.*?)```", page.read_text(), re.DOTALL)
    with matplotlib.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        for why, lines in blocks:
            if not why:
                exec(compile(lines, page.name, "exec"), variables)
        matplotlib.pyplot.close("all")
    if page.name == "README.md":
        assert {"sims_label", "sims_confidence", "sims_second_label"} <= set(variables["query"].obs)
        assert len(blocks) == 1 and len(blocks[0][1].replace("\n\n", "\n").splitlines()) == 6
