"""Training that may be killed at any moment: checkpoints from which it goes on as if nothing had happened."""

import hashlib
import inspect
import os
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from sims_kit.errors import ModelFileError, SettingError
from sims_kit.files import make_folder, written_whole
from sims_kit.model.about import recipe_settings
from sims_kit.model.classifier import SIMSClassifier

NAME = "resume.ckpt"  # Lightning calls its own last.ckpt


class ResumePoint(Callback):
    """Keeps all that a training needs to go on, in one file that is replaced whole at the end of every epoch.

    Weights, temperature, optimiser, learning rate, counts of epochs and batches, best epoch and history. The order of
    the cells and the random numbers of an epoch follow from seed and epoch (`sims_kit.model.trainer.Reproducible`),
    class weights from the training cells, so that they need not be kept.

    Parameters
    ----------
    folder
        Where ``resume.ckpt`` and the best epoch's weights lie.
    run
        What a training must share with the one that goes on from it.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        self.path, self.run = folder / NAME, dict(run)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: SIMSClassifier) -> None:
        """Save before anything of the epoch has happened, and all of the last one has: the scheduler's step, too.

        From here on nothing is half done: while Lightning holds that it is restarting, it would skip the batches of
        this epoch, and a scheduler's step on the validation loss at its end.
        """
        trainer.fit_loop.restarting = False
        if not trainer.current_epoch:
            return
        with written_whole(self.path) if trainer.is_global_zero else nullcontext(self.path) as part:
            trainer.save_checkpoint(part)  # of all processes together, written by the first

    def state_dict(self) -> dict[str, Any]:
        """Kept in the checkpoint."""
        return self.run

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: SIMSClassifier, checkpoint: dict[str, Any]) -> None:
        """Add the epochs so far."""
        checkpoint["history"] = pl_module.history.to_dict("index")

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: SIMSClassifier, checkpoint: dict[str, Any]) -> None:
        """Bring back the epochs so far."""
        history = pd.DataFrame.from_dict(checkpoint["history"], orient="index")
        pl_module.history = history.rename_axis("epoch")


def keep_resume_point(
    trainer: pl.Trainer, model: SIMSClassifier, module: pl.LightningDataModule, folder: str | os.PathLike
) -> None:
    """Let a trainer keep a `ResumePoint`, and the best epoch's weights beside it, in a folder."""
    folder = Path(folder).expanduser().resolve()
    make_folder(folder)
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.dirpath = str(folder)
    trainer.callbacks.insert(0, ResumePoint(folder, run_of(model, module, trainer)))


def run_of(model: SIMSClassifier, module: pl.LightningDataModule, trainer: pl.Trainer) -> dict[str, Any]:
    """What decides a training's course: cells, genes, classes, split, settings and length, as short plain values."""
    positions = np.concatenate([module.labels, *module.split])
    return {
        "genes": _digest("\n".join(model.genes)),
        "classes": "\n".join(model.classes),
        "cells and split": _digest(positions.astype(np.int64).tobytes()),
        "settings": repr(sorted(recipe_settings(model).items())),
        "seed": module.seed,
        "batch_size": module.batch_size,
        "max_epochs": trainer.max_epochs,
        "pretrained": _digest_of_weights(model) if "pretrained" in model.provenance else "",
    }


def where_to_resume(trainer: pl.Trainer) -> dict[str, Any]:
    """What to pass to ``trainer.fit`` to go on where a killed training stopped; nothing when there is no such point.

    The checkpoint is read as plain data (`weights_only=True`): one that holds anything else is refused, and no code of
    it runs.

    Raises
    ------
    ModelFileError
        If it is damaged or no checkpoint of such a training.
    SettingError
        If it was made on other cells, with other settings, or in another folder.
    """
    point = next((callback for callback in trainer.callbacks if isinstance(callback, ResumePoint)), None)
    if point is None or not point.path.exists():
        return {}
    _check(point, trainer)
    takes_it = "weights_only" in inspect.signature(trainer.fit).parameters  # older Lightning reads it a second time as
    return {"ckpt_path": point.path, **({"weights_only": True} if takes_it else {})}  # what it is, checked above


def _check(point: ResumePoint, trainer: pl.Trainer) -> None:
    try:
        checkpoint = torch.load(point.path, map_location="cpu", weights_only=True)
        found = checkpoint["callbacks"][point.state_key]
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{str(point.path)!r} is damaged or no checkpoint of such a training ({type(error).__name__}). "
            "Remove it to start from the beginning, or name another folder."
        ) from error
    differing = [key for key, value in point.run.items() if found.get(key) != value]
    if differing:
        raise SettingError(
            f"The training in {str(point.path.parent)!r} differs from this one in: {', '.join(differing)}. Call it "
            "with the same cells and settings to go on, or name another folder."
        )
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            folder = checkpoint["callbacks"].get(callback.state_key, {}).get("dirpath", callback.dirpath)
            if folder != callback.dirpath:
                raise SettingError(f"The training in {str(point.path.parent)!r} began in {folder!r}. Move it back.")


def _digest_of_weights(model: SIMSClassifier) -> str:
    """Of what training starts from; random weights follow from the seed."""
    digest = hashlib.sha256()
    for weights in model.network.parameters():
        digest.update(weights.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
