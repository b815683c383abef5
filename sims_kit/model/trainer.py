"""Lightning's trainer as SIMS uses it: seeded epochs, the best or the last weights, one bar, a history, few words."""

import inspect
import logging
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng

from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model.recipes import Recipe
from sims_kit.progress import progress_bar

_LOGGERS = {
    "csv": partial(CSVLogger, name="lightning_logs"),  # Lightning's own name for this folder
    "tensorboard": partial(TensorBoardLogger, name="lightning_logs"),
    "wandb": partial(WandbLogger, project="sims_kit"),
}


@contextmanager
def plain_torch() -> Iterator[None]:
    """32-bit floats and gradients, whatever the caller has set: inference mode, no_grad or another default dtype."""
    dtype = torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


class Trainer(pl.Trainer):
    """Lightning's trainer, in which Ctrl-C ends in `KeyboardInterrupt`.

    Lightning turns it into `SystemExit` and ignores further interrupts, so that a notebook could no longer be stopped.
    """

    def fit(self, *args, **kwargs) -> None:
        """As Lightning's."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            with plain_torch():
                super().fit(*args, **kwargs)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt("Training was interrupted.") from None


def make_trainer(
    recipe: Recipe, settings: Mapping[str, Any], *, seed: int, logger: Logger | bool, has_validation: bool
) -> pl.Trainer:
    """A trainer that follows a recipe.

    Parameters
    ----------
    recipe
        Gives the gradient's largest norm, early stopping, and whether the best or the last epoch's weights stay.
    settings
        Arguments of `pytorch_lightning.Trainer`, which come first; `max_epochs` is among them.
    seed
        Of every epoch; the global random state is left alone.
    logger
        From `make_logger`.
    has_validation
        Whether there are validation cells to choose an epoch by.
    """
    settings = {
        "gradient_clip_val": recipe.gradient_clip_val,
        "use_distributed_sampler": False,  # the data module deals the cells out, each once
        "enable_model_summary": False,
        "log_every_n_steps": 1,  # only epochs are logged; larger values make Lightning warn
        **settings,
    }
    if logger is False and not has_validation:  # Lightning would leave its own checkpoints in the working folder
        settings.setdefault("enable_checkpointing", False)
    callbacks = settings.pop("callbacks", None) or []
    callbacks = [*callbacks] if isinstance(callbacks, list | tuple) else [callbacks]
    callbacks += _callbacks(recipe, seed, logger, settings, has_validation)
    with quiet_lightning():
        return Trainer(callbacks=callbacks, logger=logger, **settings)


def make_logger(logger: str | Logger | bool, settings: Mapping[str, Any]) -> Logger | bool:
    """The logger of that name, its files under the trainer's folder; one that is made already, or False, as it is.

    Raises
    ------
    UnknownNameError
        If no logger has that name.
    SettingError
        If it needs a package that is not installed.
    """
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


def optimisation(
    model: pl.LightningModule, optimizer: tuple[type, Mapping[str, Any]], scheduler: tuple[Callable, Mapping] | None
):
    """What `configure_optimizers` of a LightningModule gives: classes with their arguments, made for this training.

    A scheduler that takes `total_steps` or `T_max` is told the length of the training and moves each step, every other
    one moves once an epoch, on the validation loss if it needs a metric.
    """
    make, params = optimizer
    if "fused" in inspect.signature(make).parameters and model.device.type in ("cpu", "cuda"):
        half = model._trainer is not None and model.trainer.precision == "16-mixed"  # cannot be clipped when fused
        params = {"fused": not half, **params}  # four times as fast on a CPU
    optimizer = make(model.parameters(), **params)
    if scheduler is None:
        return optimizer
    make, params = scheduler
    length = {"total_steps", "T_max"} & set(inspect.signature(make).parameters)
    for name in length - set(params):
        params = {**params, name: int(model.trainer.estimated_stepping_batches)}
    scheduler = {"scheduler": make(optimizer, **params), "interval": "step" if length else "epoch"}
    if isinstance(scheduler["scheduler"], torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler["monitor"] = "val_loss"
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Reproducible(Callback):
    """Seeds every epoch by its number; the caller's random state, and warnings, are as before when training ends."""

    def __init__(self, seed: int):
        self.seed = seed
        self._isolated = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave out Lightning's notes, and put the caller's random state aside while training."""
        self._isolated.enter_context(quiet_lightning())
        if stage == "fit":
            self._isolated.enter_context(isolate_rng())

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch from a state that only seed and epoch decide, so that a resumed run is the same."""
        torch.manual_seed(self.seed + 1_000_003 * trainer.current_epoch)  # a prime: no overlap of nearby seeds

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
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

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning without its notes on hardware and its advice on loader workers; warnings of substance stay."""
    loggers = [logging.getLogger(f"pytorch_lightning.{part}") for part in ("utilities.rank_zero", "accelerators.cuda")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            ".*isinstance.treespec, LeafSpec.*",
            ".*Checkpoint directory.*",
            "Total length of `list` across ranks is zero",  # no validation cells
        ):
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


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
