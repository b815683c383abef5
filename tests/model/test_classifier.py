"""SIMSClassifier: settings, recipes, and what it refuses."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from sims_kit import RECIPES, Recipe, SIMSClassifier
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model.recipe import get_recipe


def configured(**settings):
    """A model and its optimiser and scheduler, as Lightning asks for them."""
    model = SIMSClassifier(20, 3, **settings)
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return model, model.configure_optimizers()


def test_thesis_recipe_is_the_thesis():
    """The settings of thesis section 0.3.2, one by one."""
    recipe = RECIPES["thesis"]
    assert recipe.optimizer is torch.optim.Adam
    assert recipe.optimizer_params == {"lr": 0.01, "weight_decay": 1e-3}
    assert recipe.scheduler is torch.optim.lr_scheduler.ReduceLROnPlateau
    assert recipe.scheduler_params == {"factor": 0.75, "patience": 20}
    assert (recipe.max_epochs, recipe.patience) == (500, 4)
    assert (recipe.monitor, recipe.monitor_mode) == ("val_accuracy_micro", "max")
    assert recipe.weight_classes and 8 <= recipe.batch_size <= 32 and recipe.gradient_clip_val > 0
    model, found = configured(recipe="thesis")
    assert found["lr_scheduler"]["monitor"] == "val_loss" and found["lr_scheduler"]["scheduler"].factor == 0.75
    assert model.network.encoder.att_transformers[0].bn.bn.weight.unique() == 1 and recipe.n_models == 1
    model, _ = configured(recipe=RECIPES["thesis"].changed(mask_start=0.125))
    assert model.network.encoder.att_transformers[0].bn.bn.weight.unique() == 0.125  # broad masks


def test_optimizer_and_scheduler_of_the_caller():
    """They replace the recipe's with its arguments; arguments alone are added; one with a largest rate takes theirs."""
    sgd = dict(optimizer=torch.optim.SGD, optimizer_params={"lr": 0.5, "momentum": 0.9})
    steps = dict(scheduler=torch.optim.lr_scheduler.StepLR, scheduler_params={"step_size": 7})
    _, found = configured(**sgd, **steps)
    assert isinstance(found["optimizer"], torch.optim.SGD) and found["optimizer"].defaults["momentum"] == 0.9
    assert found["lr_scheduler"]["scheduler"].step_size == 7 and found["lr_scheduler"]["interval"] == "epoch"
    assert isinstance(configured(scheduler=False)[1], torch.optim.Adam)
    assert get_recipe({"optimizer_params": {"lr": 0.5}}).optimizer_params == {"lr": 0.5, "weight_decay": 3e-3}
    _, found = configured(optimizer_params={"lr": 0.5}, scheduler_params={"total_steps": 10})
    (group,) = found["optimizer"].param_groups
    assert (group["max_lr"], group["weight_decay"]) == (0.5, 3e-3)
    assert RECIPES["default"].changed(optimizer=torch.optim.SGD).optimizer_params == {}


def test_recipes_are_plain_for_loggers_and_files():
    """Numbers of numpy become Python's, classes become names."""
    plain = get_recipe({"n_d": np.int64(16), "gamma": np.float32(1.5)}).plain()
    assert (plain["n_d"], plain["gamma"], plain["optimizer"]) == (16, 1.5, "Adam") and json.loads(json.dumps(plain))


DEEP = eval("[" * 90 + "]" * 90)


@pytest.mark.parametrize("odd", [3, "\x1b[2J\u202e\n# <b>", DEEP, [DEEP, None], {"a": DEEP}, {1: "\x00"}])
def test_a_card_and_a_summary(odd):
    """A model that was not fitted has them, whatever its provenance; control characters are written out."""
    model = SIMSClassifier(20, 2, classes=["B", "T"])
    names = ("files", "cells", "gene_kind", "saved", "licence", "notes")
    for model.provenance in ({}, *({name: odd} for name in names)):
        assert "not fitted: 20 genes" in repr(model) and "B, T" in repr(model)
        assert model.card().startswith("# SIMSClassifier, not fitted") and "torch" in model.card()
        assert "<table" in model._repr_html_() and "B, T" in model._repr_html_() and "<b>" not in model._repr_html_()
        assert all(line.isprintable() for line in (repr(model) + model.card() + model._repr_html_()).split("\n"))


