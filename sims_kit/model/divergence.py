"""When a loss is no longer a number: in which batch, with which cells, and why, as far as it can be told."""

from itertools import islice

import pytorch_lightning as pl
import torch
from torch import Tensor

SHOWN = 5  # cells named
EXTREME = 30.0  # log1p of 1e13: no logarithm of an expression value is above it


def divergence(model: pl.LightningModule, cells: Tensor, batch_index: int, found: Exception) -> FloatingPointError:
    """The error that training stops with.

    Parameters
    ----------
    model
        In training.
    cells
        The batch, shape (B, genes), dense or CSR.
    batch_index
        Its number in the epoch, from 0.
    found
        What was noticed.
    """
    names = _names(model._trainer, batch_index, len(cells))  # None where a step is tried by hand
    place = f"In batch {batch_index} of epoch {model.current_epoch}: {_listed(names)}."
    return FloatingPointError(f"{found} {place} {_cause(model, cells, names)}")


def _cause(model: pl.LightningModule, cells: Tensor, names: list[str]) -> str:
    if broken := [name for name, weights in model.named_parameters() if not torch.isfinite(weights).all()]:
        return (
            f"{len(broken)} of the model's weights, such as {broken[0]!r}, were NaN or infinite before this batch: the "
            "steps were too large. Lower the learning rate: model_params={'optimizer_params': {'lr': ...}}."
        )
    statistics_are_numbers = all(torch.isfinite(values).all() for values in model.network.buffers())
    if model._trainer is not None and not statistics_are_numbers:  # they are measured on all training cells
        n_cells, of = _spoiled(model._trainer)
        return (
            f"The mean or variance of the training cells is no number: {len(of)} of {n_cells:,} cells hold NaN or "
            f"infinite values: {_listed(of)}. Write 0 where nothing was found."
        )
    dense = cells.detach().to_dense()
    bad = (~torch.isfinite(dense)).any(1)
    if bad.any():
        of = [name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
        return f"{len(of)} of these cells hold NaN or infinite values: {_listed(of)}. Write 0 where nothing was found."
    largest = dense.max(1).values
    if largest.max() > EXTREME:
        worst = int(largest.argmax())
        return (
            f"The cell {names[worst]} holds the value {largest[worst]:.3g}, which is no logarithm of an expression "
            "value. Pass counts, or log-normalised values."
        )
    return (
        "Cells and weights are finite, so the steps are too large. Lower the learning rate: "
        "model_params={'optimizer_params': {'lr': ...}}."
    )


def _spoiled(trainer: pl.Trainer) -> tuple[int, list[str]]:
    """How many training cells there are, and the names of those that hold NaN or infinite values."""
    n_cells, names = 0, []
    for index, (cells, _) in enumerate(trainer.train_dataloader):
        bad = (~torch.isfinite(cells.to_dense())).any(1).tolist()
        names += [name for name, is_bad in zip(_names(trainer, index, len(cells)), bad, strict=True) if is_bad]
        n_cells += len(cells)
    return n_cells, names


def _names(trainer: pl.Trainer | None, batch_index: int, n_cells: int) -> list[str]:
    """Of the cells of a training batch: from the data module, else their positions, else their places in the batch."""
    try:
        loader = trainer.train_dataloader
        positions = next(islice(loader.batches(), batch_index, None))
        names = [repr(trainer.datamodule.cell_names[position]) for position in positions]
    except (AttributeError, TypeError, IndexError, StopIteration):  # a loader of one's own
        names = []
    return names if len(names) == n_cells else [f"number {place}" for place in range(n_cells)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"cells {', '.join(names[:SHOWN])}{more}"
