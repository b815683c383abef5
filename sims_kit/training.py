"""Training: cells and a recipe in, a fitted classifier or pretrained encoder out (thesis sections 0.3.1 and 0.2.4)."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.genes import ENOUGH, USABLE, GeneAlignment
from sims_kit.errors import GeneError, refuse_unknown
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import digest, fitted_model
from sims_kit.model.pretraining import MaskedPretraining, check_settings, start_encoder
from sims_kit.model.recipe import HINTS, Recipe, get_recipe
from sims_kit.model.trainer import Trainer, make_trainer, plain_torch
from sims_kit.text import warn

NOT_OF_ENCODERS = ("labelfiles", "metrics", "loss", "class_weights", "pretrained", "test")


def fit(
    data,
    label: str | None = None,
    *,
    labelfiles=None,
    orientation: str | Sequence[str] = "cells_by_genes",
    layer: str | None = None,
    groups: str | None = None,
    genes: str | Sequence[str] | AnnData = "intersection",
    recipe: str | Recipe | Mapping[str, Any] = "default",
    metrics: Sequence | None = None,
    loss: Callable | None = None,
    class_weights: Sequence[float] | None = None,
    pretrained: MaskedPretraining | str | os.PathLike | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    seed: int = 0,
    devices: int | list[int] | str = "auto",
    num_workers: int = 0,
    backed: bool | str = "auto",
    checkpoints: str | os.PathLike | None = None,
    callbacks: Callback | list[Callback] | None = None,
    logger: str | Logger | bool | None = None,
    verbose: bool = True,
    trainer: Mapping[str, Any] | None = None,
    **unknown,
) -> SIMSClassifier:
    """Train a classifier on labelled cells and return it, ready to predict.

    `model.history` has all metrics of every epoch, `model.test_metrics` those on test cells, which nothing else saw.

    Parameters
    ----------
    data
        AnnData, a path, or a list of either. The cells are split into training, validation and test cells.
    label
        The `obs` column, or the column of the label files, that holds the labels.
    labelfiles, orientation, layer, groups, genes, validation, test, num_workers, backed
        As in `DataModule`.
    recipe
        ``"default"``, ``"thesis"`` (section 0.3.2), a `Recipe`, or a dict of settings that differ from the default's,
        such as ``dict(n_steps=3, label_smoothing=0.1)``.
    metrics, loss, class_weights
        As in `SIMSClassifier`.
    pretrained
        What `pretrain` returned, or its file: the encoder starts from it. Genes that it lacks start as usual.
    batch_size, max_epochs
        Cells per batch, on each device, and length of the training; None: as the recipe says.
    seed
        Of the split, the initial weights and the order of the cells. The global random state is left alone. Trainings
        in threads of one process share torch's random numbers and are not repeatable; use processes.
    devices
        Number of GPUs or processes, or a list of GPUs; ``"auto"``: one, or as many as torchrun or SLURM started.
    checkpoints
        A folder for this training alone. Every epoch is kept there; if training is stopped, the same call goes on from
        the last epoch and ends with the same weights.
    callbacks, logger
        Those of Lightning, or ``"csv"``, ``"tensorboard"`` or ``"wandb"`` for a logger; None: no logs.
    verbose
        Print what was found and show the progress.
    trainer
        Other arguments of `pytorch_lightning.Trainer`, such as ``dict(precision="bf16-mixed")``.

    Examples
    --------
    >>> cells = sk.datasets.simulate(n_cells=500)
    >>> model = sk.fit(cells, "cell_type", recipe=dict(n_steps=3))
    >>> model.test_metrics["median_f1"]
    """
    settings = dict(locals())  # all arguments by name
    refuse_unknown("fit", settings.pop("unknown"), settings, HINTS)
    data, label, labelfiles = (settings.pop(name) for name in ("data", "label", "labelfiles"))
    lightning, model, module = generate_trainer(data, labelfiles, label, **settings)
    lightning.fit(model, datamodule=module)
    return model.eval()


@plain_torch()
def generate_trainer(
    datafiles, labelfiles=None, class_label: str | None = None, **settings
) -> tuple[Trainer, SIMSClassifier, DataModule]:
    """A trainer, a model and a data module that fit together, as in the thesis; `settings` are all others of `fit`.

    >>> trainer, model, module = sk.generate_trainer(["a.h5ad", "b.h5ad"], class_label="cell_type", seed=1)
    >>> trainer.fit(model, datamodule=module)
    """
    settings = _settings(generate_trainer, settings, without=("labelfiles",))
    recipe = get_recipe(settings["recipe"])
    trainer, module = _assemble(recipe, settings, datafiles, labelfiles, class_label)
    names = dict(genes=module.genes, classes=module.classes)
    options = {name: settings[name] for name in ("class_weights", "metrics", "loss")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = SIMSClassifier(module.input_dim, module.output_dim, recipe=recipe, **names, **options)
    if settings["pretrained"] is not None:
        _start(model, fitted_model(settings["pretrained"], kind=MaskedPretraining))
    return trainer, model, module


@plain_torch()
def pretrain(
    data,
    *,
    recipe: str | Recipe | Mapping[str, Any] = "default",
    mask_share: float = 0.2,
    unexpressed: float = 3.0,
    **settings,
) -> MaskedPretraining:
    """Train an encoder on cells without labels, by hiding genes from it; ``fit(..., pretrained=...)`` starts from it.

    `data` and `recipe` are as in `fit`; all cells are used, labels are not looked at, and weight decay is left out.
    `mask_share` and `unexpressed` are as in `MaskedPretraining`, **settings as in `fit`, but for `test` and what
    concerns labels. A share of `validation` is held back to measure how well hidden genes are predicted.

    >>> encoder = sk.pretrain([atlas, "more.h5ad"])
    >>> model = sk.fit(cells, "cell_type", pretrained=encoder)
    """
    settings = _settings(pretrain, settings, without=NOT_OF_ENCODERS)
    # The pull of weight decay is stronger than this loss's, and there is no accuracy.
    is_chosen = isinstance(recipe, Recipe) or (isinstance(recipe, Mapping) and "training_steps" in recipe)
    length = {} if is_chosen else {"training_steps": 1000}  # hidden genes take longer to learn than labels
    recipe = get_recipe(recipe).changed(
        optimizer_params={"weight_decay": 0.0}, monitor="val_loss", monitor_mode="min", **length
    )
    trainer, module = _assemble(recipe, settings | {"test": 0.0}, data, labelled=False)
    hidden = dict(mask_share=mask_share, unexpressed=unexpressed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = MaskedPretraining(module.input_dim, genes=module.genes, recipe=recipe, **hidden)
    trainer.fit(model, datamodule=module)
    return model.eval()


def _settings(function: Callable, given: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """The given settings of `fit` and the defaults of the others; refuses those that the function does not take."""
    known = {name: default for name, default in fit.__kwdefaults__.items() if name not in without}
    own = [*inspect.signature(function).parameters][:-1]
    refuse_unknown(function.__name__, [name for name in given if name not in known], [*own, *known], HINTS)
    return known | given


def _assemble(recipe: Recipe, settings: Mapping[str, Any], *data, labelled: bool = True) -> tuple[Trainer, DataModule]:
    """Trainer and data module that follow a recipe and the settings of `fit`."""
    settings = {name: int(value) if isinstance(value, np.integer) else value for name, value in settings.items()}
    trainer = make_trainer(recipe, settings)
    of_data = settings.keys() & inspect.signature(DataModule).parameters
    module = DataModule(*data, labelled=labelled, **{name: settings[name] for name in of_data})
    module.batch_size, trainer.fit_loop.max_epochs = recipe.schedule(
        len(module.split.train), settings["batch_size"], settings["max_epochs"], trainer.world_size, module.output_dim
    )
    return trainer, module


def _start(model: SIMSClassifier, pretrained: MaskedPretraining) -> None:
    """Let the encoder start from the pretrained one, each gene by its name."""
    alignment = GeneAlignment(pretrained.genes, model.genes)
    coverage = alignment.coverage
    found = f"{coverage.n_matched:,} of the {coverage.n_model:,} genes of these cells ({coverage.fraction:.0%})"
    if coverage.fraction < USABLE:
        ids = f"It has ids such as {pretrained.genes[0]!r}, these cells {model.genes[0]!r}: pretrain on ids like these."
        raise GeneError(f"The pretrained encoder knows {found}; at least {USABLE:.0%} are needed. {ids}")
    if coverage.fraction < ENOUGH:
        warn(f"The pretrained encoder knows {found}; the others start as usual.")
    check_settings(model, pretrained)
    model.start = partial(start_encoder, model, pretrained, torch.from_numpy(alignment.places))
    model.provenance["pretrained"] = pretrained.provenance | {"weights": digest("", pretrained.network.state_dict())}
