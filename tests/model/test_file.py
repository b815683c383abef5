"""Model files: they come back the same, and never run code."""

import errno
import json
import os
import pickle
from datetime import date
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sims_kit.errors import ModelFileError, SettingError
from sims_kit.model import SIMSClassifier, load_model, save_model
from sims_kit.model.file import READABLE

FILES = Path(__file__).with_name("files")


def _fitted(recipe):
    """A small model that has names and saw a training batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SIMSClassifier(4, 2, genes=list("abcd"), classes=["B cell", "T cell"], recipe=recipe)
        model(torch.rand(8, 4))
    return model.eval()


@pytest.fixture
def model():
    """A fitted model with provenance and metrics."""
    model = _fitted("thesis")
    model.provenance = {"files": ["cells.h5ad"], "seed": 0}
    model.test_metrics = pd.Series({"accuracy_micro": 0.9})
    return model


def _rewritten(path, tensors=None, **header):
    """The file with some tensors or header fields replaced."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["header"] = json.dumps({**json.loads(metadata["header"]), **header})
    save_file({**load_file(path), **(tensors or {})}, path, metadata=metadata)
    return path


@pytest.mark.parametrize("recipe", ["thesis", "default"])
def test_round_trip(tmp_path, recipe):
    """Logits, names, provenance and metrics come back, whatever the recipe."""
    model = _fitted(recipe)
    model.provenance, model.test_metrics = {"seed": 3}, pd.Series({"loss": 0.5})
    model.temperature.fill_(1.7)
    path = save_model(model, tmp_path / "new folder" / "model.safetensors")
    loaded = load_model(path)
    cells = torch.rand(5, 4)
    torch.testing.assert_close(loaded(cells), model(cells), rtol=0, atol=0)
    torch.testing.assert_close(loaded.probabilities(cells), model.probabilities(cells), rtol=0, atol=0)
    assert (loaded.genes, loaded.classes, loaded.provenance) == (model.genes, model.classes, model.provenance)
    pd.testing.assert_series_equal(loaded.test_metrics, model.test_metrics, check_names=False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written left
    assert path.stat().st_mode & 0o777 == 0o644  # others may read it


@pytest.mark.parametrize("version", READABLE)
def test_older_versions(version):
    """A file of every version, written by the sims_kit of its time, gives the probabilities that it gave then."""
    path = FILES / f"version_{version}.safetensors"
    answers = json.loads(path.with_suffix(".json").read_text())
    model = load_model(path)
    with torch.no_grad():
        found = model.probabilities(torch.tensor(answers["cells"]))
    torch.testing.assert_close(found, torch.tensor(answers["probabilities"]))
    assert model.test_metrics["accuracy_micro"] == 0.75 and model.provenance["class_label"] == "cell_type"
    assert model.novelty.is_measured == (version >= 4)  # version 3 had another unseen score


def test_what_a_file_says_of_itself(model, tmp_path):
    """Recipe, kind of genes, versions, date, licence and notes come back, outlive a second save, and are shown."""
    model.provenance |= {"gene_kind": "symbol", "cells": {"train": 80, "test": 10}}
    path = save_model(model, tmp_path / "a.safetensors", licence="CC-BY-4.0", notes="Of adult cortex only.")
    again = load_model(save_model(load_model(path), tmp_path / "b.safetensors"))
    assert again.about["recipe"] | {"optimizer": "Adam", "lambda_sparse": 1e-3} == again.about["recipe"]
    assert again.about["recipe"]["optimizer_params"] == {"lr": 0.01, "weight_decay": 1e-3}
    assert again.about["versions"]["torch"] == version_of("torch")
    assert date.fromisoformat(again.about["saved"])
    for part in (
        "4 genes (symbol) to 2 classes",
        "B cell, T cell",
        "cells.h5ad",
        "80 train",
        "seed 0",
        "accuracy 0.900",
    ):
        assert part in repr(again)
    assert "licence CC-BY-4.0" in repr(again) and "Of adult cortex only." in repr(again)
    assert "not fitted" in repr(SIMSClassifier(4, 2))


@pytest.fixture
def calibrated(model):
    """The model with validation cells, two of three right."""
    labels = torch.tensor([0, 1, 1])
    model.novelty.measure([(torch.rand(3, 4), labels)])
    model.calibrate(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), labels, torch.rand(3, 2))
    return model


