"""Training through the public face: two lines, one line, and what they promise."""

import contextlib
import copy
import logging
import os
import re
import signal
import sys
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

import sims_kit as sk
from sims_kit.calibration import fit_temperature
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import top_genes
from sims_kit.model.novelty import class_sums

QUIET = dict(verbose=False)
ONE = dict(n_models=1)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Logs and checkpoints go to a folder of their own."""
    monkeypatch.chdir(tmp_path)


def test_fit_learns_measures_and_logs(make_cells, tmp_path):
    """Easy classes are separated; the logger has the metrics of each epoch, a dozen of either part, and the recipe."""
    model = sk.fit(make_cells(n_cells=300), "cell_type", max_epochs=20, logger="csv", **QUIET)
    assert model.test_metrics["accuracy_micro"] > 0.9 and not model.training
    assert model.provenance["cells"] == {"train": 240, "validation": 30, "test": 30}
    logged = pd.read_csv(next(tmp_path.glob("lightning_logs/*/metrics.csv")))
    assert {"train_loss", "val_loss", "val_median_f1"} <= set(logged.columns)
    assert "n_steps: 1" in next(tmp_path.glob("lightning_logs/*/hparams.yaml")).read_text()
    assert len(model.history) == 20 and "median_f1" in model.test_metrics
    for part in ("train_", "val_"):  # thesis section 0.3.1
        assert sum(column.startswith(part) for column in model.history) >= 13


def test_the_two_lines_are_quiet(make_cells, tmp_path, capfd, recwarn):
    """Lightning's notes on loaders stay away where the user calls `trainer.fit`; afterwards all is as it was."""
    recipe = dict(max_epochs=1, batch_size=48)  # the rest is the default's
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", recipe=recipe, **QUIET)
    assert (trainer.max_epochs, module.batch_size, trainer.num_devices) == (1, 48, 1)
    filters, level = list(warnings.filters), logging.getLogger("pytorch_lightning").level
    trainer.fit(model, datamodule=module)
    trainer.validate(model, datamodule=module, verbose=False)
    (found,) = trainer.test(model, datamodule=module, verbose=False)
    assert found["test_loss"] > 0 and "test_median_f1" in found
    trainer.predict(model, module.test_dataloader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert capfd.readouterr().err == "" and not [w for w in recwarn if "pytorch_lightning" in w.filename]
    assert warnings.filters == filters and logging.getLogger("pytorch_lightning").level == level


def test_metrics_and_loss_of_ones_own(make_cells):
    """What is tracked and what is minimised can be chosen."""
    seen = []

    def loss(logits, labels):
        seen.append(logits.shape[1])
        return torch.nn.functional.multi_margin_loss(logits, labels)

    model = sk.fit(make_cells(), "cell_type", metrics=["accuracy_micro", "median_f1"], loss=loss, max_epochs=1, **QUIET)
    assert set(seen) == {3} and set(model.test_metrics.index) == {"loss", "accuracy_micro", "median_f1"}
    with pytest.raises(UnknownNameError, match="val_mcc"):
        sk.fit(make_cells(), "cell_type", metrics=["median_f1"], recipe=dict(monitor="val_mcc"), **QUIET)


@pytest.mark.parametrize("train", [partial(sk.fit, label="cell_type"), sk.pretrain], ids=["fit", "pretrain"])
def test_same_seed_same_weights(make_cells, train):
    """The seed decides everything, and the caller's random state is left alone."""
    state = torch.get_rng_state()
    models = (train(make_cells(), seed=seed, max_epochs=2, **QUIET) for seed in (1, 1, 2))
    first, again, other = (model.network.state_dict() for model in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_early_stopping_and_the_best_epoch(make_cells):
    """The thesis's recipe stops four epochs after the best validation accuracy, and ends with the weights of then."""
    options = dict(recipe="thesis", max_epochs=60, **QUIET)
    trainer, model, module = sk.generate_trainer(make_cells(n_cells=200), None, "cell_type", **options)
    trainer.fit(model, datamodule=module)
    accuracy = model.history["val_accuracy_micro"].to_numpy()
    assert len(accuracy) < 60 and len(accuracy) - 1 - np.argmax(accuracy) == 4
    (metrics,) = trainer.validate(model, datamodule=module, verbose=False)
    assert metrics["val_accuracy_micro"] == pytest.approx(accuracy.max())


def test_trainer_arguments_pass_through(make_cells):
    """Any Trainer argument, own callbacks, no test part; without validation cells training runs to its end."""
    epochs, none, cpu = [], dict(test=0, validation=0), dict(accelerator="cpu")
    counter = pl.callbacks.LambdaCallback(on_train_epoch_end=lambda *_: epochs.append(1))
    model = sk.fit(make_cells(), "cell_type", max_epochs=2, callbacks=counter, trainer=cpu, **none, **QUIET)
    assert len(epochs) == len(model.history) == 2 and model.test_metrics is None
    assert "val_loss" not in model.history and model.temperature == 1 and model.calibration_cells is None
    with pytest.raises(SettingError, match=r"watches validation cells.*validation=0"):
        sk.fit("no such file", "cell_type", recipe="thesis", validation=0, **QUIET)


def test_temperature_comes_from_validation_cells(make_cells):
    """It is what fits the finished model's logits on the validation cells, and training again starts without it."""
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", max_epochs=3, **QUIET)
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
    loss = torch.nn.functional.cross_entropy(logits / fitted, batch.labels, weight=model.class_weights)
    torch.testing.assert_close(metrics["val_loss"], loss.item())


def test_logits_are_adjusted_after_training(make_cells):
    """By a number over the fourth root of the class's cells, in each network; not with the caller's class weights."""
    cells = make_cells(n_cells=120, n_classes=3)
    cells = cells[(cells.obs["cell_type"] != "class_0") | (np.arange(120) % 4 == 0)].copy()  # a rare one
    alone = dict(linear_share=0)
    plain, adjusted, own = (
        sk.fit(cells, "cell_type", recipe=alone | dict(logit_adjustment=much), max_epochs=2, test=0, **more, **QUIET)
        for much, more in ((0.0, {}), (4.0, {}), (4.0, {"class_weights": np.array([2.0, 1.0, 1.0])}))
    )
    module = sk.DataModule(cells, class_label="cell_type", test=0, verbose=False)
    n_cells = torch.tensor(np.bincount(module.labels[module.split.train]), dtype=torch.float32)
    assert n_cells[0] < 15 < 30 < n_cells[1]
    torch.testing.assert_close(adjusted.logit_adjustment, 4 / n_cells**0.25)
    for before, after in zip(plain.network.parameters(), adjusted.network.parameters(), strict=True):
        assert torch.equal(before, after)
    (batch,) = module.val_dataloader()
    with torch.no_grad():
        expected = (plain.network(batch.cells).logits + 4 / n_cells**0.25).softmax(2).mean(1)
        torch.testing.assert_close(adjusted(batch.cells).softmax(1), expected)
    assert not plain.logit_adjustment.any() and not own.logit_adjustment.any()
    assert sk.RECIPES["default"].logit_adjustment > 0 == sk.RECIPES["thesis"].logit_adjustment


def test_linear_classifiers_take_part(make_cells, tmp_path):
    """As a geometric mean with the networks, in their share, also from a file; of class weights the ratios count."""
    weights, values = torch.tensor([1.0, 2.0, 4.0]), torch.rand(9, 60)
    model, scaled = (
        sk.fit(make_cells(), "cell_type", class_weights=factor * weights, max_epochs=1, **QUIET) for factor in (1, 1e-4)
    )
    with torch.no_grad():
        networks, linear = model.network(values).logits.softmax(2).mean(1), model.novelty.margins(values).sigmoid()
        expected = networks**0.6 * linear**0.4
        torch.testing.assert_close(model(values).softmax(1), expected / expected.sum(1, keepdim=True))
        again = sk.load_model(sk.save_model(model, tmp_path / "model.safetensors"))
        assert torch.equal(again(values), model(values))
    assert model.novelty.planes.any() and not torch.allclose(networks.log(), model(values), atol=0.01)
    torch.testing.assert_close(scaled.novelty.planes, model.novelty.planes, rtol=1e-2, atol=1e-2)
    assert sk.RECIPES["default"].linear_share == 0.4 > sk.RECIPES["thesis"].linear_share == 0


def test_finished_once(make_cells):
    """A trainer with nothing left to do changes nothing; another training starts without the adjustment."""
    settings = dict(recipe=dict(logit_adjustment=400.0), max_epochs=1, **QUIET)
    trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", **settings)
    trainer.fit(model, datamodule=module)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.fit(model, datamodule=module)  # its epoch is over
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    trainer, again, module = sk.generate_trainer(make_cells(), None, "cell_type", **settings)
    again.load_state_dict(state)
    trainer.fit(again, datamodule=module)
    assert again.history["train_loss"].item() < 2
    torch.testing.assert_close(again.logit_adjustment, model.logit_adjustment)


def test_a_module_of_ones_own(make_cells):
    """Without an adjustment nothing is asked of the data module but its batches and its sizes."""
    ours = sk.DataModule(make_cells(), class_label="cell_type", verbose=False)
    own = pl.LightningDataModule()
    for name in ("input_dim", "output_dim", "genes", "classes", "provenance", "train_dataloader", "val_dataloader"):
        setattr(own, name, getattr(ours, name))
    recipe = dict(weight_classes=0, logit_adjustment=0, n_models=1)
    model = sk.SIMSClassifier(input_dim=ours.input_dim, output_dim=3, recipe=recipe)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    pl.Trainer(max_epochs=1, **quiet).fit(model, datamodule=own)
    assert model.is_fitted and model.temperature != 1


def test_genes_that_are_read(make_cells, tmp_path):
    """They are chosen on the training cells alone, are markers of all classes, and are kept in the model's file."""
    cells, recipe = make_cells(n_cells=300, n_genes=200), dict(ONE) | dict(genes_per_class=8)
    seen = []  # by a callback, when training starts
    note = pl.callbacks.LambdaCallback(on_train_start=lambda _, model: seen.append(copy.deepcopy(model)))
    options = dict(max_epochs=2, callbacks=note, **QUIET)
    trainer, model, module = sk.generate_trainer(cells, None, "cell_type", recipe=recipe, **options)
    trainer.fit(model, datamodule=module)
    found = class_sums(module.train_dataloader(), 3, 200, "cpu")
    assert found[2].sum() == len(module.split.train) < 300
    genes = model.network.genes
    assert torch.equal(genes, top_genes(*found, 24)) and torch.equal(seen[0].network.genes, genes)
    scale = sk.pretrain(cells, recipe=ONE, **options).scale.scale
    assert torch.equal(seen[1].scale.scale, scale) and scale[0] != 1
    owners = cells.var["marker_of"].iloc[genes.numpy()].value_counts()
    assert owners[model.classes].min() >= 6
    opened = sk.load_model(sk.save_model(model, tmp_path / "model.safetensors"))
    assert torch.equal(opened.network.genes, genes)
    assert set(np.flatnonzero(sk.explain(opened, cells).cells.sum(axis=0))) <= set(genes.tolist())


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (dict(model_params={"n_steps": 2}), "recipe=dict(n_steps=3"),
        (dict(recipe=dict(label_smooting=2)), "'label_smoothing'"),
        (dict(recipe=dict(lr=1e-3)), "optimizer_params={'lr': ...}"),
        (dict(recipe=dict(network={})), "fields of the recipe"),
        (dict(learning_rate=1e-3), "recipe=dict(optimizer_params={'lr': ...})"),
        (dict(epochs=3), "max_epochs"),
        (dict(batch_key="donor"), "groups="),
        (dict(labels_key="cell_type"), "label="),
        (dict(use_raw=True), "layer='raw'"),
        (dict(gpus=1), "devices="),
        (dict(n_top_genes=2000), "highly_variable"),
        (dict(majority_voting=True), "annotate(query, model, vote='auto')"),
        (dict(enable_progress_bar=False), "verbose=False"),
        (dict(accelerator="cpu"), "trainer=dict(accelerator=...)"),
        (dict(max_epoch=3), "'max_epochs'"),
        (dict(max_epochs=-1), "max_epochs=-1: give a whole number, 1 or more"),
        (dict(devices=0), "devices=0: give 'auto', a number of GPUs"),
        (dict(callbacks=5), "callbacks=5: give a callback of Lightning"),
        (dict(logger=["csv"]), "logger=['csv']: give a name, or a logger"),
        (dict(checkpoints=""), "checkpoints='': give a folder's path"),
        (dict(verbose="no"), "verbose='no': give True or False"),
        (dict(normalize=True), "argument of fit 'normalize'. Choose from: 'data', "),
        (dict(logger="tensorbord"), "'tensorboard'"),
        (dict(trainer=3), "trainer=3: give names and values"),
        (dict(trainer=dict(max_epochs=3)), "Pass it to the function itself"),
        (dict(trainer=dict(presision=3)), "'precision'"),
        (dict(trainer=dict(precision="64-true")), "'32-true', 'bf16-mixed', '16-mixed'"),
    ],
)
def test_words_of_neighbours_and_wrong_places(monkeypatch, settings, way_out):
    """What is not understood is answered with what to write instead, before any file is read."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((SettingError, UnknownNameError), match=re.escape(way_out)):
        sk.fit("no such file", "cell_type", **settings)


@pytest.mark.parametrize("recipe", ["default", "thesis"])
@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"deterministic": True}], ids=str)
def test_precisions_and_determinism(make_cells, options, recipe):
    """Half precision and deterministic algorithms train as usual, with clipped gradients, and explain."""
    try:
        settings = dict(max_epochs=2, recipe=recipe, trainer=options)
        trainer, model, module = sk.generate_trainer(make_cells(), None, "cell_type", **settings, **QUIET)
        trainer.fit(model, datamodule=module)
        trainer.test(model, datamodule=module, verbose=False)  # in the same precision
        assert torch.isfinite(explain_batch(model.network, torch.rand(9, 60)).logits).all()  # of dense cells
        assert np.isfinite(sk.explain(model, make_cells()).contributions.data).all()
    finally:
        torch.use_deterministic_algorithms(False)
    assert model.history["train_loss"].iloc[-1] < model.history["train_loss"].iloc[0]


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_that_is_cut_off(make_cells, epoch):
    """Its training metrics are of all its batches, not those of the epoch before; accumulated gradients change none."""
    losses = []

    def stop(trainer, module, outputs, batch, index):
        if trainer.current_epoch == epoch:
            losses.append(outputs["loss"].item() * 2 / 4 * len(batch.labels))  # accumulated in twos, four networks
            trainer.should_stop = index == 2

    callback, pairs = pl.callbacks.LambdaCallback(on_train_batch_end=stop), dict(accumulate_grad_batches=2)
    settings = dict(max_epochs=3, batch_size=16, callbacks=callback, trainer=pairs)
    model = sk.fit(make_cells(), "cell_type", **settings, **QUIET)
    assert len(losses) == 3 and len(model.history) == epoch + 1
    assert model.history["train_loss"].iloc[-1] == pytest.approx(sum(losses) / 48, rel=1e-5)
    n_right = model.history["train_accuracy_micro"].iloc[-1] * 48
    assert n_right == pytest.approx(round(n_right), abs=1e-3)


def test_apples_gpus(monkeypatch, make_cells):
    """Without sparse tensors there, training runs on the CPU, and says so."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="runs on the CPU"):
        trainer, *_ = sk.generate_trainer(make_cells(), class_label="cell_type", **QUIET)
    assert trainer.strategy.root_device.type == "cpu"


