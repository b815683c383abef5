"""Models as files: one safetensors file, which is data and never runs code when it is opened."""

import json
import os
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sims_kit.calibration import CalibrationCells
from sims_kit.errors import ModelFileError, SettingError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.recipes import Recipe

FORMAT, FORMAT_VERSION = "sims_kit", 2
READABLE = (1, 2)  # version 1 had no calibration
_REQUIRED = {"format_version", "genes", "classes", "network", "provenance", "test_metrics"}
_CELLS = {  # tensors that say what the validation cells were like; not in every file
    "calibration.labels": torch.int64,
    "calibration.strangeness": torch.float64,
    "calibration.confidence": torch.float64,
    "calibration.correct": torch.bool,
}


def save_model(model: SIMSClassifier, path: str | os.PathLike) -> Path:
    """Write weights, genes, classes, network settings, provenance and test metrics into one file.

    The file appears whole or not at all: it is written beside its place and then moved there, so that a full disk
    or an interruption leaves an older file of that name as it was.

    Parameters
    ----------
    model
        A fitted classifier.
    path
        Where to; by convention ``*.safetensors``. Missing folders are made.

    Returns
    -------
    pathlib.Path
        Where the file is.

    Raises
    ------
    SettingError
        If the model was never fitted, or `path` is a folder.
    """
    model = fitted_model(model)
    path = Path(path).expanduser()
    if path.is_dir():
        raise SettingError(f"{str(path)!r} is a folder. Name a file, such as {str(path / 'model.safetensors')!r}.")
    header = {
        "format_version": FORMAT_VERSION,
        "genes": model.genes,
        "classes": model.classes,
        "network": model.network_params,
        "calibration": {"temperature": model.temperature.item()},
        "provenance": model.provenance,
        "test_metrics": None if model.test_metrics is None else model.test_metrics.to_dict(),
        "saved": date.today().isoformat(),
        "versions": {package: version(package) for package in ("sims_kit", "torch", "pytorch-tabnet")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        metadata = {"format": FORMAT, "header": json.dumps(header, allow_nan=True)}
        save_file(_tensors(model), part, metadata=metadata)
        part.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_model(path: str | os.PathLike) -> SIMSClassifier:
    """Read a model that `save_model` wrote, on the CPU and ready to predict.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, was written by something else or by a newer version, or contradicts itself.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder. Expected a file that `save_model(model, path)` wrote.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no model file {str(path)!r}. `save_model(model, path)` writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file.metadata(), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ModelFileError(
            f"{str(path)!r} is not a whole safetensors file ({error}). Copy or download it again. Only what "
            "`save_model` wrote can be opened, no pickle and no checkpoint."
        ) from error
    try:
        model = SIMSClassifier(
            len(header["genes"]),
            len(header["classes"]),
            genes=header["genes"],
            classes=header["classes"],
            recipe=Recipe(network=header["network"]),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ModelFileError(f"{str(path)!r} describes a network that cannot be built: {error}") from error
    model.calibration_cells = _calibration_cells(tensors, len(model.classes), path)
    _fill(model, tensors, path)
    model.temperature.fill_(_temperature(header, path))
    model.provenance = header["provenance"]
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


def _tensors(model: SIMSClassifier) -> dict[str, torch.Tensor]:
    """The network's parameters and running statistics, layers that steps share once; profiles; calibration cells."""
    named = {**dict(model.network.named_parameters()), **dict(model.network.named_buffers())}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    cells = model.calibration_cells or ()
    if model.profiles.is_measured:
        tensors |= {f"profiles.{name}": tensor.cpu() for name, tensor in model.profiles.state_dict().items()}
    return tensors | {name: torch.from_numpy(values) for name, values in zip(_CELLS, cells, strict=False)}


def _header(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    if (metadata or {}).get("format") != FORMAT:
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but not one of sims_kit's.")
    try:
        header = json.loads(metadata["header"])
        missing = _REQUIRED - set(header)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"The header of {str(path)!r} cannot be read: {error!r}") from error
    if missing:
        raise ModelFileError(f"The header of {str(path)!r} lacks {', '.join(sorted(missing))}.")
    if header["format_version"] not in READABLE:
        raise ModelFileError(
            f"{str(path)!r} has format version {header['format_version']!r}; this sims_kit reads versions "
            f"{READABLE[0]} to {READABLE[-1]}. Install a newer sims_kit."
        )
    for names in ("genes", "classes"):
        listed = header[names]
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ModelFileError(f"The header of {str(path)!r} does not list its {names} as texts.")
        if len(set(listed)) != len(listed):
            raise ModelFileError(f"The header of {str(path)!r} names some of its {names} twice.")
    return header


def _temperature(header: dict[str, Any], path: Path) -> float:
    """The model's; files of version 1 have none, and their probabilities were the bare softmax."""
    if header["format_version"] == 1:
        return 1.0
    calibration = header.get("calibration")
    temperature = calibration.get("temperature") if isinstance(calibration, dict) else None
    if not isinstance(temperature, float) or not 0 < temperature < float("inf"):
        raise ModelFileError(
            f"The header of {str(path)!r} gives the temperature {temperature!r}, not a positive number."
        )
    return temperature


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
    if not len(in_range) or not (in_range & np.isfinite(cells.strangeness)).all():
        raise ModelFileError(f"The calibration cells of {str(path)!r} hold classes or numbers out of range.")
    return cells


def _fill(model: SIMSClassifier, tensors: dict[str, torch.Tensor], path: Path) -> None:
    own = {**dict(model.network.named_parameters()), **dict(model.network.named_buffers())}
    profiles = {f"profiles.{name}": tensor for name, tensor in model.profiles.named_buffers()}
    if profiles.keys() & tensors.keys():  # files of earlier versions have none
        own |= profiles
    if own.keys() != tensors.keys():
        differing = sorted(own.keys() ^ tensors.keys())
        raise ModelFileError(f"{str(path)!r} does not hold the tensors of its network; differing: {differing[:3]}.")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            raise ModelFileError(
                f"Tensor {name!r} of {str(path)!r} is {tuple(tensor.shape)} {tensor.dtype}; its network needs "
                f"{tuple(own[name].shape)} {own[name].dtype}."
            )
        if not torch.isfinite(tensor).all():
            raise ModelFileError(f"Tensor {name!r} of {str(path)!r} holds NaN or infinite values.")
        own[name].data.copy_(tensor)