def test_calibration_cells_come_back(calibrated, tmp_path):
    """What the validation cells say of confidence is the same after loading; a file without any loads as before."""
    loaded = load_model(save_model(calibrated, tmp_path / "model.safetensors"))
    for name, values in calibrated.calibration_cells._asdict().items():
        np.testing.assert_array_equal(getattr(loaded.calibration_cells, name), values)
    assert loaded.calibration_cells.correct.tolist() == [True, True, False]
    assert loaded.temperature == calibrated.temperature
    for name, values in calibrated.novelty.state_dict().items():
        torch.testing.assert_close(loaded.novelty.state_dict()[name], values, rtol=0, atol=0)
    calibrated.calibration_cells = None
    calibrated.novelty.is_measured.fill_(False)
    older = load_model(save_model(calibrated, tmp_path / "without.safetensors"))
    assert older.calibration_cells is None and not older.novelty.is_measured


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"calibration.labels": torch.zeros(2, dtype=torch.int64)}, "for each validation cell"),
        ({"calibration.correct": torch.zeros(3)}, "one torch.bool for each"),
        ({"calibration.labels": torch.tensor([0, 1, 2])}, "out of range"),
        ({"calibration.confidence": torch.tensor([0.5, 0.5, torch.nan], dtype=torch.float64)}, "out of range"),
        ({"calibration.strangeness": torch.tensor([0, 0, torch.inf], dtype=torch.float64)}, "out of range"),
    ],
)
def test_damaged_calibration_cells(calibrated, tmp_path, tensors, words):
    """Numbers that no validation cells can have are told, not used."""
    path = _rewritten(save_model(calibrated, tmp_path / "model.safetensors"), tensors)
    with pytest.raises(ModelFileError, match=words):
        load_model(path)


def test_failed_save_keeps_the_old_file(model, tmp_path):
    """A save that fails leaves the file that was there."""
    path = save_model(model, tmp_path / "model.safetensors")
    before = path.read_bytes()
    model.provenance["not data"] = object()
    with pytest.raises(TypeError):
        save_model(model, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(model, tmp_path, monkeypatch, step):
    """When the disk is full, or the move fails, the old file is whole and nothing half-written is left."""

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = save_model(model, tmp_path / "model.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_unfitted_model_is_not_saved(tmp_path):
    """Without names of genes and classes, or without training, a model cannot label anything."""
    untrained = SIMSClassifier(4, 2, genes=list("abcd"), classes=["B cell", "T cell"])
    untrained.eval()(torch.rand(8, 4))  # prediction is no training
    for model in (SIMSClassifier(4, 2), untrained):
        with pytest.raises(SettingError, match="not fitted"):
            save_model(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole safetensors"),
        (lambda path: path.write_bytes(b""), "not a whole safetensors"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a whole safetensors"),
        (lambda path: save_file({"a": torch.ones(1)}, path), "not one of sims_kit's"),
        (lambda path: _rewritten(path, format_version=99), "newer sims_kit"),
        (lambda path: _rewritten(path, calibration={}), "temperature None"),
        (lambda path: _rewritten(path, calibration={"temperature": -1.0}), "temperature -1.0"),
        (lambda path: _rewritten(path, calibration={"temperature": 1e300}), "32 bits"),
        (lambda path: _rewritten(path, calibration={"temperature": 1.0}), "each class"),
        (lambda path: _rewritten(path, calibration={"temperature": 1.0, "raised": [0.5]}), "each class"),
        (lambda path: _rewritten(path, calibration={"temperature": 1.0, "raised": [0.5, 1e300]}), "32 bits"),
        (lambda path: _rewritten(path, genes=list("abcc")), "twice"),
        (lambda path: _rewritten(path, genes=[1, 2, 3, 4]), "as texts"),
        (lambda path: _rewritten(path, genes=list("abcde")), "needs"),
        (lambda path: _rewritten(path, network={"n_steps": 2}), "tensors of its network"),
        (lambda path: _rewritten(path, network={"n_moons": 2}), "no setting 'n_moons'"),
        (lambda path: _rewritten(path, network={"n_d": "8"}), "n_d is '8'"),
        (lambda path: _rewritten(path, classes=["B cell"]), "1 classes"),
        (lambda path: _rewritten(path, test_metrics={"accuracy": "high"}), "metric 'accuracy'"),
        (lambda path: _rewritten(path, provenance=["cells.h5ad"]), "provenance as"),
        (lambda path: _rewritten(path, notes=3), "notes as 3"),
        (lambda path: _rewritten(path, {"final_mapping.weight": torch.full((2, 8), torch.nan)}), "NaN"),
    ],
)
def test_damaged_files(model, tmp_path, damage, message):
    """A damaged, foreign or contradictory file gives one clear error that names it."""
    path = save_model(model, tmp_path / "model.safetensors")
    damage(path)
    with pytest.raises(ModelFileError, match=message) as error:
        load_model(path)
    assert "model.safetensors" in str(error.value)


def test_missing_file(tmp_path):
    """A path without a file is named."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_model(tmp_path / "nowhere.safetensors")
