"""Training: data and settings in, a fitted classifier out (thesis section 0.3.1)."""

import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Integral
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.genes import ENOUGH, USABLE, GeneAlignment
from sims_kit.errors import GeneError, SettingError, UnknownNameError
from sims_kit.model.checkpoints import keep_resume_point, where_to_resume
from sims_kit.model.classifier import NETWORK_SETTINGS, SIMSClassifier
from sims_kit.model.devices import Homecoming, is_forked
from sims_kit.model.pretraining import MaskedPretraining, start_encoder
from sims_kit.model.pretraining_file import fitted_pretrained
from sims_kit.model.recipes import Recipe, get_recipe
from sims_kit.model.trainer import make_logger, make_trainer, plain_torch, quiet_lightning

LARGEST_SEED = 2**62  # torch takes 64 bits, and epochs are seeded by sums
_DATA_SETTINGS = set(inspect.signature(DataModule).parameters) - {"datafiles", "labelfiles", "class_label", "seed"}
_TRAINER_SETTINGS = set(inspect.signature(pl.Trainer).parameters)
_MODEL_SETTINGS = {"network", "optimizer", "optimizer_params", "scheduler", "scheduler_params", "class_weights"}
_RECIPE_SETTINGS = {field.name for field in fields(Recipe)} - _MODEL_SETTINGS


