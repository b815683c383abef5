"""Recipes: every setting of a training run in one place, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from sims_kit.errors import UnknownNameError


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
    class_weights: bool = False  # weight the loss by inverse label frequency of the training cells
    label_smoothing: float = 0.0  # share of the target spread evenly over the classes
    lambda_sparse: float = 0.0  # weight of the masks' entropy in the loss
    batch_size: int = 64  # cells
    max_epochs: int | None = None  # None: chosen from `training_steps`
    training_steps: int = 1000  # optimiser steps aimed at, within 10 to 100 epochs
    patience: int | None = None  # epochs without a better `monitor` before stopping; None: never
    monitor: str = "val_loss"  # decides the best epoch
    monitor_mode: str = "min"
    gradient_clip_val: float = 0.5  # largest norm of the gradient

    def epochs(self, n_training_cells: int) -> int:
        """Number of epochs for a training set of that size."""
        if self.max_epochs is not None:
            return self.max_epochs
        steps_per_epoch = max(1, n_training_cells // self.batch_size)
        return min(100, max(10, round(self.training_steps / steps_per_epoch)))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Thesis section 0.3.2. What it leaves open is TabNet's own default.
        "thesis": Recipe(
            network=dict(n_d=8, n_a=8, n_steps=3, gamma=1.3),  # pytorch-tabnet's defaults
            optimizer=torch.optim.Adam,
            optimizer_params=dict(lr=0.01, weight_decay=1e-3),
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
            scheduler_params=dict(factor=0.75, patience=20),  # epochs of no better validation loss
            class_weights=True,
            lambda_sparse=1e-3,  # pytorch-tabnet's default
            batch_size=32,  # "between 8 and 32 performed most effectively"
            max_epochs=500,
            patience=4,
            monitor="val_accuracy_micro",
            monitor_mode="max",
            gradient_clip_val=0.5,
        ),
        "default": Recipe(
            network=dict(
                n_d=32,
                n_a=32,
                n_steps=3,
                mask_start=0.01,  # masks start broad, so that every gene can be learned from
                rescale_masked=True,
            ),
            optimizer=torch.optim.Adam,
            optimizer_params=dict(lr=0.01, weight_decay=1e-3),
            scheduler=torch.optim.lr_scheduler.OneCycleLR,
            scheduler_params=dict(max_lr=0.01),
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
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    return RECIPES[recipe]
