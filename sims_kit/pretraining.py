"""Pretraining: cells without labels in, an encoder for `fit` to start from out (thesis section 0.2.4)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from anndata import AnnData
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from sims_kit.cells.datamodule import DataModule
from sims_kit.errors import refuse_unknown
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import Recipe, get_recipe
from sims_kit.model.trainer import plain_torch
from sims_kit.training import HINTS, assemble


@plain_torch()
def pretrain(
    data,
    *,
    recipe: str | Recipe | Mapping[str, Any] = "default",
    mask_share: float = 0.2,
    unexpressed: float = 3.0,
    orientation: str | Sequence[str] = "cells_by_genes",
    layer: str | None = None,
    groups: str | None = None,
    genes: str | Sequence[str] | AnnData = "intersection",
    validation: float = 0.1,
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
) -> MaskedPretraining:
    """Train an encoder on cells without labels, by hiding genes from it; ``fit(..., pretrained=...)`` starts from it.

    Parameters
    ----------
    data
        AnnData, a path, or a list of either. All cells are used, and labels are not looked at; a share of `validation`
        is held back to measure how well hidden genes are predicted.
    recipe
        As in `fit`, and the same as the classifier's; weight decay is left out.
    mask_share, unexpressed
        As in `MaskedPretraining`.
    orientation, layer, groups, genes, validation, batch_size, max_epochs, seed, devices, num_workers, backed, \
checkpoints, callbacks, logger, verbose, trainer
        As in `fit`.

    Returns
    -------
    MaskedPretraining
        In evaluation mode; `history` has the errors of every epoch.

    Examples
    --------
    >>> encoder = sk.pretrain([atlas, "more.h5ad"])
    >>> model = sk.fit(cells, "cell_type", pretrained=encoder)
    """
    settings = dict(locals())  # all arguments by name
    refuse_unknown("pretrain", settings.pop("unknown"), settings, HINTS)
    recipe = get_recipe(recipe).changed(
        optimizer_params={"weight_decay": 0.0},  # its pull is stronger than this loss's
        monitor="val_loss",  # there is no accuracy
        monitor_mode="min",
    )

    def make_model(module: DataModule) -> MaskedPretraining:
        hidden = dict(mask_share=mask_share, unexpressed=unexpressed)
        return MaskedPretraining(module.input_dim, genes=module.genes, recipe=recipe, **hidden)

    trainer, model, module = assemble(recipe, make_model, settings, data, test=0.0, labelled=False)
    trainer.fit(model, datamodule=module)
    return model.eval()
