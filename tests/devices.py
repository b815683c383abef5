"""Training in several processes, which `test_devices.py` runs, each test in an interpreter of its own.

A process that has threads, as one has after other tests, must not be forked.
"""

import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import sims_kit as sk
from sims_kit.cells.loaders import CellLoader

TWO = dict(devices=2, trainer=dict(accelerator="cpu", strategy="ddp_fork"))  # forked: Python is not started anew
QUIET = dict(verbose=False)
ALONE = dict(recipe=dict(n_models=1, n_d=4, n_a=4, best_epoch=True), max_epochs=2, **QUIET)


class Watch(pl.Callback):
    """Writes what each process saw: training cells by epoch, validation cells, and the model at the end."""

    def __init__(self, folder, cells, die_in_epoch=None):
        self.folder, self.sums, self.die_in_epoch = folder, cells.X.sum(axis=1).A1, die_in_epoch
        self.seen, self.steps = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Note the cells, or die."""
        if trainer.current_epoch == self.die_in_epoch and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self._note(f"train {trainer.current_epoch}", batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        """Note the cells."""
        if not trainer.sanity_checking:
            self._note(f"validation {trainer.current_epoch}", batch)

    def teardown(self, trainer, pl_module, stage):
        """Write it down; the module's own `on_fit_end` comes after the callbacks'."""
        path = self.folder / f"rank {trainer.global_rank}.pt"
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        names = ("history", "provenance", "calibration_cells", "test_metrics")
        kept = {name: getattr(pl_module, name, None) for name in names}
        torch.save({"seen": self.seen, "steps": self.steps, "state": state, **kept}, path)

    def _note(self, what, batch):
        self.seen.setdefault(what, []).extend(batch.cells.to_dense().sum(1).tolist())
        self.steps[what] = self.steps.get(what, 0) + 1


def ranks(folder):
    """What the two processes wrote."""
    return [torch.load(folder / f"rank {rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("backed", [False, True])
def test_two_processes_train_one_model(make_cells, tmp_path, monkeypatch, backed):
    """Each cell once an epoch, the same model in both, its history that of all cells, as good as from one process."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=301)
    cells.write_h5ad("cells.h5ad")
    monkeypatch.setattr(CellLoader, "block_size", 8)
    monkeypatch.setattr(CellLoader, "buffer_size", 64)
    options = dict(backed=backed, max_epochs=8, **QUIET)
    more = dict(callbacks=Watch(tmp_path, cells), **TWO, **options)
    trainer, model, module = sk.generate_trainer("cells.h5ad", None, "cell_type", **more)
    assert module.batch_size == 16 and len(module.split.train) == 241
    trainer.fit(model, datamodule=module)
    one, other = ranks(tmp_path)
    for part in ("train 0", "train 7", "validation 7"):
        every = module._dataset.rows(module.split[part.startswith("validation")]).sum(axis=1).A1
        np.testing.assert_allclose(np.sort(one["seen"][part] + other["seen"][part]), np.sort(every), rtol=1e-5)
        assert one["steps"][part] == other["steps"][part]
    assert one["seen"]["train 0"] != one["seen"]["train 7"]
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    torch.testing.assert_close(one["state"], dict(model.state_dict()), rtol=0, atol=0)  # and came back, with the rest
    assert model.history.equals(one["history"]) and len(model.history) == 8
    assert model.provenance == one["provenance"] and model.provenance["cells"]["train"] == 241
    assert model.test_metrics.equals(one["test_metrics"]) and one["test_metrics"].equals(other["test_metrics"])
    for kept, found in zip(one["calibration_cells"], model.calibration_cells, strict=True):
        np.testing.assert_array_equal(kept, found)

    alone = sk.fit("cells.h5ad", "cell_type", **options)
    scale = "network.encoder.initial_bn.scale"
    torch.testing.assert_close(one["state"][scale], alone.state_dict()[scale])
    torch.testing.assert_close(one["state"]["novelty.means"], alone.state_dict()["novelty.means"])
    assert one["history"].equals(other["history"])
    gap = one["history"]["val_accuracy_micro"].iloc[-1] - alone.history["val_accuracy_micro"].iloc[-1]
    assert abs(gap) < 0.15 and alone.history["val_accuracy_micro"].iloc[-1] > 0.8


def test_a_killed_process_ends_the_run_which_can_go_on(make_cells, tmp_path, monkeypatch):
    """When one process is killed the call raises; from its last checkpoint it ends as if nothing had been."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=150)

    def run(folder, die_in_epoch=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        options = dict(recipe="thesis", max_epochs=3, checkpoints=tmp_path / folder, **TWO, **QUIET)
        watch = Watch(tmp_path / folder, cells, die_in_epoch)
        trainer, model, module = sk.generate_trainer(cells, None, "cell_type", callbacks=watch, **options)
        trainer.fit(model, datamodule=module)
        return ranks(tmp_path / folder)[0]

    whole = run("whole")
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        run("killed", die_in_epoch=2)
    assert not (tmp_path / "killed/rank 0.pt").exists()
    rest = run("killed")
    torch.testing.assert_close(whole["state"], rest["state"], rtol=1e-5, atol=1e-6)
    assert "train 0" not in rest["seen"] and rest["seen"]["train 2"] == whole["seen"]["train 2"]
    np.testing.assert_allclose(whole["history"]["val_loss"], rest["history"]["val_loss"], rtol=1e-5)


def _alone_among_others(rank, cells, folder, expected):
    """In one of two processes that know each other: train with one device, and compare with a training alone."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    model = sk.fit(cells[rank], "cell_type", **ALONE)
    assert model.history.equals(expected[rank].history)
    assert model.test_metrics.equals(expected[rank].test_metrics)
    assert len(model.calibration_cells.labels) == len(expected[rank].calibration_cells.labels)


def test_a_process_group_of_others_does_not_count(make_cells, tmp_path):
    """A training with one device sees its own cells once, also where an earlier training left torch's process group."""
    cells = [make_cells(n_cells=150, seed=seed) for seed in (0, 1)]
    expected = [sk.fit(own, "cell_type", **ALONE) for own in cells]
    arguments = (cells, tmp_path, expected)
    torch.multiprocessing.start_processes(_alone_among_others, arguments, nprocs=2, start_method="fork")


def test_two_processes_pretrain_one_encoder(make_cells, tmp_path, monkeypatch):
    """Both processes have the same encoder, whose history is that of all cells."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=201)
    options = dict(recipe=dict(n_models=2, n_d=8, n_a=8), max_epochs=4, **QUIET)
    model = sk.pretrain(cells, callbacks=Watch(tmp_path, cells), **TWO, **options)
    one, other = ranks(tmp_path)
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    assert one["history"].equals(other["history"]) and model.history.equals(one["history"])
    alone = sk.pretrain(cells, **options).history["val_loss"].iloc[-1]
    assert abs(model.history["val_loss"].iloc[-1] - alone) < 0.1
