"""The command line."""

import hashlib
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sims_kit as sk
from sims_kit.__main__ import COMMANDS, main
from sims_kit.datasets.registry import DataFile, read_registry


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The cache folder of a dataset `toy`, with two files, one hash known and one not."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("SIMS_KIT_DATA", str(cache))
    (cache / "toys").mkdir(parents=True)
    files = []
    for name, sha256 in (("toy.csv", hashlib.sha256(b"toy.csv").hexdigest()), ("types.csv", None)):
        (cache / "toys" / name).write_bytes(name.encode())
        files.append(DataFile(name, ("https://a.example/x",), sha256, None))
    entry = read_registry().datasets["mouse-immune"]
    source = replace(entry.source, folder="toys", matrix=files[0], labels=files[1])
    monkeypatch.setitem(read_registry().datasets, "toy", replace(entry, source=source))
    return cache / "toys"


def test_list(toys, capsys):
    """Each entry has a line with its numbers, and says whether its files are in the cache."""
    assert main(["datasets", "list"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert {*read_registry().datasets, *read_registry().tables} < set(lines)
    assert lines["toy"][-1] == lines["pbmc68k"][-1] == "True"
    assert lines["mouse-immune"] == ["small", "1000", "19371", "5", "2.3", "False"]


@pytest.mark.filterwarnings("ignore:toy. No SHA-256")
def test_fetch_goes_on_after_a_failure(toys, capsys):
    """What fails is named with its reason and gives status 1; the others are fetched all the same."""
    assert main(["datasets", "fetch", "gencode-human", "toy", "pbmc68k"]) == 1
    shown = capsys.readouterr()
    assert [line.split(" ")[:2] for line in shown.out.splitlines()] == [["toy:", "ready"], ["pbmc68k:", "ready"]]
    assert shown.err.startswith("gencode-human: failed: ") and "SIMS_KIT_OFFLINE" in shown.err


def test_verify(toys, capsys):
    """Right, unchecked, missing and wrong files are told apart; only wrong ones give status 1."""
    assert main(["datasets", "verify", "toy", "muraro"]) == 0
    shown = capsys.readouterr().out
    assert "toy: ready" in shown and "(none is published)" in shown and "muraro: not in the cache" in shown
    (toys / "toy.csv").write_bytes(b"another")
    assert main(["datasets", "verify"]) == 1 and "toy.csv has SHA-256" in capsys.readouterr().err


def test_train_annotate_explain(make_cells, tmp_path, monkeypatch, capsys):
    """Each command writes what its function returns, and prints labels, scores or genes."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=300)
    cells.write_h5ad("cells.h5ad")
    cells.to_df().T.to_csv("turned.csv")
    assert main(["train", "cells.h5ad", "--label", "cell_type", "--epochs", "8", "--seed", "1"]) == 0
    assert "3 labels, 60 genes" in (shown := capsys.readouterr().out) and "median_f1" in shown
    turned = "turned.csv --orientation genes_by_cells --model model.safetensors"
    for query, out in (("cells.h5ad --model model.safetensors", "annotated.h5ad"), (turned, "labels.csv")):
        assert main(f"annotate {query} --reject 0.1 --out {out}".split()) == 0
    expected = sk.annotate(cells, "model.safetensors", reject=0.1, copy=True)
    assert list(ad.read_h5ad("annotated.h5ad").obs["sims_label"]) == list(expected.obs["sims_label"])
    assert list(pd.read_csv("labels.csv")["sims_label"]) == list(expected.obs["sims_label"])
    assert main(["explain", "cells.h5ad", "--model", "model.safetensors", "--top", "3"]) == 0
    explanation = sk.explain("model.safetensors", cells)
    assert capsys.readouterr().out.endswith(explanation.top_genes(3).to_string() + "\n")
    np.testing.assert_allclose(pd.read_csv("genes.csv", index_col=0)["class_1"], explanation.class_contributions.loc[
        "class_1", explanation.genes.index], atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("datasets fetch", 1, "sims-kit datasets list"),
        ("datasets fetch worm", 1, "'worm-neurons'"),
        ("train no.h5ad --label x", 1, "no.h5ad"),
        ("train pbmc68k no.h5ad --label bulk_labels", 1, "no.h5ad"),  # neither file is left out in silence
        ("train pbmc68k --label bulk_label --out m.safetensors", 1, "'bulk_labels'"),
        ("train pbmc68k --label bulk_labels --out m.csv", 1, "does not end in .safetensors"),
        ("annotate pbmc68k --model no.safetensors --out cells.txt", 1, "does not end in .h5ad or .csv"),
        ("annotate pbmc68k", 2, "--model"),
        ("x", 2, "annotate"),
    ],
)
def test_wrong_calls(arguments, status, says, capsys):
    """A wrong call gives status 2, input that cannot be used 1; one line says why, and what exists."""
    try:
        found = main(arguments.split())
    except SystemExit as stop:
        found = stop.code
    shown = capsys.readouterr().err
    assert found == status and says in shown and "Traceback" not in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    """Which is a call of this command that the parser accepts."""
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"Example: sims-kit {command} " in " ".join(capsys.readouterr().out.split())
