"""Pretraining: cells without labels in, an encoder for `fit` to start from out (thesis section 0.2.4)."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from sims_kit.cells.datamodule import DataModule
from sims_kit.errors import UnknownNameError
from sims_kit.model.devices import Homecoming, is_forked
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipes import Recipe, get_recipe
from sims_kit.model.trainer import make_logger, make_trainer, plain_torch, quiet_lightning

_NOT_DATA = {"datafiles", "labelfiles", "class_label", "seed"}
_DATA_SETTINGS = set(inspect.signature(DataModule).parameters) - _NOT_DATA
_TRAINER_SETTINGS = set(inspect.signature(pl.Trainer).parameters)
_RECIPE_SETTINGS = {field.name for field in fields(Recipe)} - {"network"}


@plain_torch()
def pretrain(
    data,
    *,
    recipe: str | Recipe = "default",
    mask_share: float = 0.2,
    unexpressed: float = 3.0,
    seed: int = 0,
    model_params: Mapping[str, Any] | None = None,
    logger: str | Logger | bool = "csv",
    **settings,
) -> MaskedPretraining:
    """Train an encoder on cells without labels, by hiding genes from it and asking for them.

    ``fit(..., pretrained=...)`` starts a classifier from it.

    Parameters
    ----------
    data
        AnnData, a path, or a list of either, all of whose cells are used: labels are not looked at. The genes are those
        that all files have, or with ``genes="union"`` those that any has. A tenth of the cells is held back
        (`validation`) to tell how well hidden genes are found.
    recipe
        As in `fit`, and the same as the classifier's: network, optimiser (without weight decay), length.
    mask_share, unexpressed
        As in `MaskedPretraining`.
    seed
        Of the initial weights, of the order of the cells and of what is hidden.
    model_params
        ``"network"``, settings of the network that differ from the recipe's, and fields of `Recipe` that differ.
    logger, **settings
        As in `generate_trainer`: arguments of `DataModule` and of `pytorch_lightning.Trainer`.

    Returns
    -------
    MaskedPretraining
        In evaluation mode; `history` has the errors of every epoch. `save_pretrained` writes it into a file.

    Raises
    ------
    UnknownNameError
        If a setting does not exist; the nearest names are offered.
    DataError, GeneError, SettingError, FileNotFoundError
        As `DataModule` and `MaskedPretraining` raise them.
    """
    model_params = dict(model_params or {})
    _check_names(settings, model_params)
    network = model_params.pop("network", None)
    recipe = replace(get_recipe(recipe), **model_params)
    recipe = replace(
        recipe,
        optimizer_params={**recipe.optimizer_params, "weight_decay": 0.0},  # its pull is stronger than this loss's
        monitor="val_loss",  # there is no accuracy to go by
        monitor_mode="min",
    )
    logger = make_logger(logger, settings)
    data_settings = {name: settings.pop(name) for name in _DATA_SETTINGS & set(settings)}
    module = DataModule(data, seed=seed, labelled=False, **{"test": 0.0, **data_settings})
    module.batch_size, epochs = recipe.schedule(len(module.split.train), data_settings.get("batch_size"))
    settings.setdefault("max_epochs", epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedPretraining(
            module.input_dim,
            genes=module.genes,
            recipe=recipe,
            network=network,
            mask_share=mask_share,
            unexpressed=unexpressed,
        )
    has_validation = len(module.split.validation) > 0
    trainer = make_trainer(recipe, settings, seed=seed, logger=logger, has_validation=has_validation)
    if is_forked(trainer):
        trainer.callbacks.append(Homecoming(model))
    with quiet_lightning():
        trainer.fit(model, datamodule=module)
    return model.eval()


def _check_names(settings: Mapping[str, Any], model_params: Mapping[str, Any]) -> None:
    """Refuse settings that do not exist, before any file is read."""
    for names, known, kind in (
        (settings, _DATA_SETTINGS | _TRAINER_SETTINGS, "setting"),
        (model_params, _RECIPE_SETTINGS | {"network"}, "setting of the model"),
    ):
        for name in names:
            if name not in known:
                raise UnknownNameError(kind, name, sorted(known))
