"""Nothing lost: killed trainings go on, checkpoints are data, and files appear whole or not at all."""

import errno
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import sims_kit as sk
from sims_kit.errors import ModelFileError, SettingError
from sims_kit.model.checkpoints import ResumePoint

HARNESS = Path(__file__).resolve().parent.parent / "benchmarks" / "kill_and_resume.py"
SMALL = {"network": {"n_models": 2, "n_d": 2, "n_a": 2}}
PLATEAU = {"network": {"n_d": 2, "n_a": 2}, "scheduler_params": {"patience": 0, "factor": 0.5}, "patience": 2}
STEPS = {"network": {"n_d": 2, "n_a": 2}, "scheduler": torch.optim.lr_scheduler.ExponentialLR, "patience": None}


def train(cells, folder, recipe="default", model_params=None, max_epochs=4, **settings):
    """A small training that keeps its checkpoints in a folder."""
    options = dict(logger=False, enable_progress_bar=False, verbose=False)
    settings = dict(recipe=recipe, model_params=model_params or SMALL, max_epochs=max_epochs) | settings
    return sk.fit(cells, "cell_type", checkpoints=folder, **options, **settings)


@pytest.fixture
def keep_every_point(monkeypatch, tmp_path):
    """Copies of the checkpoint of every epoch, in a folder of their own."""
    folder, save = tmp_path / "points", ResumePoint.on_train_epoch_start
    folder.mkdir()

    def save_and_copy(self, trainer, pl_module):
        save(self, trainer, pl_module)
        if self.path.exists():
            shutil.copy(self.path, folder / f"{trainer.current_epoch}.ckpt")

    monkeypatch.setattr(ResumePoint, "on_train_epoch_start", save_and_copy)
    return folder


@pytest.mark.parametrize(
    ("recipe", "params"),
    [("default", SMALL), ("thesis", PLATEAU), ("thesis", STEPS | {"scheduler_params": {"gamma": 0.5}})],
    ids=["one cycle", "plateau and early stopping", "steps"],
)
def test_every_epoch_can_be_gone_on_from(make_cells, tmp_path, keep_every_point, recipe, params):
    """From the checkpoint of any epoch, training ends with bitwise the weights, history and calibration."""
    cells, folder = make_cells(), tmp_path / "run"
    whole = train(cells, folder, recipe, params)
    points = sorted(keep_every_point.iterdir())
    assert len(points) == len(whole.history) - 1 >= 2
    for point in points:
        shutil.copy(point, folder / "resume.ckpt")
        again = train(cells, folder, recipe, params)
        assert [name for name, x in again.state_dict().items() if not torch.equal(x, whole.state_dict()[name])] == []
        pd.testing.assert_frame_equal(again.history, whole.history, check_exact=True, check_like=True)
        assert torch.equal(again.class_weights, whole.class_weights)
        for found, expected in zip(again.calibration_cells, whole.calibration_cells, strict=True):
            assert (found == expected).all()


