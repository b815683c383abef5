"""Lightning's trainer as SIMS uses it: seeded epochs, best weights, history, progress, resuming, several devices."""

import inspect
import logging
import os
import pickletools
import re
import signal
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors

from sims_kit.errors import ModelFileError, SettingError, UnknownNameError, refuse_unknown
from sims_kit.files import atomic_write, file_to_write
from sims_kit.model.recipe import Recipe
from sims_kit.progress import in_notebook, progress_bar
from sims_kit.text import warn

# Lightning's, on what is meant to be so; the last is about a training without validation cells
NOTES = ".*does not have many workers|.*isinstance.treespec|.*Checkpoint directory|Total length of `list` across ranks"
NOTES += "|It is recommended to use .self.log.*sync_dist"
SHOWN = {"val_loss": "loss", "val_accuracy_micro": "accuracy", "val_median_f1": "median F1"}  # next to the bar
# Public attributes of a trainer that decide a training's course
COURSE = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "max_epochs")
COURSE += ("max_steps", "limit_train_batches", "limit_val_batches", "check_val_every_n_epoch", "world_size")
# What Lightning's checkpoints call beside plain data; torch would allow more, such as bytearray(2**40)
PLAIN = r"collections OrderedDict|\w+ set|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage"
LOGGERS = {"csv": "CSVLogger", "tensorboard": "TensorBoardLogger", "wandb": "WandbLogger"}
WORLD_SIZE = ContextVar("processes of the trainer at work", default=1)  # torch's own process group outlives a training


