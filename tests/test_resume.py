"""Nothing lost: killed trainings go on, checkpoints are data, and files appear whole or not at all."""

import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint

import sims_kit as sk
from sims_kit.errors import ModelFileError, SettingError
from sims_kit.model.trainer import loss_identity

SMALL = dict(n_models=2, n_d=2, n_a=2)
PLATEAU = dict(n_models=1, n_d=2, n_a=2, scheduler_params={"patience": 0, "factor": 0.5}, patience=2)
Bomb = type("Bomb", (), {"__reduce__": lambda self: (Path("was_here").touch, ())})  # runs code when it is unpickled
STEPS = dict(n_models=1, n_d=2, n_a=2, scheduler=torch.optim.lr_scheduler.ExponentialLR, patience=None)
STEPS |= {"scheduler_params": {"gamma": 0.5}}


def train(cells, folder, recipe="default", settings=SMALL, max_epochs=4, **more):
    """A small training, or pretraining, that keeps its checkpoints in a folder."""
    work = sk.pretrain if recipe == "pretraining" else partial(sk.fit, label="cell_type")
    recipe = settings if recipe == "pretraining" else sk.RECIPES[recipe].changed(**settings)
    return work(cells, recipe=recipe, checkpoints=folder, max_epochs=max_epochs, verbose=False, **more)


@pytest.fixture
def keep(tmp_path):
    """A callback that copies the checkpoint of every epoch into the folder "points"."""
    (tmp_path / "points").mkdir()

    def copy(trainer, pl_module):
        if trainer.current_epoch:
            shutil.copy(tmp_path / "run/resume.ckpt", tmp_path / f"points/{trainer.current_epoch}.ckpt")

    return LambdaCallback(on_train_epoch_start=copy)


@pytest.mark.parametrize(
    ("recipe", "params"),
    [("default", SMALL), ("thesis", PLATEAU), ("thesis", STEPS), ("pretraining", SMALL)],
    ids=["one cycle", "plateau and early stopping", "steps", "pretraining"],
)
def test_every_epoch_can_be_gone_on_from(make_cells, tmp_path, keep, recipe, params):
    """From the checkpoint of any epoch, training ends with bitwise the weights, history and calibration."""
    cells, folder = make_cells(), tmp_path / "run"
    whole = train(cells, folder, recipe, params, callbacks=keep)
    points = sorted((tmp_path / "points").iterdir())
    assert len(points) == len(whole.history) - 1 >= 2
    for point in points:
        shutil.copy(point, folder / "resume.ckpt")
        again = train(cells, folder, recipe, params)
        assert [name for name, x in again.state_dict().items() if not torch.equal(x, whole.state_dict()[name])] == []
        pd.testing.assert_frame_equal(again.history, whole.history, check_exact=True, check_like=True)
        for name in ("class_weights", "calibration_cells") if recipe != "pretraining" else ():
            for found, expected in zip(getattr(again, name), getattr(whole, name), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_other_trainings_are_not_gone_on_from(make_cells, tmp_path):
    """Other cells, settings, encoders or length, and a folder that was moved, are named; the checkpoint stays."""
    cells = make_cells()
    encoders = [sk.pretrain(cells, seed=seed, recipe=SMALL, max_epochs=1, verbose=False) for seed in (0, 1)]
    same = {"max_epochs": 2, "settings": SMALL | {"best_epoch": True}, "pretrained": encoders[0]}
    train(cells, tmp_path / "run", **same)
    before, other = (tmp_path / "run/resume.ckpt").read_bytes(), cells.copy()
    other.X = cells.X[:, ::-1].copy()
    loss = torch.nn.functional.cross_entropy
    for change in (
        dict(seed=1, max_epochs=3, batch_size=48, class_weights=[1, 1, 2], loss=loss),
        dict(accumulate_grad_batches=2, precision="bf16-mixed"),
        dict(pretrained=encoders[1]),
        dict(pretrained=None),
    ):
        for name, value in change.items():
            changed = {"trainer": {name: value}} if "precision" in change else {name: value}
            with pytest.raises(SettingError, match=f"differs from this one in: .*{name}"):
                train(cells, tmp_path / "run", **same | changed)
    for different, named in ((cells[:, :50].copy(), "genes"), (other, "values")):
        with pytest.raises(SettingError, match=f"differs from this one in: {named}"):
            train(different, tmp_path / "run", **same)
    assert (tmp_path / "run/resume.ckpt").read_bytes() == before
    (tmp_path / "run").rename(tmp_path / "moved")
    train(cells, tmp_path / "moved", **same)


@pytest.mark.parametrize("place", ["..", "../other/a.ckpt", "/etc/a.ckpt"])
def test_checkpoints_that_name_files_elsewhere(make_cells, tmp_path, place):
    """Lightning would delete them, where the caller has a `ModelCheckpoint`; they are refused."""
    mine = dict(callbacks=ModelCheckpoint(tmp_path / "mine", monitor="val_loss"), max_epochs=2)
    train(make_cells(), tmp_path / "run", **mine)
    checkpoint = torch.load(tmp_path / "run/resume.ckpt", weights_only=True)
    state = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("ModelCheckpoint"))
    state["kth_best_model_path"] = str(tmp_path / "mine" / place)
    torch.save(checkpoint, tmp_path / "run/resume.ckpt")
    with pytest.raises(SettingError, match="names files outside"):
        train(make_cells(), tmp_path / "run", **mine)


def test_a_checkpoint_callback_of_ones_own_goes_on(make_cells, tmp_path, monkeypatch):
    """Also where Lightning chooses its folder."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        train(make_cells(), tmp_path / "run", max_epochs=2, callbacks=ModelCheckpoint(monitor="val_loss"))


def test_losses_that_differ_are_told_apart():
    """By code, constants, defaults, captured values and settings; the same one made again is the same."""
    cross_entropy = torch.nn.functional.cross_entropy

    def make(smoothing):
        return lambda logits, labels: cross_entropy(logits, labels, label_smoothing=smoothing)

    def losses():
        yield from (None, cross_entropy, torch.nn.functional.nll_loss, make(0.1), make(0.2))
        yield lambda logits, labels: logits.mean()
        yield lambda logits, labels: logits.sum()
        yield lambda logits, labels: logits.sum() * 2
        yield from (partial(cross_entropy, label_smoothing=share) for share in (0.1, 0.2))
        yield from (torch.nn.CrossEntropyLoss(label_smoothing=share) for share in (0.1, 0.2))
        weights = (torch.tensor([weight, 1.0]) for weight in (1.0, 2.0))
        yield from (torch.nn.Sequential(torch.nn.LogSoftmax(1), torch.nn.NLLLoss(weight)) for weight in weights)

    found = [loss_identity(loss) for loss in losses()]
    assert len(set(found)) == len(found) and found == [loss_identity(loss) for loss in losses()]


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(pickle.dumps(Bomb())), lambda path: path.touch(),
                                   lambda path: torch.save({"callbacks": Bomb()}, path),
                                   lambda path: torch.save({"callbacks": {}}, path)])  # fmt: skip
def test_hostile_checkpoints(make_cells, tmp_path, monkeypatch, write):
    """A checkpoint that holds anything but data, or other data, is refused by name and runs no code."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    write(Path("run/resume.ckpt"))
    with pytest.raises(ModelFileError, match=r"resume\.ckpt.*Remove it"):
        train(make_cells(), tmp_path / "run")
    assert not Path("was_here").exists()