def test_progress_without_a_terminal(make_cells, capsys, monkeypatch):
    """One line per tenth of the training, and how long it will take; nothing with verbose=False."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # a plugin of pytest imports it
    sk.fit(make_cells(), "cell_type", max_epochs=20, recipe=ONE)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 10 and any("20 epochs take" in line for line in lines)
    sk.fit(make_cells(), "cell_type", max_epochs=2, recipe=ONE, **QUIET)
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_in_keyboard_interrupt(make_cells):
    """Lightning would end the process; and a second Ctrl-C must reach Python as before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        sk.fit(make_cells(), "cell_type", callbacks=interrupt, **QUIET)
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize("state", ["float64", "inference_mode", "no_grad"])
def test_torchs_global_state_does_not_matter(make_cells, tmp_path, state):
    """Another default dtype, inference mode or no_grad around the calls change nothing, and stay as they are."""
    cells = make_cells(n_cells=150)
    options = dict(max_epochs=2, **QUIET)
    usual = sk.fit(cells, "cell_type", **options)
    expected, contributions = sk.annotate(cells, usual, copy=True), sk.explain(usual, cells).contributions
    guard = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad}.get(state, contextlib.nullcontext)
    torch.set_default_dtype(torch.float64 if state == "float64" else torch.float32)
    try:
        with guard():
            model = sk.fit(cells, "cell_type", **options)
            found = sk.annotate(cells, model, copy=True)
            explained = sk.explain(sk.load_model(sk.save_model(model, tmp_path / "model.safetensors")), cells)
        assert torch.get_default_dtype() == (torch.float64 if state == "float64" else torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.obsm["sims_probabilities"], expected.obsm["sims_probabilities"])
    np.testing.assert_allclose(explained.contributions.toarray(), contributions.toarray(), rtol=1e-4, atol=1e-5)