class Module(pl.LightningModule):
    """What the classifier and the pretrained encoder share: recipe, genes, history, and checkpoints."""

    def __init__(self, recipe: Recipe, genes: list[str] | None, **hyperparameters):
        super().__init__()
        self.recipe, self.genes, self.history = recipe, genes, pd.DataFrame()
        self.provenance: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.hparams.update(recipe.plain() | hyperparameters)  # for loggers and Lightning's checkpoints

    @property
    def is_fitted(self) -> bool:
        """Whether its genes have names and its weights have seen a training batch."""
        norm = self.network.encoder.att_transformers[0].bn.bn
        return self.genes is not None and bool(norm.num_batches_tracked > 0)

    def setup(self, stage: str) -> None:
        """Take genes and provenance from the data module, and give it the recipe's batch size, where they are unset."""
        WORLD_SIZE.set(self.trainer.world_size)
        left = sorted(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        if left and isinstance(self.trainer, Trainer) and SLURMEnvironment.detect():
            raise SettingError(f"Under SLURM, Lightning would load {str(left[-1])!r} instead. Move it away.")
        for logger in self.trainer.loggers if stage == "fit" else ():
            logger.log_hyperparams(dict(self.hparams))
        if stage == "fit" and (module := getattr(self.trainer, "datamodule", None)) is not None:
            self.genes = self.genes or module.genes
            self.provenance.update(module.provenance)
            if getattr(module, "batch_size", 0) is None:
                module.batch_size, _ = self.recipe.schedule(len(module.split.train), n_devices=self.trainer.world_size)

    def configure_optimizers(self):
        """Make the recipe's optimiser and scheduler.

        A scheduler that takes `total_steps` or `T_max` gets the length of the training and moves each step; others
        move once an epoch, on the validation loss if they need a metric. `max_lr` is the optimiser's lr unless given.
        """
        recipe, params = self.recipe, dict(self.recipe.optimizer_params)
        if "fused" in inspect.signature(recipe.optimizer).parameters and self.device.type in ("cpu", "cuda"):
            # Four times as fast on a CPU; in half precision Lightning cannot clip the gradients of a fused optimiser.
            params = {"fused": self.trainer.precision == "32-true", **params}
        optimizer = recipe.optimizer(self.parameters(), **params)
        if recipe.scheduler is None:
            return optimizer
        options, params = inspect.signature(recipe.scheduler).parameters, dict(recipe.scheduler_params)
        length = {"total_steps", "T_max"} & set(options)
        params |= {name: int(self.trainer.estimated_stepping_batches) for name in length - set(params)}
        if "max_lr" in options:
            params.setdefault("max_lr", optimizer.param_groups[0]["lr"])
        scheduler = recipe.scheduler(optimizer, **params)
        setup = {"scheduler": scheduler, "interval": "step" if length else "epoch", "monitor": "val_loss"}
        return {"optimizer": optimizer, "lr_scheduler": setup}

    def diverged(self, found: str, batch_index: int) -> FloatingPointError:
        """The error that training stops with when the loss is no longer a number."""
        return FloatingPointError(
            f"{found} Training has diverged in batch {batch_index} of epoch {self.current_epoch}. Lower the learning "
            "rate, recipe=dict(optimizer_params={'lr': ...}), or look for extreme values in the input."
        )

    def on_train_epoch_end(self) -> None:
        """Add the epoch's metrics as a row of the history."""
        row = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        self.history = _history({**self.history.to_dict("index"), self.current_epoch: row})

    def facts(self) -> dict[str, Any]:
        """What belongs to the model beside its weights, as plain values and tensors."""
        return {"genes": self.genes, "history": self.history.to_dict("index"), "provenance": self.provenance}

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Restore what `facts` returned."""
        self.genes, self.history = facts["genes"], _history(facts["history"])
        self.provenance.update(facts["provenance"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the facts to Lightning's checkpoint."""
        checkpoint["sims_kit"] = self.facts()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the facts from Lightning's checkpoint."""
        self.set_facts(checkpoint["sims_kit"])

    def teardown(self, stage: str) -> None:
        """In the first of forked processes, keep the facts for the main one; Lightning itself returns the weights."""
        main, path = getattr(self.trainer, "main_process", (os.getpid(), None))
        if stage == "fit" and os.getpid() != main and self.trainer.is_global_zero:
            torch.save(self.facts(), path)


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


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning without its notes on hardware and its advice on loader workers; warnings of substance stay."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOTES)
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


class Trainer(pl.Trainer):
    """Lightning's trainer; `fit` resumes from `checkpoints`, keeps torch's global state, and can be interrupted."""

    validate, test = quiet_lightning()(pl.Trainer.validate), quiet_lightning()(pl.Trainer.test)
    predict, save_checkpoint = quiet_lightning()(pl.Trainer.predict), quiet_lightning()(pl.Trainer.save_checkpoint)

    def fit(self, model: Module, *arguments, ckpt_path=None, **settings) -> None:
        """Train, from a `ResumePoint` where there is one; Ctrl-C ends in `KeyboardInterrupt`."""
        handler = signal.getsignal(signal.SIGINT)
        for point in (callback for callback in self.callbacks if isinstance(callback, ResumePoint) and not ckpt_path):
            ckpt_path = point.find(self, model, settings.get("datamodule"))
            settings |= {"weights_only": True} if ckpt_path else {}
        try:
            with plain_torch(), quiet_lightning(), isolate_rng(), tempfile.TemporaryDirectory() as folder:
                self.main_process = os.getpid(), Path(folder, "facts.pt")
                super().fit(model, *arguments, ckpt_path=ckpt_path, **settings)
                if self.main_process[1].exists():
                    model.set_facts(torch.load(self.main_process[1], weights_only=True))
        except SystemExit as error:  # of Lightning, which ignores further interrupts: a notebook could not be stopped
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt("Training was interrupted.") from None


def make_trainer(recipe: Recipe, arguments: Mapping[str, Any]) -> Trainer:
    """A trainer that follows a recipe and the arguments of `fit`; where `max_epochs` is None, the caller sets it."""
    check_arguments(arguments)
    devices, has_validation = arguments["devices"], arguments["validation"] != 0
    plateau, scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau, recipe.scheduler
    is_watching = recipe.patience is not None or (isinstance(scheduler, type) and issubclass(scheduler, plateau))
    if is_watching and not has_validation:
        raise SettingError(
            f"The recipe watches validation cells ({recipe.monitor!r}), and validation=0 leaves none. Set "
            "validation=0.1, or use a recipe with patience=None and another scheduler."
        )
    callbacks = listed(arguments["callbacks"])
    is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    settings = {
        "gradient_clip_val": recipe.gradient_clip_val,
        "use_distributed_sampler": False,  # the data module deals the cells out, each once
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "num_sanity_val_steps": 0,  # the first epoch takes no longer
        "log_every_n_steps": 1,  # only epochs are logged; larger values make Lightning warn
        "max_epochs": arguments["max_epochs"] or 1,
        "plugins": [SLURMEnvironment(auto_requeue=False)] if is_slurm else None,  # else it writes hpc_ckpt_1.ckpt
        **_trainer_settings(arguments["trainer"] or {}),
    }
    callbacks.append(LambdaCallback(on_train_epoch_start=partial(_seed_epoch, arguments["seed"])))
    if arguments["verbose"]:
        callbacks.append(Progress())
    if arguments["checkpoints"]:
        callbacks.insert(0, ResumePoint(Path(arguments["checkpoints"]).expanduser().absolute()))
    if has_validation and recipe.best_epoch:
        callbacks.append(BestWeights(recipe.monitor, recipe.monitor_mode))
    if has_validation and recipe.patience is not None:
        callbacks.append(EarlyStopping(recipe.monitor, mode=recipe.monitor_mode, patience=recipe.patience))
    if devices in ("auto", None):  # one, unless torchrun or SLURM started several processes
        devices = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    logger = _make_logger(arguments["logger"], settings.get("default_root_dir") or ".")
    with quiet_lightning():
        return Trainer(devices=devices, callbacks=callbacks, logger=logger, **settings)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `fit` that are not of their kind, before any cells are read."""
    for name, (is_allowed, wanted) in CHECKS.items():
        if name in arguments and not is_allowed(arguments[name]):
            raise SettingError(f"{name}={arguments[name]!r}: give {wanted}.")


def _is_devices(value: Any) -> bool:
    if isinstance(value, list) or value == -1:  # GPUs by number, or all of them
        return torch.cuda.is_available()
    return value in ("auto", None) or (type(value) is int and value > 0)


def _are(kind: Any, value: Any) -> bool:
    return all(isinstance(one, kind) for one in listed(value))


def listed(value: Any) -> list:
    """A list of what is none, one or several."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


CHECKS = {  # of arguments: whether a value is allowed, and what to give instead
    "max_epochs": (lambda value: value is None or (type(value) is int and value > 0), "a whole number, 1 or more"),
    "seed": (lambda value: type(value) is int and 0 <= value <= 2**62, "a whole number, 0 or more, at most 2**62"),
    "devices": (_is_devices, "'auto', a number of GPUs or processes, or a list of GPUs that this machine has"),
    "loss": (lambda value: value is None or callable(value), "a function of logits and labels"),
    "callbacks": (lambda value: _are(Callback, value), "a callback of Lightning, or a list of them"),
    "logger": (lambda value: isinstance(value, str | bool) or _are(Logger, value), "a name, or a logger of Lightning"),
    "checkpoints": (lambda value: value is None or (value and isinstance(value, str | os.PathLike)), "a folder's path"),
    "verbose": (lambda value: isinstance(value, int | np.bool_), "True or False"),
    "trainer": (lambda value: isinstance(value, Mapping | None), "names and values, as {'precision': 'bf16-mixed'}"),
    "network": (lambda value: isinstance(value, Mapping | None), "names and values, as {'n_steps': 3}"),
}


def _trainer_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Other arguments of Lightning's trainer, checked; MPS, which has no sparse tensors, becomes the CPU."""
    hints = dict.fromkeys(("max_epochs", "devices", "callbacks", "logger"), "Pass it to the function itself.")
    hints["enable_progress_bar"] = "Pass verbose=False to the function itself."
    known = inspect.signature(pl.Trainer).parameters.keys() - hints.keys()
    refuse_unknown("Trainer", settings.keys() - known, sorted(known), hints)
    precision, accelerator = settings.get("precision"), settings.get("accelerator", "auto")
    if precision not in (None, 32, "32", "32-true", "bf16-mixed", "16-mixed"):
        raise SettingError(f"precision={precision!r}: choose one of '32-true', 'bf16-mixed', '16-mixed'.")
    if accelerator == "mps" or (accelerator in ("auto", "gpu") and torch.backends.mps.is_available()):
        warn("Training runs on the CPU: Apple's GPUs (MPS) do not support sparse tensors.")
        return {**settings, "accelerator": "cpu"}
    return dict(settings)


def _make_logger(logger: Any, folder: str | os.PathLike) -> Any:
    """The logger of that name, which writes into the folder; loggers that exist already, or False."""
    if not isinstance(logger, str):
        return logger or False
    if logger not in LOGGERS:
        raise UnknownNameError("logger", logger, LOGGERS)
    options = {"project": "sims_kit"} if logger == "wandb" else {}
    try:
        return getattr(pl.loggers, LOGGERS[logger])(save_dir=folder, **options)
    except ModuleNotFoundError as error:
        raise SettingError(f"{error}. Install what {logger!r} needs with: pip install 'sims_kit[tracking]'") from error


def _seed_epoch(seed: int, trainer: pl.Trainer, module: Module) -> None:
    """Seed an epoch by its number, so that a resumed run draws the same random numbers."""
    torch.manual_seed(seed + 1_000_003 * trainer.current_epoch)  # a prime: nearby seeds do not overlap


class BestWeights(Callback):
    """Keeps the weights of the best epoch, and puts them back when training ends."""

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.sign, self.score, self.weights = monitor, 1 if mode == "max" else -1, -inf, {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Copy the weights if the metric is better than ever; NaN is worse than any number."""
        if self.monitor not in trainer.callback_metrics:
            return
        score = (self.sign * trainer.callback_metrics[self.monitor]).nan_to_num(nan=-inf).item()
        if score > self.score or not self.weights:
            self.score = score
            self.weights = {name: tensor.cpu().clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Load the best epoch's weights."""
        if self.weights:
            pl_module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Let a checkpoint keep them."""
        return {"score": self.score, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them from a checkpoint."""
        self.score, self.weights = state["score"], state["weights"]


class Progress(Callback):
    """A bar over the epochs; without a terminal or notebook, one line per tenth of the training."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Draw the bar."""
        self.first, self.started = trainer.current_epoch, time.monotonic()
        self.bar = progress_bar(total=trainer.max_epochs - self.first, desc="training", unit="epoch", leave=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Move the bar, or print."""
        values = trainer.callback_metrics
        shown = {word: f"{values[name].item():.3f}" for name, word in SHOWN.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if not self.bar.disable or in_notebook() or not trainer.is_global_zero:
            return
        epoch, total = trainer.current_epoch, trainer.max_epochs
        if epoch == self.first:
            length = timedelta(seconds=round((time.monotonic() - self.started) * (total - epoch)))
            print(f"training {total - epoch} epochs takes about {length} (h:mm:ss)", flush=True)
        if (epoch + 1) * 10 // total > epoch * 10 // total:
            print(f"epoch {epoch + 1} of {total}", *(" ".join(pair) for pair in shown.items()), sep=", ", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Leave the bar standing."""
        self.bar.close()


class ResumePoint(Callback):
    """Keeps all that training needs to go on in one file, which is replaced at the start of every epoch.

    The order of the cells and the random numbers of an epoch follow from seed and epoch, class weights from the
    training cells. The checkpoint is read as plain data: one that holds anything else is refused.
    """

    def __init__(self, folder: Path):
        self.path, self.run = file_to_write(folder / "resume.ckpt"), {}  # Lightning calls its own last.ckpt

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Module) -> None:
        """Save at the start of each epoch, when the previous one is complete, including its scheduler's step."""
        trainer.fit_loop.restarting = False  # else a resumed run would skip this epoch's batches
        if trainer.current_epoch:
            with atomic_write(self.path) if trainer.is_global_zero else nullcontext(self.path) as part:
                trainer.save_checkpoint(part, weights_only=False)  # called by all processes, written by the first

    def state_dict(self) -> dict[str, Any]:
        """Keep what decides a training's course in the checkpoint."""
        return self.run

    def find(self, trainer: pl.Trainer, model: Module, module: pl.LightningDataModule) -> Path | None:
        """The checkpoint to resume from, or None; raises if it belongs to another training."""
        self.run, folder = _run(trainer, model, module), self.path.parent
        if not self.path.exists():
            return None
        try:
            states = read_checkpoint(self.path)["callbacks"]
            found, outside = dict(states[self.state_key]), [*_files_elsewhere(trainer, states)]
        except Exception as error:  # whatever damage makes of it
            found = f"{str(self.path)!r} is damaged or no checkpoint of such a training ({type(error).__name__})"
            raise ModelFileError(f"{found}. Remove it to start from the beginning, or name another folder.") from error
        if differing := [key for key, value in self.run.items() if found.get(key) != value]:
            raise SettingError(
                f"The training in {str(folder)!r} differs from this one in: {', '.join(differing)}. Call it with the "
                "same cells and settings to go on, or name another folder."
            )
        if outside:
            raise SettingError(f"{str(self.path)!r} names files outside its folders, which Lightning would delete.")
        return self.path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, as plain data that was not changed since it was written."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
        if size > path.stat().st_size or archive.testzip():
            raise ModelFileError("It is damaged: a part does not have the checksum or the size that it was saved with.")
        for pickled in (part for part in archive.namelist() if part.endswith("data.pkl")):
            named = {name for code, name, _ in pickletools.genops(archive.read(pickled)) if code.name == "GLOBAL"}
            if unknown := [name for name in named if not re.fullmatch(PLAIN, name)]:
                raise ModelFileError(f"It names {unknown[0]!r}, which is neither a tensor nor plain data.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _files_elsewhere(trainer: pl.Trainer, states: Mapping[str, Any]) -> Iterator[str]:
    """The files that a `ModelCheckpoint` would take from these states, and delete, outside its folder."""
    for callback in trainer.callbacks:
        state = states.get(callback.state_key, {}) if isinstance(callback, ModelCheckpoint) else {}
        at = Path(getattr(callback, "dirpath", None) or trainer.default_root_dir).resolve()
        named = [*state.get("best_k_models", ()), *(state[key] for key in state if key.endswith("_model_path"))]
        yield from (name for name in named if name and (at not in Path(name).resolve().parents or ".." in name))


def _run(trainer: pl.Trainer, model: Module, module: pl.LightningDataModule) -> dict[str, Any]:
    """What decides a training's course: cells, genes, classes, split, settings and length, as short plain values."""
    loader = module.train_dataloader()
    values = loader.dataset.rows(np.sort(loader.positions)[:64])  # another matrix or layer shows in a few cells
    return {
        "genes": joblib.hash(model.genes),
        "classes": "\n".join(module.classes),
        "cells and split": joblib.hash([module.labels, *module.split]),
        "values": joblib.hash([values.indices, values.data]),
        "class_weights": repr(getattr(model, "class_weights", torch.empty(0)).tolist()),
        "loss": loss_identity(getattr(model, "loss", None)),
        **{name: str(getattr(trainer, name)) for name in COURSE},
        "settings": repr(sorted(model.hparams.items())),
        "seed": module.seed,
        "batch_size": module.batch_size,
        "pretrained": repr(model.provenance.get("pretrained")),
    }


def loss_identity(loss: Any) -> str:
    """What tells a loss from others of its name, in every process: its code, and the values that it uses and holds."""
    parts = [loss, getattr(loss, "__module__", "")]
    if inspect.isfunction(loss):
        code = loss.__code__
        parts += [code.co_code, code.co_consts, code.co_names, loss.__defaults__, inspect.getclosurevars(loss)[:2]]
    elif isinstance(loss, torch.nn.Module):
        parts += [vars(module) for module in loss.modules()]
    return joblib.hash(re.sub(' at 0x[0-9a-f]+(, file ".*?", line [0-9]+)?', "", repr(parts)))


def has_others() -> bool:
    """Whether the trainer at work has several processes, whatever torch's process group is left from or for."""
    return WORLD_SIZE.get() > 1 and dist.is_available() and dist.is_initialized()


def gather_across_devices(tensor: Tensor, device: torch.device | str) -> list[Tensor]:
    """A tensor of every process, by rank; lengths may differ. `device` is the model's: GPUs send from their memory."""
    if not has_others():
        return [tensor]
    # nccl sends from GPUs only, also when Lightning has moved the model back
    sent = tensor.cuda() if dist.get_backend() == "nccl" else tensor.to(device)
    return [part.to(tensor.device) for part in gather_all_tensors(sent)]


def sum_across_devices(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The sum over processes, the same in each."""
    return torch.stack(gather_across_devices(tensor, device)).sum(0)


def average_statistics(network: torch.nn.Module) -> None:
    """Set the running statistics of every batch normalisation to their mean over the processes, in place."""
    for name, statistics in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            statistics.copy_(torch.stack(gather_across_devices(statistics, statistics.device)).mean(0))


def _history(rows: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("epoch")
