"""Training through the public face: two lines, one line, and what they promise."""

import contextlib
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

import sims_kit as sk
from sims_kit.calibration import fit_temperature
from sims_kit.model.trainer import BestWeights

QUIET = dict(enable_progress_bar=False, verbose=False)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Logs and checkpoints go to a folder of their own."""
    monkeypatch.chdir(tmp_path)


def test_the_thesis_two_lines(make_cells, tmp_path):
    """`generate_trainer` and `trainer.fit` train on files with label files, and log to CSV by default."""
    cells = make_cells()
    cells.to_df().to_csv(tmp_path / "cells.csv.gz")
    cells.obs.to_csv(tmp_path / "labels.csv")
    trainer, model, module = sk.generate_trainer(
        datafiles=["cells.csv.gz"], labelfiles=["labels.csv"], class_label="cell_type", max_epochs=3, **QUIET
    )
    trainer.fit(model, datamodule=module)
    assert model.classes == ["class_0", "class_1", "class_2"] and model.genes == list(cells.var_names)
    logged = pd.read_csv(next(tmp_path.glob("lightning_logs/*/metrics.csv")))
    assert {"train_loss", "val_loss", "val_median_f1"} <= set(logged.columns)
    assert len(model.history) == 3
    for part in ("train_", "val_"):  # over a dozen metrics each (thesis section 0.3.1)
        assert sum(column.startswith(part) for column in model.history) >= 13


def test_the_two_lines_are_quiet(make_cells, capfd, recwarn):
    """Lightning's notes on loaders stay away where the user calls `trainer.fit`; afterwards all is as it was."""
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", max_epochs=1, logger=False, **QUIET)
    filters, level = list(warnings.filters), logging.getLogger("pytorch_lightning.utilities.rank_zero").level
    trainer.fit(model, datamodule=module)
    trainer.test(model, datamodule=module, verbose=False)
    assert capfd.readouterr().err == "" and not [w for w in recwarn if "pytorch_lightning" in w.filename]
    assert warnings.filters == filters
    assert logging.getLogger("pytorch_lightning.utilities.rank_zero").level == level


def test_fit_learns_and_measures(make_cells):
    """One call separates easy classes, and measures them on test cells it kept aside."""
    model = sk.fit(make_cells(n_cells=300), "cell_type", max_epochs=20, **QUIET)
    assert model.test_metrics["accuracy_micro"] > 0.9
    assert not model.training
    assert model.provenance["cells"] == {"train": 240, "validation": 30, "test": 30}


def test_own_parts_as_in_lightning(make_cells):
    """DataModule, SIMSClassifier and Trainer built by hand work together, as in the thesis's second listing."""
    module = sk.DataModule(make_cells(), class_label="cell_type", verbose=False)
    model = sk.SIMSClassifier(input_dim=module.input_dim, output_dim=module.output_dim, recipe="thesis")
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model, datamodule=module)
    assert model.genes == module.genes and model.classes == module.classes
    torch.testing.assert_close(model.class_weights, module.class_weights)


