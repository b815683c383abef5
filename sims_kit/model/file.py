"""Models as files: one safetensors file, which is data and never runs code when it is opened."""

import json
import os
from collections.abc import Collection, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sims_kit.calibration import CalibrationCells
from sims_kit.errors import ModelFileError, SettingError
from sims_kit.files import written_whole
from sims_kit.model.about import present_versions, recipe_settings
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file_check import (
    PROFILES,
    check_names,
    check_plain,
    check_tensors,
    named_tensors,
    read_header,
    read_index,
)
from sims_kit.model.recipes import Recipe
from sims_kit.model.trainer import plain_torch

FORMAT, FORMAT_VERSION = "sims_kit", 4
# version 1 had no temperature; 2 neither recipe, kind of genes, licence nor notes; 3 another unseen score
READABLE = (1, 2, 3, 4)
_ABOUT = ("saved", "versions", "recipe", "gene_kind", "licence", "notes")  # of the header, kept in `model.about`
_REQUIRED = {"format_version", "genes", "classes", "network", "provenance", "test_metrics"}
_CELLS = {  # tensors that say what the validation cells were like; not in every file
    "calibration.labels": torch.int64,
    "calibration.strangeness": torch.float64,
    "calibration.confidence": torch.float64,
    "calibration.correct": torch.bool,
}


def save_model(
    model: SIMSClassifier, path: str | os.PathLike, *, licence: str | None = None, notes: str | None = None
) -> Path:
    """Write a model into one file, with all that is known of it.

    Weights, genes and classes; network, recipe, temperature and calibration cells; what it was trained on (names and
    hashes of the data, seed), test metrics, versions of the packages, date, licence and notes.

    The file appears whole or not at all: it is written beside its place and then moved there, so that a full disk
    or an interruption leaves an older file of that name as it was.

    Parameters
    ----------
    model
        A fitted classifier.
    path
        Where to; by convention ``*.safetensors``. Missing folders are made.
    licence
        Under which the model may be used, such as ``"CC-BY-4.0"``; that of the file it was loaded from when left out.
    notes
        Anything a user should know, as free text; likewise.

    Returns
    -------
    pathlib.Path
        Where the file is.

    Raises
    ------
    SettingError
        If the model was never fitted, `path` is a folder or no path, or licence or notes are no text.
    """
    model = fitted_model(model)
    path = _path(path)
    for name, text in (("licence", licence), ("notes", notes)):
        if not isinstance(text, str | None):
            raise SettingError(f"{name}={text!r}: give it as text.")
    if path.is_dir():
        raise SettingError(f"{str(path)!r} is a folder. Name a file, such as {str(path / 'model.safetensors')!r}.")
    header = {
        "format_version": FORMAT_VERSION,
        "genes": model.genes,
        "classes": model.classes,
        "network": model.network_params,
        "calibration": {"temperature": model.temperature.item(), "raised": model.raised.tolist()},
        "provenance": model.provenance,
        "test_metrics": None if model.test_metrics is None else model.test_metrics.to_dict(),
        "saved": date.today().isoformat(),
        "versions": present_versions(),
        "recipe": model.about.get("recipe") or recipe_settings(model),
        "gene_kind": model.provenance.get("gene_kind", model.about.get("gene_kind")),
        "licence": model.about.get("licence") if licence is None else licence,
        "notes": model.about.get("notes", "") if notes is None else notes,
    }
    check_plain(header, path)
    metadata = {"format": FORMAT, "header": json.dumps(header, allow_nan=True)}
    with written_whole(path) as part:
        save_file(_tensors(model), part, metadata=metadata)
        part.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
    return path


@plain_torch()
def load_model(path: str | os.PathLike) -> SIMSClassifier:
    """Read a model that `save_model` wrote, on the CPU and ready to predict.

    What the file says of its tensors is compared with what its genes, classes and network need before anything is
    built, so that memory grows with the file and not with its claims. No code of the file is run, nothing unpickled.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SettingError
        If `path` is no path, or an address on the web.
    ModelFileError
        If the file is damaged, was written by something else or by a newer version, or contradicts itself.
    """
    if isinstance(path, str) and path.startswith(("http://", "https://")):
        raise SettingError(f"{path!r} is an address. Download the file first: opening a model never uses the network.")
    path = _path(path)
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder. Expected a file that `save_model(model, path)` wrote.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no model file {str(path)!r}. `save_model(model, path)` writes one.")
    entries, texts = read_index(path)
    header = _header(texts, path)
    temperature, raised = _temperature(header, path), _raised(header, path)
    if header["format_version"] < 4:  # without the unseen score, which was another one
        entries = {name: entry for name, entry in entries.items() if not name.startswith(PROFILES)}
    check_tensors(header, entries, _CELLS.keys(), path)
    tensors = read_tensors(path, entries, not_checked=_CELLS)
    cells = _calibration_cells(tensors, len(header["classes"]), path)
    model = SIMSClassifier(
        len(header["genes"]),
        len(header["classes"]),
        genes=header["genes"],
        classes=header["classes"],
        recipe=Recipe(network=header["network"]),
    )
    own = named_tensors(model.network, model.profiles)
    for name, tensor in tensors.items():
        own[name].data.copy_(tensor)
    model.temperature.fill_(temperature)
    model.raised.copy_(raised)
    model.calibration_cells = cells
    model.provenance = header["provenance"]
    model.about = {key: header[key] for key in _ABOUT if key in header}
    if header["test_metrics"] is not None:
        model.test_metrics = pd.Series(header["test_metrics"], name="test")
    return model.eval()


