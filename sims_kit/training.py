"""Training: data and settings in, a fitted classifier out (thesis section 0.3.1)."""

import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng

from sims_kit.cells.datamodule import DataModule
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model.checkpoints import keep_resume_point, where_to_resume
from sims_kit.model.classifier import NETWORK_SETTINGS, SIMSClassifier
from sims_kit.model.recipes import Recipe, get_recipe
from sims_kit.progress import progress_bar

LARGEST_SEED = 2**62  # torch takes 64 bits, and epochs are seeded by sums
_DATA_SETTINGS = set(inspect.signature(DataModule).parameters) - {"datafiles", "labelfiles", "class_label", "seed"}
_TRAINER_SETTINGS = set(inspect.signature(pl.Trainer).parameters)
_MODEL_SETTINGS = {"network", "optimizer", "optimizer_params", "scheduler", "scheduler_params", "class_weights"}
_RECIPE_SETTINGS = {field.name for field in fields(Recipe)} - _MODEL_SETTINGS
_LOGGERS = {
    "csv": partial(CSVLogger, name="lightning_logs"),  # Lightning's own name for this folder
    "tensorboard": partial(TensorBoardLogger, name="lightning_logs"),
    "wandb": partial(WandbLogger, project="sims_kit"),
}


def generate_trainer(
    datafiles,
    labelfiles=None,
    class_label: str | None = None,
    *,
    recipe: str | Recipe = "default",
    model_params: Mapping[str, Any] | None = None,
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
        Any argument of `DataModule` (`orientation`, `keep`, `genes`, `batch_size`, `validation`, `test`, ...) and any
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
        If a setting is one of the model's; the message says where it goes.
    DataError, GeneError, LabelError
        As `DataModule` and `SIMSClassifier` raise them.
    """
    _check_values(settings, model_params, seed)
    model_params = dict(model_params or {})
    _check_names(settings, model_params)
    changes = {name: model_params.pop(name) for name in _RECIPE_SETTINGS & set(model_params)}
    recipe = replace(get_recipe(recipe), **changes)
    logger = _logger(logger, settings)
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
    epochs_given = "max_epochs" in settings
    settings.setdefault("max_epochs", epochs)
    settings.setdefault("use_distributed_sampler", False)  # the data module deals the cells out, each once
    settings.setdefault("gradient_clip_val", model.recipe.gradient_clip_val)
    settings.setdefault("enable_model_summary", False)
    settings.setdefault("log_every_n_steps", 1)  # only epochs are logged; larger values make Lightning warn
    callbacks = settings.pop("callbacks", None) or []
    callbacks = [*callbacks] if isinstance(callbacks, list | tuple) else [callbacks]
    callbacks += _callbacks(model.recipe, seed, logger, settings, has_validation=len(module.split.validation) > 0)
    with _quiet_lightning():
        trainer = pl.Trainer(callbacks=callbacks, logger=logger, **settings)
    if trainer.world_size > 1:
        epochs = _share_out(module, recipe, data_settings.get("batch_size"), trainer.world_size)
        if not epochs_given:
            trainer.fit_loop.max_epochs = epochs
    if checkpoints is not None:
        keep_resume_point(trainer, model, module, checkpoints)
    return trainer, model, module


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
        As in `generate_trainer`; `model_params`, `logger` and `checkpoints` too.

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
    with _quiet_lightning():
        trainer.fit(model, datamodule=module, **where_to_resume(trainer))
        if len(module.split.test):
            (metrics,) = trainer.test(model, datamodule=module, verbose=False)
            model.test_metrics = pd.Series({name.removeprefix("test_"): value for name, value in metrics.items()})
    return model.eval()


class Reproducible(Callback):
    """Seeds every epoch by its number, and gives the random state back to the caller when training ends."""

    def __init__(self, seed: int):
        self.seed = seed
        self._isolated = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the caller's random state aside."""
        if stage == "fit":
            self._isolated.enter_context(isolate_rng())

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch from a state that only seed and epoch decide, so that a resumed run is the same."""
        torch.manual_seed(self.seed + 1_000_003 * trainer.current_epoch)  # a prime: no overlap of nearby seeds

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the caller's random state back."""
        self._isolated.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the caller's random state back."""
        self._isolated.close()


class BestWeights(ModelCheckpoint):
    """Keeps the checkpoint of the best epoch and puts its weights back when training ends, if `put_back`."""

    def __init__(self, *, put_back: bool = True, **settings):
        super().__init__(**settings)
        self.put_back = put_back

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the best epoch's weights."""
        super().on_train_end(trainer, pl_module)
        if self.best_model_path and self.put_back:
            checkpoint = torch.load(self.best_model_path, map_location=pl_module.device, weights_only=True)
            pl_module.load_state_dict(checkpoint["state_dict"])


class History(Callback):
    """Collects every epoch's metrics in `model.history`."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: SIMSClassifier) -> None:
        """Add the epoch as a row."""
        row = {name: value.item() for name, value in trainer.callback_metrics.items()}
        earlier = pl_module.history.to_dict("index")
        history = pd.DataFrame.from_dict({**earlier, trainer.current_epoch: row}, orient="index")
        pl_module.history = history.rename_axis("epoch")


class TrainingProgress(ProgressBar):
    """One bar over the epochs, with validation loss, accuracy and median F1 beside it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        super().on_train_start(trainer, pl_module)
        self._bar = progress_bar(total=trainer.max_epochs, desc="training", unit="epoch", leave=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the bar."""
        shown = {"val_loss": "loss", "val_accuracy_micro": "accuracy", "val_median_f1": "median F1"}
        metrics = trainer.callback_metrics
        self._bar.set_postfix(
            {to: f"{metrics[name]:.3f}" for name, to in shown.items() if name in metrics}, refresh=False
        )
        self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the bar standing."""
        self._bar.close()


def _share_out(module: DataModule, recipe: Recipe, batch_size: int | None, n_devices: int) -> int:
    """Set the batch of each device, so that all together train as one does; returns the number of epochs."""
    together, epochs = recipe.schedule(len(module.split.train), batch_size and batch_size * n_devices)
    module.batch_size = batch_size or max(2, round(together / n_devices))
    return epochs


def _callbacks(
    recipe: Recipe, seed: int, logger: Logger | bool, settings: Mapping[str, Any], has_validation: bool
) -> list[Callback]:
    callbacks: list[Callback] = [Reproducible(seed), History()]
    if settings.get("enable_progress_bar", True) and not rank_zero_only.rank:
        callbacks.append(TrainingProgress())
    if has_validation and settings.get("enable_checkpointing", True) and not settings.get("fast_dev_run"):
        best = BestWeights(
            put_back=recipe.best_epoch,
            monitor=recipe.monitor,
            mode=recipe.monitor_mode,
            save_last=True,
            enable_version_counter=False,  # an epoch that is run again after a kill replaces its own file
        )
        if logger is False:  # no folder of the run's own, and runs side by side must not share one
            best.folder = tempfile.TemporaryDirectory(prefix="sims_kit_")  # goes with the callback
            best.dirpath = best.folder.name
        callbacks.append(best)
    if has_validation and recipe.patience is not None:
        callbacks.append(EarlyStopping(recipe.monitor, mode=recipe.monitor_mode, patience=recipe.patience))
    return callbacks


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


def _logger(logger: str | Logger | bool, settings: Mapping[str, Any]) -> Logger | bool:
    if not isinstance(logger, str):
        return logger
    if logger not in _LOGGERS:
        raise UnknownNameError("logger", logger, _LOGGERS)
    folder = Path(settings.get("default_root_dir") or ".")
    try:
        return _LOGGERS[logger](save_dir=folder)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"logger={logger!r} needs a package that is not installed ({error}). "
            "Install it with: pip install 'sims_kit[tracking]'"
        ) from error


@contextmanager
def _quiet_lightning():
    """Lightning without its notes on hardware and its advice on loader workers; warnings of substance stay."""
    loggers = [logging.getLogger(f"pytorch_lightning.{part}") for part in ("utilities.rank_zero", "accelerators.cuda")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*Checkpoint directory.*",
        ):
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