def test_same_seed_same_weights(make_cells):
    """The seed decides everything, and the caller's random state is left alone."""
    state = torch.get_rng_state()
    first, again, other = (
        sk.fit(make_cells(), "cell_type", seed=seed, max_epochs=2, logger=False, **QUIET).network.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_best_epoch_comes_back(make_cells):
    """After training the model has the weights of the epoch with the best monitored metric."""
    trainer, model, module = sk.generate_trainer(
        make_cells(n_cells=200), class_label="cell_type", recipe="thesis", max_epochs=6, logger=False, **QUIET
    )
    trainer.fit(model, datamodule=module)
    (metrics,) = trainer.validate(model, datamodule=module, verbose=False)
    assert metrics["val_accuracy_micro"] == pytest.approx(model.history["val_accuracy_micro"].max())
    assert any(isinstance(callback, BestWeights) for callback in trainer.callbacks)


def test_runs_side_by_side_share_nothing(make_cells, tmp_path):
    """Without a logger each run has checkpoints of its own, and leaves no file behind."""
    options = dict(class_label="cell_type", max_epochs=2, logger=False, **QUIET)
    (first, model, module), (second, *_) = (sk.generate_trainer(make_cells(), **options) for _ in range(2))
    assert first.checkpoint_callback.dirpath != second.checkpoint_callback.dirpath
    first.fit(model, datamodule=module)
    assert Path(first.checkpoint_callback.best_model_path).is_file() and not list(tmp_path.iterdir())


def test_early_stopping(make_cells):
    """The thesis's recipe stops four epochs after the last better validation accuracy."""
    model = sk.fit(make_cells(n_cells=200), "cell_type", recipe="thesis", max_epochs=60, logger=False, **QUIET)
    accuracy = model.history["val_accuracy_micro"].to_numpy()
    assert len(accuracy) < 60
    assert len(accuracy) - 1 - np.argmax(accuracy) == 4


def test_trainer_arguments_pass_through(make_cells):
    """Any Trainer argument, own callbacks and no test part."""

    class Counter(pl.Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs += 1

    counter = Counter()
    model = sk.fit(
        make_cells(), "cell_type", test=0, max_epochs=2, callbacks=counter, accelerator="cpu", logger=False, **QUIET
    )
    assert counter.epochs == 2 and model.test_metrics is None


def test_without_validation_cells(make_cells):
    """Training runs to its end when no cells are kept aside."""
    model = sk.fit(make_cells(), "cell_type", validation=0, test=0, max_epochs=2, logger=False, **QUIET)
    assert "val_loss" not in model.history and len(model.history) == 2
    assert model.temperature == 1 and model.calibration_cells is None


def test_temperature_comes_from_validation_cells(make_cells):
    """It is what fits the finished model's logits on the validation cells, and training again starts without it."""
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", max_epochs=3, logger=False, **QUIET)
    trainer.fit(model, datamodule=module)
    (batch,) = module.val_dataloader()
    with torch.no_grad():
        logits = model.eval()(batch.cells)
    fitted = model.temperature.item()
    assert fitted == pytest.approx(fit_temperature(logits.numpy(), batch.labels.numpy()), rel=1e-6) and fitted != 1
    np.testing.assert_array_equal(model.calibration_cells.labels, batch.labels)
    confidence = (logits / fitted).softmax(dim=1).max(dim=1).values
    np.testing.assert_allclose(model.calibration_cells.confidence, confidence, rtol=1e-5)
    (metrics,) = trainer.validate(model, datamodule=module, verbose=False)
    torch.testing.assert_close(
        metrics["val_loss"],
        torch.nn.functional.cross_entropy(logits / fitted, batch.labels, weight=model.class_weights).item(),
    )


def test_rare_classes_rise_after_training(make_cells):
    """Logits rise by a number over the fourth root of the class's cells; not so with weights of the caller's own."""
    cells = make_cells(n_cells=120, n_classes=3)
    cells = cells[(cells.obs["cell_type"] != "class_0") | (np.arange(120) % 4 == 0)].copy()  # a rare one
    options = dict(max_epochs=2, test=0, logger=False, **QUIET)
    plain, raised, own = (
        sk.fit(cells, "cell_type", model_params={"logit_adjustment": much, **more}, **options)
        for much, more in ((0.0, {}), (4.0, {}), (4.0, {"class_weights": np.array([2.0, 1.0, 1.0])}))
    )
    module = sk.DataModule(cells, class_label="cell_type", test=0, verbose=False)
    n_cells = torch.tensor(np.bincount(module.labels[module.split.train]), dtype=torch.float32)
    assert n_cells[0] < 15 < 30 < n_cells[1]
    for before, after in zip(plain.network.members, raised.network.members, strict=True):
        torch.testing.assert_close(after.additive_bias, before.additive_bias + 4 / n_cells**0.25)
        assert torch.equal(after.final_mapping.weight, before.final_mapping.weight)
    assert own.network.members[0].additive_bias.abs().max() < 0.3 < 4 / n_cells.max() ** 0.25
    linear_off = {"network": {"additive": False, "n_models": 1}, "logit_adjustment": 4.0}
    assert not sk.fit(cells, "cell_type", model_params=linear_off, **options).raised.any()  # no bias that could rise
    assert torch.allclose(raised.raised, 4 / n_cells**0.25)
    assert sk.RECIPES["default"].logit_adjustment > 0 == sk.RECIPES["thesis"].logit_adjustment


def test_the_rise_is_there_once(make_cells):
    """A trainer with nothing left to do changes nothing; another training starts from what the first one learned."""
    settings = dict(model_params={"logit_adjustment": 400.0}, max_epochs=1, logger=False, **QUIET)
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", **settings)
    bias = model.network.members[0].additive_bias
    trainer.fit(model, datamodule=module)
    raised, state = bias.detach().clone(), {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(raised, model.raised, atol=0.3, rtol=0)
    trainer.fit(model, datamodule=module)  # its epoch is over
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again, copy, _ = sk.generate_trainer(make_cells(), None, "cell_type", **settings)
    copy.load_state_dict(state)
    again.fit(copy, datamodule=module)
    torch.testing.assert_close(copy.network.members[0].additive_bias, raised, atol=0.3, rtol=0)


def test_a_module_of_ones_own(make_cells):
    """Without an adjustment nothing is asked of the data module but its batches and its sizes."""
    ours = sk.DataModule(make_cells(), class_label="cell_type", verbose=False)

    class Own(pl.LightningDataModule):
        input_dim, output_dim, genes, classes, provenance = ours.input_dim, 3, ours.genes, ours.classes, {}

        def train_dataloader(self):
            return ours.train_dataloader()

        def val_dataloader(self):
            return ours.val_dataloader()

    settings = dict(weight_classes=0, logit_adjustment=0, network={"n_models": 1})
    model = sk.SIMSClassifier(input_dim=ours.input_dim, output_dim=3, **settings)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    pl.Trainer(max_epochs=1, **quiet).fit(model, datamodule=Own())
    assert model.is_fitted and model.temperature != 1


def test_settings_of_the_model(make_cells):
    """Settings of recipe and network go through `model_params`; elsewhere the message says so, before any reading."""
    trainer, model, module = sk.generate_trainer(
        make_cells(),
        class_label="cell_type",
        model_params={"network": {"n_steps": 2}, "batch_size": 48, "label_smoothing": 0.1, "max_epochs": 7},
        logger=False,
        **QUIET,
    )
    assert len(model.network.encoder.att_transformers) == 2 and model.recipe.label_smoothing == 0.1
    assert (module.batch_size, trainer.max_epochs) == (48, 7)
    for wrong, way_out in (
        (dict(n_steps=2), "model_params={'network': {'n_steps'"),
        (dict(label_smoothing=0.1), "model_params={'label_smoothing'"),
        (dict(model_params={"n_steps": 2}), "'network': {'n_steps'"),
        (dict(model_params={"label_smooting": 2}), "'label_smoothing'"),
    ):
        with pytest.raises((ValueError, KeyError), match=re.escape(way_out)):
            sk.fit("no such file", "cell_type", **wrong)


def test_loggers_by_name(make_cells):
    """A logger that is not known or not installed is refused by name."""
    with pytest.raises(KeyError, match="tensorboard"):
        sk.fit(make_cells(), "cell_type", logger="tensorbord", **QUIET)


@pytest.mark.dataset("cell-lines-5cl-p1", "cell-lines-5cl-p2")
def test_two_plates_of_real_files(real_data):
    """Two plates with different genes train from their `.csv.gz` files, labelled by their metadata."""
    folder = real_data / "sc_mixology"
    trainer, model, module = sk.generate_trainer(
        [folder / f"sc_celseq2_5cl_p{plate}.count.csv.gz" for plate in (1, 2)],
        [folder / f"sc_celseq2_5cl_p{plate}.metadata.csv.gz" for plate in (1, 2)],
        "cell_line_demuxlet",
        orientation="genes_by_cells",
        max_epochs=1,
        logger=False,
        **QUIET,
    )
    trainer.fit(model, datamodule=module)
    assert (module.input_dim, module.output_dim, len(module.labels)) == (13_723, 5, 604)


INTERRUPTED = """
import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)
import pytorch_lightning as pl, sims_kit as sk
class Interrupt(pl.Callback):
    def on_train_batch_end(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
cells = sk.datasets.simulate(n_cells=200, n_genes=400, seed=1)
try:
    sk.fit(cells, "cell_type", callbacks=[Interrupt()], logger=False, verbose=False, enable_progress_bar=False)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_ends_in_keyboard_interrupt(tmp_path, clean_environment):
    """Lightning would end the process; and a second Ctrl-C must reach Python as before."""
    code = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERRUPTED],
        **dict(cwd=tmp_path, env=clean_environment, capture_output=True, text=True, timeout=300),
    )
    assert code.stdout.strip().endswith("interrupted True"), code.stderr


@pytest.mark.parametrize("state", ["float64", "inference_mode", "no_grad"])
def test_torchs_global_state_does_not_matter(make_cells, tmp_path, state):
    """Another default dtype, inference mode or no_grad around the calls change nothing, and stay as they are."""
    cells = make_cells(n_cells=150)
    options = dict(max_epochs=2, **QUIET)
    expected = sk.annotate(cells, sk.fit(cells, "cell_type", **options), copy=True)
    guard = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad}.get(state, contextlib.nullcontext)
    torch.set_default_dtype(torch.float64 if state == "float64" else torch.float32)
    try:
        with guard():
            model = sk.fit(cells, "cell_type", **options)
            found = sk.annotate(cells, model, copy=True)
            sk.explain(sk.load_model(sk.save_model(model, tmp_path / "model.safetensors")), cells)
        assert torch.get_default_dtype() == (torch.float64 if state == "float64" else torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.obsm["sims_probabilities"], expected.obsm["sims_probabilities"])