def fitted_model(model: SIMSClassifier | str | os.PathLike) -> SIMSClassifier:
    """The model itself or the one in that file, provided that it was fitted.

    Raises
    ------
    SettingError
        If it was not, or is something else.
    """
    if not isinstance(model, SIMSClassifier | str | os.PathLike):
        raise SettingError(
            f"In the model's place is an object of type {type(model).__name__}. Expected a SIMSClassifier or the path "
            "of one. Mind the order: annotate(query, model), explain(model, cells), save_model(model, path)."
        )
    model = model if isinstance(model, SIMSClassifier) else load_model(model)
    if not model.is_fitted:
        raise SettingError(
            "The model was not fitted yet. Fit it with sims_kit.fit(cells, label), or with "
            "trainer.fit(model, datamodule=module) on what generate_trainer gave."
        )
    return model


def _path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise SettingError(
            f"In the path's place is an object of type {type(path).__name__}. Expected a text or a Path."
        )
    return Path(path).expanduser()


def _tensors(model: SIMSClassifier) -> dict[str, torch.Tensor]:
    """The network's parameters and running statistics, layers that steps share once; profiles; calibration cells."""
    named = named_tensors(model.network, model.profiles)
    if not model.profiles.is_measured:
        named = {name: tensor for name, tensor in named.items() if not name.startswith(PROFILES)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    cells = model.calibration_cells or ()
    return tensors | {name: torch.from_numpy(values) for name, values in zip(_CELLS, cells, strict=False)}


def _header(texts: dict[str, str], path: Path) -> dict[str, Any]:
    header = read_header(texts, path, kind=FORMAT, versions=READABLE, required=_REQUIRED)
    for names in ("genes", "classes"):
        check_names(header, names, path)
    if len(header["classes"]) < 2:
        raise ModelFileError(f"The header of {str(path)!r} names {len(header['classes'])} classes, not two or more.")
    check_plain(header, path)
    return header


def read_tensors(path: Path, names: Iterable[str], *, not_checked: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Tensors of a file, finite ones but for those that are not checked."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ModelFileError(f"{str(path)!r} is not a whole safetensors file ({error}). Download it again.") from error
    for name, tensor in tensors.items():
        if name not in not_checked and not torch.isfinite(tensor).all():
            raise ModelFileError(f"Tensor {name!r} of {str(path)!r} holds NaN or infinite values.")
    return tensors


def _temperature(header: dict[str, Any], path: Path) -> float:
    """The model's; files of version 1 have none, and their probabilities were the bare softmax."""
    if header["format_version"] == 1:
        return 1.0
    calibration = header.get("calibration")
    temperature = calibration.get("temperature") if isinstance(calibration, dict) else None
    single = torch.finfo(torch.float32)
    if not isinstance(temperature, float) or not single.tiny <= temperature <= single.max:
        raise ModelFileError(
            f"The header of {str(path)!r} gives the temperature {temperature!r}, not a positive number of 32 bits."
        )
    return temperature


def _raised(header: dict[str, Any], path: Path) -> torch.Tensor:
    """What the logits of each class were raised by; in files of earlier versions by nothing."""
    n_classes = len(header["classes"])
    if header["format_version"] < 4:
        return torch.zeros(n_classes)
    raised = header["calibration"].get("raised")
    if not isinstance(raised, list) or len(raised) != n_classes or not all(isinstance(by, float) for by in raised):
        raise ModelFileError(f"The header of {str(path)!r} does not give 'raised' as a number for each class.")
    raised = torch.tensor(raised, dtype=torch.float64)
    if not (raised.abs() < torch.finfo(torch.float32).max).all():
        raise ModelFileError(f"The header of {str(path)!r} gives numbers in 'raised' that 32 bits cannot hold.")
    return raised.float()


def _calibration_cells(tensors: dict[str, torch.Tensor], n_classes: int, path: Path) -> CalibrationCells | None:
    """Taken out of the tensors; files of earlier versions, and models without validation cells, have none."""
    found = {name: tensors.pop(name) for name in _CELLS if name in tensors}
    if not found:
        return None
    shape = next(iter(found.values())).shape
    for name, dtype in _CELLS.items():
        if name not in found or found[name].dtype != dtype or found[name].shape != shape or len(shape) != 1:
            raise ModelFileError(f"{str(path)!r} does not hold {name!r} as one {dtype} for each validation cell.")
    cells = CalibrationCells(*(found[name].numpy() for name in _CELLS))
    in_range = (cells.labels >= 0) & (cells.labels < n_classes) & (cells.confidence >= 0) & (cells.confidence <= 1)
    if not len(in_range) or not (in_range & np.isfinite(cells.nonconformity)).all():
        raise ModelFileError(f"The calibration cells of {str(path)!r} hold classes or numbers out of range.")
    return cells