@pytest.mark.skipif(not HARNESS.exists() or not hasattr(os, "fork"), reason="needs the repository, and fork")
def test_killed_trainings_end_the_same(tmp_path):
    """Trainings killed with SIGKILL at random moments end bitwise as one that ran through."""
    command = [sys.executable, str(HARNESS), "--runs", "1", "--kills", "2", "--cells", "120", "--epochs", "6"]
    result = subprocess.run([*command, "--recipes", "default"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"default: 1 of 1 killed trainings ended bitwise", result.stdout)


def test_other_trainings_are_not_gone_on_from(make_cells, tmp_path):
    """Other cells, settings or length, and a folder that was moved, are named; the checkpoint stays."""
    cells = make_cells()
    train(cells, tmp_path / "run", max_epochs=2)
    before = (tmp_path / "run/resume.ckpt").read_bytes()
    for change, named in (({"seed": 1}, "seed"), ({"max_epochs": 3}, "max_epochs"), ({"batch_size": 48}, "batch_size")):
        with pytest.raises(SettingError, match=rf"differs from this one in: .*{named}"):
            train(cells, tmp_path / "run", **{"max_epochs": 2} | change)
    with pytest.raises(SettingError, match="genes"):
        train(cells[:, :50].copy(), tmp_path / "run", max_epochs=2)
    assert (tmp_path / "run/resume.ckpt").read_bytes() == before
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(SettingError, match="Move it back"):
        train(cells, tmp_path / "moved", max_epochs=2)


def test_another_encoder_is_another_training(make_cells, tmp_path):
    """A checkpoint that began at one pretrained encoder is not gone on from with another, or with none."""
    cells, settings = make_cells(), dict(model_params=SMALL, max_epochs=1, logger=False, verbose=False)
    encoders = [sk.pretrain(cells, seed=seed, enable_progress_bar=False, **settings) for seed in (0, 1)]
    train(cells, tmp_path / "run", max_epochs=2, pretrained=encoders[0])
    train(cells, tmp_path / "run", max_epochs=2, pretrained=encoders[0])
    for other in (encoders[1], None):
        with pytest.raises(SettingError, match="differs from this one in: pretrained"):
            train(cells, tmp_path / "run", max_epochs=2, pretrained=other)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (Path("was_here").touch, ())


@pytest.mark.parametrize("kind", ["pickle", "checkpoint with code", "cut short", "empty", "other content"])
def test_hostile_checkpoints(make_cells, tmp_path, monkeypatch, kind):
    """A checkpoint that is damaged, or holds anything but data, is refused by name and runs no code."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run/resume.ckpt"
    path.parent.mkdir()
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"callbacks": Bomb() if kind == "checkpoint with code" else {}}, path)
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"resume\.ckpt.*Remove it"):
        train(make_cells(), tmp_path / "run")
    assert not Path("was_here").exists()


def test_full_disk_keeps_the_last_checkpoint(make_cells, tmp_path, monkeypatch):
    """When the disk is full in the middle of a run, the checkpoint of the epoch before is whole."""
    replace, n_calls = os.replace, 0

    def full(source, target):
        nonlocal n_calls
        n_calls += str(target).endswith("resume.ckpt")
        if n_calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    cells = make_cells()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        train(cells, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.part"))
    monkeypatch.setattr(os, "replace", replace)
    resumed, whole = train(cells, tmp_path / "run"), train(cells, tmp_path / "other")
    assert all(torch.equal(x, whole.state_dict()[name]) for name, x in resumed.state_dict().items())


def test_divergence_names_batch_cells_and_cause(make_cells):
    """A loss that is no number stops training with the batch, the names of its cells, and the likely cause."""
    cells = make_cells()
    options = dict(class_label="cell_type", logger=False, enable_progress_bar=False, verbose=False)
    trainer, model, module = sk.generate_trainer(cells, model_params=SMALL, max_epochs=1, **options)
    (first, *_), batches = module.train_dataloader(), module.train_dataloader().batches()
    names = [module.cell_names[i] for i in next(batches)]
    assert [module.labels[module.cell_names.index(name)] for name in names] == first.labels.tolist()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"In batch 0 of epoch 0.*Lower the learning rate") as caught:
        trainer.fit(model, datamodule=module)
    assert repr(names[0]) in str(caught.value) and f"and {len(names) - 5} more" in str(caught.value)

    trainer, model, module = sk.generate_trainer(cells, model_params=SMALL, max_epochs=1, **options)
    spoiled = module.split.train[7]
    matrix = module._dataset.sources[0].matrix
    matrix.data[matrix.indptr[spoiled] : matrix.indptr[spoiled + 1]] = torch.inf  # behind the checks of the data
    with pytest.raises(FloatingPointError, match="1 of 96 cells hold NaN or infinite values") as caught:
        trainer.fit(model, datamodule=module)
    assert f"values: cells {module.cell_names[spoiled]!r}. Write 0" in str(caught.value)