@plain_torch()
def generate_trainer(
    datafiles,
    labelfiles=None,
    class_label: str | None = None,
    *,
    recipe: str | Recipe = "default",
    model_params: Mapping[str, Any] | None = None,
    pretrained: MaskedPretraining | str | os.PathLike | None = None,
    logger: str | Logger | bool = "csv",
    checkpoints: str | os.PathLike | None = None,
    seed: int = 0,
    **settings,
) -> tuple[pl.Trainer, SIMSClassifier, DataModule]:
    """A trainer, a model and a data module that fit together; ``trainer.fit(model, datamodule=module)`` trains.

    Training stops early if the recipe says so, and ends with the weights of its best or last epoch, as the recipe says.

    Parameters
    ----------
    datafiles, labelfiles, class_label
        As in `DataModule`: paths or AnnData, one or many; label files, or None where labels are in `obs`.
    recipe
        ``"default"``, ``"thesis"`` (exactly the settings of section 0.3.2) or a `Recipe`.
    model_params
        Arguments of `SIMSClassifier` and fields of `Recipe` that differ from the recipe's, such as
        ``{"network": {"n_steps": 3}, "label_smoothing": 0.1}``.
    pretrained
        What `pretrain` gave, or its file: the encoder starts from it, not from random weights. Genes that it lacks
        start as usual.
    logger
        ``"csv"``, ``"tensorboard"``, ``"wandb"``, a Lightning logger, or False: then checkpoints, too, lie in a
        folder that goes when the run is over.
    checkpoints
        A folder of this training's own. A checkpoint of every epoch is kept there; if training is killed, the same call
        of `fit` goes on from it and ends with the same weights. With the two lines:
        ``trainer.fit(model, datamodule=module, **sims_kit.where_to_resume(trainer))``.
    seed
        Of the split, the initial weights and the order of the cells. The global random state is left alone.
    **settings
        Any argument of `DataModule` (`layer`, `groups`, `genes`, `batch_size`, `validation`, `test`, ...) and any
        of `pytorch_lightning.Trainer` (`max_epochs`, `accelerator`, `devices`, `callbacks`, ...). With several devices
        a `batch_size` is that of each; the recipe's own is shared out among them, so that training is the same.

    Returns
    -------
    tuple
        Trainer, `SIMSClassifier` and `DataModule`, in the thesis's order.

    Raises
    ------
    UnknownNameError
        If a setting belongs to neither; the nearest names are offered.
    SettingError
        If a setting is one of the model's; the message says where it goes. If the pretrained encoder's network has
        other settings.
    DataError, GeneError, LabelError
        As `DataModule` and `SIMSClassifier` raise them.
    """
    _check_values(settings, model_params, seed)
    model_params = dict(model_params or {})
    _check_names(settings, model_params)
    changes = {name: model_params.pop(name) for name in _RECIPE_SETTINGS & set(model_params)}
    recipe = replace(get_recipe(recipe), **changes)
    logger = make_logger(logger, settings)
    data_settings = {name: settings.pop(name) for name in _DATA_SETTINGS & set(settings)}
    module = DataModule(datafiles, labelfiles, class_label, seed=seed, **data_settings)
    module.batch_size, epochs = recipe.schedule(len(module.split.train), data_settings.get("batch_size"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SIMSClassifier(
            module.input_dim,
            module.output_dim,
            genes=module.genes,
            classes=module.classes,
            recipe=recipe,
            **model_params,
        )
    if pretrained is not None:
        _start(model, pretrained)
    epochs_given = "max_epochs" in settings
    settings.setdefault("max_epochs", epochs)
    has_validation = len(module.split.validation) > 0
    trainer = make_trainer(recipe, settings, seed=seed, logger=logger, has_validation=has_validation)
    if is_forked(trainer):
        trainer.callbacks.append(Homecoming(model))
    if trainer.world_size > 1:
        epochs = _share_out(module, recipe, data_settings.get("batch_size"), trainer.world_size)
        if not epochs_given:
            trainer.fit_loop.max_epochs = epochs
    if checkpoints is not None:
        keep_resume_point(trainer, model, module, checkpoints)
    return trainer, model, module


@plain_torch()
def fit(
    data,
    label: str | None = None,
    *,
    labelfiles=None,
    recipe: str | Recipe = "default",
    seed: int = 0,
    **settings,
) -> SIMSClassifier:
    """Train a classifier on labelled cells and return it.

    Parameters
    ----------
    data
        AnnData, a path, or a list of either. The cells are split into training, validation and test cells.
    label
        The `obs` column, or the column of the label files, that holds the labels.
    labelfiles, recipe, seed, **settings
        As in `generate_trainer`; `model_params`, `pretrained`, `logger` and `checkpoints` too.

    Returns
    -------
    SIMSClassifier
        In evaluation mode. `model.history` has every metric of every epoch, `model.test_metrics` those on the
        test cells, which nothing else has seen (None with ``test=0``).

    Raises
    ------
    DataError, GeneError, LabelError, SettingError, UnknownNameError
        As `generate_trainer` raises them, before training starts.
    """
    trainer, model, module = generate_trainer(data, labelfiles, label, recipe=recipe, seed=seed, **settings)
    with quiet_lightning():
        trainer.fit(model, datamodule=module, **where_to_resume(trainer))
        if len(module.split.test):
            (metrics,) = trainer.test(model, datamodule=module, verbose=False)
            model.test_metrics = pd.Series({name.removeprefix("test_"): value for name, value in metrics.items()})
    return model.eval()


def _share_out(module: DataModule, recipe: Recipe, batch_size: int | None, n_devices: int) -> int:
    """Set the batch of each device, so that all together train as one does; returns the number of epochs."""
    together, epochs = recipe.schedule(len(module.split.train), batch_size and batch_size * n_devices)
    module.batch_size = batch_size or max(2, round(together / n_devices))
    return epochs


def _start(model: SIMSClassifier, pretrained: MaskedPretraining | str | os.PathLike) -> None:
    """Let the encoder start from the pretrained one, each gene by its name."""
    pretrained = fitted_pretrained(pretrained)
    alignment = GeneAlignment(pretrained.genes, model.genes)
    coverage = alignment.coverage
    found = f"{coverage.n_matched:,} of the {coverage.n_model:,} genes of these cells ({coverage.fraction:.0%})"
    if coverage.fraction < USABLE:
        raise GeneError(
            f"The pretrained encoder knows {found}; at least {USABLE:.0%} are needed. Its genes are "
            f"{coverage.kind_query} ids such as {pretrained.genes[0]!r}; these are {coverage.kind_model} ids such as "
            f"{model.genes[0]!r}. Pretrain on cells with ids of this kind and species."
        )
    if coverage.fraction < ENOUGH:
        warnings.warn(f"The pretrained encoder knows {found}; the others start as usual.", stacklevel=4)
    start_encoder(model, pretrained, torch.from_numpy(alignment.places()))
    model.provenance["pretrained"] = pretrained.provenance


def _check_values(settings: Mapping[str, Any], model_params: Mapping[str, Any] | None, seed: int) -> None:
    """Refuse, before any file is read, values that would stop training later, or let it do nothing."""
    if not isinstance(model_params or {}, Mapping):
        raise SettingError(f"model_params={model_params!r}: give names and values, such as {{'label_smoothing': 0.1}}.")
    epochs = settings.get("max_epochs")
    if epochs is not None and (not isinstance(epochs, Integral) or (epochs < 1 and epochs != -1)):
        raise SettingError(f"max_epochs={epochs!r}: give a whole number of epochs, 1 or more.")
    if isinstance(seed, Integral) and seed > LARGEST_SEED:
        raise SettingError(f"seed={seed}: give a whole number from 0 to {LARGEST_SEED:,}.")


def _check_names(settings: Mapping[str, Any], model_params: Mapping[str, Any]) -> None:
    """Refuse settings that do not exist or stand in the wrong place, before any file is read."""
    for name in [*settings, *model_params]:
        if name in NETWORK_SETTINGS:
            way_out = f"model_params={{'network': {{{name!r}: ...}}}}"
            raise SettingError(f"{name} is a setting of the network: pass {way_out}.")
    of_data_and_trainer, of_model = _DATA_SETTINGS | _TRAINER_SETTINGS, _MODEL_SETTINGS | _RECIPE_SETTINGS
    for name in settings.keys() - of_data_and_trainer:
        if name in of_model:
            raise SettingError(f"{name} is a setting of the model: pass model_params={{{name!r}: ...}}.")
        raise UnknownNameError("setting", name, sorted(of_data_and_trainer))
    for name in model_params.keys() - of_model:
        raise UnknownNameError("setting of the model", name, sorted(of_model))
