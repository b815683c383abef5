"""Recipes: every setting of a training run in one place, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sims_kit.errors import SettingError, UnknownNameError


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. Everything that `fit` and `SIMSClassifier` do not take as an argument.

    The attributes' comments give units and meaning; `RECIPES` gives values and reasons.
    """

    network: Mapping[str, Any] = field(default_factory=dict)  # arguments of `TabNet`
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    optimizer_params: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.01})
    scheduler: type | None = None
    scheduler_params: Mapping[str, Any] = field(default_factory=dict)
    weight_classes: float = 0.0  # weight the loss by this power of the inverse label frequency of the training cells
    logit_adjustment: float = 0.0  # raises the logits of classes with few cells: see `adjustment`
    label_smoothing: float = 0.0  # share of the target spread evenly over the classes
    lambda_sparse: float = 0.0  # weight of the masks' entropy in the loss
    batch_size: int | None = None  # cells; None: a hundredth of the training cells, within 32 to 256
    max_epochs: int | None = None  # None: as many as make `training_steps`, within 10 to 250
    training_steps: int = 500  # optimiser steps aimed at when `max_epochs` is None
    patience: int | None = None  # epochs without a better `monitor` before stopping; None: never
    monitor: str = "val_loss"  # decides the best epoch
    monitor_mode: str = "min"
    best_epoch: bool = True  # end with the weights of the best epoch, else with those of the last
    gradient_clip_val: float = 0.5  # largest norm of the gradient

    def __post_init__(self):
        if not isinstance(self.label_smoothing, Real) or not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing={self.label_smoothing!r}: it is a share, at least 0 and below 1.")
        if not isinstance(self.logit_adjustment, Real) or not 0 <= self.logit_adjustment < float("inf"):
            raise SettingError(f"logit_adjustment={self.logit_adjustment!r}: give a number, 0 or more.")

    def adjustment(self, n_cells: np.ndarray) -> np.ndarray:
        """What to add to the logits of classes with so many training cells, (classes,), when training has ended.

        A network knows a handful of cells by heart, and misses others like them; classes with few cells are raised.
        After the margins of Cao et al. (NeurIPS 2019), which act while training; added afterwards as in Menon et al.
        (ICLR 2021). A network that is not `additive` has no bias that could rise.
        """
        return self.logit_adjustment * np.clip(n_cells, 1, None) ** -0.25

    def schedule(self, n_training_cells: int, batch_size: int | None = None) -> tuple[int, int]:
        """Cells per batch and number of epochs for a training set of that size.

        Small batches and many epochs suit small data, where every step counts; large data is seen ten times.

        Parameters
        ----------
        n_training_cells
            Size of the training set.
        batch_size
            Overrides the recipe's.
        """
        batch_size = batch_size or self.batch_size or min(256, max(32, n_training_cells // 100))
        steps_per_epoch = max(1, round(n_training_cells / batch_size))
        epochs = min(250, max(10, round(self.training_steps / steps_per_epoch)))
        return batch_size, self.max_epochs or epochs


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Thesis section 0.3.2. What it leaves open is TabNet's own default.
        "thesis": Recipe(
            network=dict(n_d=8, n_a=8, n_steps=3, gamma=1.3),  # pytorch-tabnet's defaults
            optimizer=torch.optim.Adam,
            optimizer_params=dict(lr=0.01, weight_decay=1e-3),
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
            scheduler_params=dict(factor=0.75, patience=20),  # epochs of no better validation loss
            weight_classes=1,
            lambda_sparse=1e-3,  # pytorch-tabnet's default
            batch_size=32,  # "between 8 and 32 performed most effectively"
            max_epochs=500,
            patience=4,
            monitor="val_accuracy_micro",
            monitor_mode="max",
            gradient_clip_val=0.5,
        ),
        # One set for every dataset, chosen on training and validation cells alone.
        "default": Recipe(
            network=dict(
                n_models=4,  # answers averaged: better on all four tissues tried, benchmarks/RECIPE.md
                n_d=32,
                n_a=32,  # wider than TabNet's start: 8 leaves several classes unlearned
                n_steps=1,  # kept from the narrow masks, where three were no better; not tried anew
                n_shared=1,  # one gated layer before and after the mask: more of them memorise
                n_independent=0,
                mask_temperature=30.0,  # 150 to 400 genes per mask; at 10 genes accuracy is .16 lower
                rescale_masked=True,  # broad and narrow masks pass on values of one size
                fixed_scale=True,  # no noise of small batches, and rare genes stay as small as they are
                additive=True,  # what makes linear methods strong on small data
                gene_dropout=0.2,  # a class must be known by many genes, also where some are missing
            ),
            optimizer=torch.optim.Adam,
            optimizer_params=dict(lr=0.01, weight_decay=3e-3),  # thrice the thesis's: better on all tissues tried
            scheduler=torch.optim.lr_scheduler.OneCycleLR,  # warm-up, then down to nothing
            scheduler_params=dict(max_lr=0.01),
            weight_classes=1,  # gains most where many types are rare, and costs little where few types overlap
            logit_adjustment=4.0,  # a few cells are learned by heart, and others like them missed
            training_steps=1000,  # twice as many as simple data needs: many types and new regions gain
            best_epoch=False,  # after a learning rate of zero the last epoch is as good, and not chosen by chance
        ),
    }
)


def get_recipe(recipe: "str | Recipe") -> Recipe:
    """The recipe of that name, or the recipe itself.

    Raises
    ------
    UnknownNameError
        If no recipe has that name; the nearest are offered.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):  # changes of the default recipe
        default, changes = RECIPES["default"], dict(recipe)
        own = {name: changes.pop(name) for name in recipe if name in {item.name for item in fields(Recipe)}}
        return replace(default, network={**default.network, **changes}, **own)
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    return RECIPES[recipe]