OUT_OF_RANGE = [  # of a recipe
    (dict(n_d=0), "n_d is 0; give a whole number, at least 1"),
    (dict(n_d="8"), "n_d is '8'; give a whole number"),
    (dict(n_models=1.5), "n_models is 1.5"),
    (dict(n_independent=-1), "n_independent is -1.*at least 0"),
    (dict(gamma=float("nan")), "gamma is nan; give a number"),
    (dict(n_steps=0), "n_steps is 0"),
    (dict(gamma=0.5), "gamma is 0.5"),
    (dict(genes_per_class=0), "genes_per_class is 0"),
    (dict(additive=1), "additive is 1; give True or False"),
    (dict(gene_dropout=1), "gene_dropout is 1; give a number, at least 0, below 1"),
    (dict(mask_temperature=0), "mask_temperature is 0; give a number, at least 1e-06, or None"),
    (dict(monitor_mode="up"), "'min' or 'max'"),
    (dict(optimizer="adam"), "'adam': give a class of torch.optim, such as torch.optim.AdamW"),
    (dict(optimizer_params=3), "optimizer_params=3: give names and values"),
]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        *((dict(recipe=settings), SettingError, message) for settings, message in OUT_OF_RANGE),
        (dict(output_dim=1), SettingError, "output_dim=1: give a whole number, 2 or more"),
        (dict(genes=["a"]), SettingError, "1 genes"),
        (dict(recipe="thesys"), UnknownNameError, "thesis"),
        (dict(n_steps=3), SettingError, r"recipe=dict\(n_steps=...\)"),
        (dict(network=3), SettingError, "network=3"),
        (dict(loss="focal"), SettingError, "loss='focal': give a function"),
        (dict(optimizer_params={"learning_rate": 1}), UnknownNameError, "argument of Adam 'learning_rate'"),
        (dict(class_weights=torch.ones(4)), SettingError, "one per class"),
        (dict(class_weights=torch.tensor([1.0, -1.0, 1.0])), SettingError, "positive"),
        (dict(class_weights=torch.tensor([1.0, torch.inf, 1.0])), SettingError, "positive"),
    ],
)
def test_refused(arguments, error, message):
    """Settings that do not fit are refused by name, with what was expected."""
    with pytest.raises(error, match=message):
        SIMSClassifier(**{"input_dim": 20, "output_dim": 3, **arguments})


def test_schedule():
    """Batches grow with the training set, and epochs make up the steps aimed at; the caller's and the thesis's stay."""
    recipe = Recipe(training_steps=1000)
    for n_cells, expected in ((100, (32, 250)), (3_200, (32, 10)), (1_600, (32, 20)), (10**6, (256, 4))):
        assert recipe.schedule(n_cells) == expected
    assert recipe.schedule(2000, batch_size=50) == (50, 25)
    assert [Recipe(steps_per_class=20).schedule(3_200, n_classes=n)[1] for n in (3, 50)] == [5, 10]
    assert recipe.schedule(2000, batch_size=25, n_devices=2) == (25, 25)
    assert Recipe(batch_size=50).schedule(2000, n_devices=2, max_epochs=3) == (25, 3)
    assert RECIPES["thesis"].schedule(10**6) == (32, 500)


@pytest.mark.parametrize(("part", "value"), [("final_mapping", np.inf), ("encoder.att_transformers.0.fc", np.nan)])
def test_diverged_training_stops(part, value):
    """A loss or a mask that is not a number stops training with the batch and the way out."""
    model = SIMSClassifier(20, 3)
    torch.nn.init.constant_(model.network.get_submodule(part).weight, value)
    batch = type("Batch", (), {"cells": torch.rand(8, 20), "labels": torch.arange(8) % 3})
    with pytest.raises(FloatingPointError, match=r"batch 4 of epoch 0.*Lower the learning rate"):
        model.training_step(batch, 4)
