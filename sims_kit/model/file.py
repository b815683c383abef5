"""Models as files: one safetensors file, which is data and never runs code when it is opened.

Format version 5, for classifiers and pretrained encoders. The metadata holds ``format``, ``header`` (JSON: kind, genes,
classes, recipe, provenance, test metrics, versions, licence, notes) and ``sha256`` of header and tensors. The tensors
are those of the model's `state_dict`, layers that steps share once, and the calibration cells.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sims_kit.calibration import CalibrationCells
from sims_kit.datasets.fetch import fetch_address, fetch_model
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import ModelFileError, SettingError, nearest
from sims_kit.files import written_whole
from sims_kit.model.classifier import SIMSClassifier, present_versions
from sims_kit.model.novelty import Novelty
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import FIELDS, NETWORK_FIELDS, Recipe
from sims_kit.model.trainer import plain_torch

FORMAT, VERSION = "sims_kit", 5
KINDS = {"classifier": SIMSClassifier, "pretrained encoder": MaskedPretraining}
METADATA = ("saved", "versions", "recipe", "gene_kind", "licence", "notes")  # of the header, kept in `model.metadata`
CELLS = tuple(f"calibration_cells.{name}" for name in ("labels", "nonconformity", "confidence", "correct"))
ENTRIES = {  # of a header, and their types
    **dict.fromkeys(("kind", "saved", "notes"), str),
    **dict.fromkeys(("genes", "classes"), list),
    **dict.fromkeys(("recipe", "provenance", "versions"), dict),
    **dict(test_metrics=dict | None, licence=str | None, gene_kind=str | None),
    **dict.fromkeys(("mask_share", "unexpressed"), int | float | None),
}
EMPTY = {"saved": "", "notes": "", "versions": {}, "recipe": {}}  # entries that early versions lack


def save_model(
    model: SIMSClassifier | MaskedPretraining,
    path: str | os.PathLike,
    *,
    licence: str | None = None,
    notes: str | None = None,
) -> Path:
    """Write a model into one file, with all that is known of it.

    The file appears whole or not at all: a full disk or an interruption leaves an older file of that name as it was.

    Parameters
    ----------
    model
        A fitted classifier, or a pretrained encoder from `sims_kit.pretrain`.
    path
        By convention ``*.safetensors``. Missing folders are made.
    licence
        Under which the model may be used; that of the file it was loaded from when left out.
    notes
        Anything a user should know, as free text; likewise.

    Examples
    --------
    >>> sk.save_model(model, "cortex.safetensors", licence="CC-BY-4.0", notes="Adult cortex only.")
    PosixPath('cortex.safetensors')
    """
    model = fitted_model(model, kind=MaskedPretraining if isinstance(model, MaskedPretraining) else SIMSClassifier)
    path, given = _path(path), {"licence": licence, "notes": notes}
    for name, text in given.items():
        if not isinstance(text, str | None):
            raise SettingError(f"{name}={text!r}: give it as text.")
    if path.is_dir():
        raise SettingError(f"{str(path)!r} is a folder. Name a file, such as {str(path / 'model.safetensors')!r}.")
    known = getattr(model, "metadata", {}) | {name: text for name, text in given.items() if text is not None}
    metrics = getattr(model, "test_metrics", None)
    header = {
        "format_version": VERSION,
        "kind": next(kind for kind, of_kind in KINDS.items() if isinstance(model, of_kind)),
        "genes": model.genes,
        "classes": getattr(model, "classes", []),
        "recipe": known.get("recipe") or model.recipe.plain(),
        "mask_share": getattr(model, "mask_share", None),
        "unexpressed": getattr(model, "unexpressed", None),
        "provenance": model.provenance,
        "test_metrics": None if metrics is None else metrics.to_dict(),
        "saved": date.today().isoformat(),
        "versions": present_versions(),
        "gene_kind": model.provenance.get("gene_kind", known.get("gene_kind")),
        "licence": known.get("licence"),
        "notes": known.get("notes", ""),
    }
    _check_header(header, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _named_tensors(model).items()}
    for name, values in zip(CELLS, getattr(model, "calibration_cells", None) or (), strict=False):
        tensors[name] = torch.from_numpy(values)
    text = json.dumps(header)
    with written_whole(path) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "header": text, "sha256": _digest(text, tensors)})
        part.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
    return path


@plain_torch()
def load_model(source: str | os.PathLike, *, known_hash: str | None = None) -> SIMSClassifier | MaskedPretraining:
    """Read a model that `save_model` wrote, on the CPU and ready to predict.

    Shapes are compared before anything is built, so that memory grows with the file and not with its claims. No code of
    the file is run.

    Parameters
    ----------
    source
        A path; the name of a published model (`models:` in data_registry.yaml); an address on the web; or the path of a
        ``.ckpt`` that Lightning wrote while a classifier was trained.
    known_hash
        SHA-256 of the file, required for an address.

    Examples
    --------
    >>> model = sk.load_model("cortex.safetensors")
    >>> model = sk.load_model("https://example.org/cortex.safetensors", known_hash="sha256:5d41...")
    """
    path = _find(source, known_hash)
    if path.suffix == ".ckpt":
        return _from_checkpoint(path)
    header, tensors = _read(path)
    if header["format_version"] < VERSION:
        header, tensors = _from_earlier(header, tensors, path)
    _check_header(header, path)
    cells = [tensors.pop(name) for name in CELLS if name in tensors]
    model = _built(header, tensors, path)
    model.provenance = header["provenance"]
    if isinstance(model, SIMSClassifier):
        model.calibration_cells = _calibration_cells(cells, len(header["classes"]), path)
        model.metadata = {key: header[key] for key in METADATA if key in header}
        if header.get("test_metrics") is not None:
            model.test_metrics = pd.Series(header["test_metrics"], name="test")
    return model.eval()


def fitted_model(model: Any, kind: type = SIMSClassifier) -> Any:
    """The model, or the one that `load_model` finds under this path or name, provided it is of the kind and fitted."""
    found = load_model(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(found, kind):
        what = f"The file {str(model)!r} holds" if found is not model else "In the model's place is an object of type"
        raise SettingError(
            f"{what} {type(found).__name__}. Expected a {kind.__name__} or the path of one. Mind the order: "
            "annotate(query, model), explain(model, cells), save_model(model, path), fit(cells, label, pretrained=...)."
        )
    if not found.is_fitted:
        way = "sims_kit.fit(cells, label), or with trainer.fit(model, datamodule=module) on what generate_trainer gave"
        way = way if kind is SIMSClassifier else "sims_kit.pretrain(cells)"
        raise SettingError(f"The {kind.__name__} was not fitted yet. Fit it with {way}.")
    return found


def _path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise SettingError(
            f"In the path's place is an object of type {type(path).__name__}. Expected a text or a Path."
        )
    return Path(path).expanduser()


def _find(source: str | os.PathLike, known_hash: str | None) -> Path:
    """The file on this machine: named by its path, or downloaded by name or address."""
    if isinstance(source, str) and re.match("https?://", source):
        if not isinstance(known_hash, str) or not re.fullmatch("(sha256:)?[0-9a-fA-F]{64}", known_hash):
            raise SettingError(
                f"{source!r} is an address, and known_hash={known_hash!r}. Give the SHA-256 of the file as its author "
                "publishes it, 64 hexadecimal digits, so that another file is not mistaken for it."
            )
        return fetch_address(source, known_hash.removeprefix("sha256:").lower())
    path, published = _path(source), read_registry().models
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder. Expected a file that `save_model(model, path)` wrote.")
    if not path.is_file():
        if str(source) in published:
            return fetch_model(str(source))
        offered = f" Among published models: {nearest(source, published)}" if published else ""
        raise FileNotFoundError(f"There is no model file {str(path)!r}. `save_model(model, path)` writes one.{offered}")
    return path


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, whole as far as its hash says."""
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in names}  # else they change with the file
        header = json.loads(texts["header"]) if texts.get("format", "").startswith(FORMAT) else None
        digest = _digest(texts["header"], tensors) if "sha256" in texts else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelFileError(
            f"{str(path)!r} is not a whole model file ({_short(error)}). Copy or download it again. Only what "
            "`save_model` wrote can be opened, and checkpoints of Lightning (*.ckpt)."
        ) from error
    if header is None:
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but not one that `save_model` wrote.")
    version = header.get("format_version") if isinstance(header, dict) else None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ModelFileError(
            f"{str(path)!r} has format version {_short(version)}; this sims_kit reads versions 1 to {VERSION}. Install "
            "a newer sims_kit."
        )
    if texts["format"] != FORMAT:  # pretrained encoders had a format of their own, before version 5
        header["kind"] = "pretrained encoder"
    if version == VERSION and (digest is None or texts["sha256"] != digest):
        raise ModelFileError(
            f"{str(path)!r} is damaged: its content does not have the SHA-256 that it was saved with. Copy or download "
            "it again."
        )
    return header, tensors


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of header and tensors, whatever their order."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_header(header: dict[str, Any], path: Path) -> None:
    """Refuse a header that lacks an entry, or has one of another kind."""
    for key, kind in ENTRIES.items():
        if not isinstance(header.get(key), kind) or isinstance(header.get(key), bool):
            wanted = getattr(kind, "__name__", kind)
            raise ModelFileError(f"The header of {str(path)!r} gives {key} as {_short(header.get(key))}, not {wanted}.")
    if header["kind"] not in KINDS:
        raise ModelFileError(f"{str(path)!r} holds a model of kind {_short(header['kind'])}. {nearest('', KINDS)}")
    for what, least in (("genes", 1), ("classes", 2 if header["kind"] == "classifier" else 0)):
        names = header[what]
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names) or len(names) < least:
            raise ModelFileError(f"The header of {str(path)!r} does not list {least} or more {what}, each once.")
    for name, value in (header["test_metrics"] or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"The header of {str(path)!r} gives the metric {name!r} as {_short(value)}.")


def _built(header: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> SIMSClassifier | MaskedPretraining:
    """The model with these tensors, built without memory and filled once names, shapes and types agree."""
    try:
        if unknown := header["recipe"].keys() - set(FIELDS):
            raise SettingError(f"there is no setting {_short(min(unknown))}.")
        recipe = Recipe(**{name: value for name, value in header["recipe"].items() if name in NETWORK_FIELDS})
        n_layers = recipe.n_models * (recipe.n_steps * (1 + recipe.n_independent) + recipe.n_shared)
        if n_layers > len(tensors):
            raise SettingError(f"{n_layers:,} layers or more, and the file holds {len(tensors):,} tensors.")
        options = {"genes": header["genes"], "recipe": recipe}
        with torch.device("meta"):
            if header["kind"] == "classifier":
                sizes = len(header["genes"]), len(header["classes"])
                model = SIMSClassifier(*sizes, classes=header["classes"], **options)
            else:
                settings = {name: header[name] for name in ("mask_share", "unexpressed")}
                model = MaskedPretraining(len(header["genes"]), **settings, **options)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ModelFileError(f"{str(path)!r} describes a network that cannot be built: {_short(error)}") from error
    needed = _named_tensors(model)
    if needed.keys() != tensors.keys():
        differing = sorted(needed.keys() ^ tensors.keys())
        raise ModelFileError(f"{str(path)!r} does not hold the tensors of its network; differing: {differing[:3]}.")
    for name, tensor in needed.items():
        found, wanted = ((part.dtype, tuple(part.shape)) for part in (tensors[name], tensor))
        if found != wanted:
            raise ModelFileError(f"Tensor {name!r} of {str(path)!r} is {found}; its network needs {wanted}.")
        if not torch.isfinite(tensors[name]).all():
            raise ModelFileError(f"Tensor {name!r} of {str(path)!r} holds NaN or infinite values.")
    names = {id(tensor): name for name, tensor in needed.items()}
    state = {name: tensors[names[id(tensor)]] for name, tensor in model.state_dict(keep_vars=True).items()}
    model.load_state_dict(state, strict=True, assign=True)
    if header["kind"] == "classifier":
        model.class_weights = torch.ones(len(header["classes"]))  # not part of the file
    return model.to("cpu")  # where Lightning still takes it to be on "meta"


def _named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers that belong in a file; layers that steps share are there once."""
    stored = {name for name in model.state_dict() if name.split(".")[0] not in ("metrics", "loss")}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in stored}


def _calibration_cells(tensors: list[torch.Tensor], n_classes: int, path: Path) -> CalibrationCells | None:
    """From the tensors of a file; models without validation cells have none."""
    if not tensors:
        return None
    parts = [tensor.numpy() for tensor in tensors]
    fits = [part.dtype.kind for part in parts] == ["i", "f", "f", "b"] and parts[0].ndim == 1 and len(parts[0]) > 0
    if fits and len({part.shape for part in parts}) == 1:
        labels, nonconformity, confidence, _ = parts
        in_range = (labels >= 0) & (labels < n_classes) & (confidence >= 0) & (confidence <= 1)
        if (in_range & np.isfinite(nonconformity)).all():
            return CalibrationCells(*parts)
    raise ModelFileError(f"The calibration cells of {str(path)!r} lack a part, or hold numbers out of range.")


def _from_earlier(header: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> tuple[dict, dict]:
    """Header and tensors of a file of version 1 to 4 (pretrained encoders: 1) as version 5 has them.

    Version 1 had no temperature; 2 no recipe; 3 another novelty score. In version 4, the logit adjustment was a part of
    the additive bias and stays there.
    """
    try:
        is_encoder = header.get("kind") == "pretrained encoder"
        network, recipe = header["network"], header.get("recipe") or {}
        recipe = {name: value for name, value in recipe.items() if name != "network"} | network
        lacking = {name: None for name in ENTRIES if name not in header}
        header = {**lacking, **EMPTY, "kind": "classifier", "classes": [], **header, "recipe": recipe}
        single = {} if "n_models" in network else {r"^network\.": "network.members.0."}  # now an ensemble of one
        if is_encoder:
            return header, _renamed(tensors, single)
        n_genes, n_classes = len(header["genes"]), len(header["classes"])
        if header["format_version"] < 4 or not any(name.startswith("profiles.") for name in tensors):
            if 8 * n_genes * n_classes > 100 * path.stat().st_size:
                raise ValueError(f"it is too small for {n_genes:,} genes and {n_classes:,} classes")
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("profiles.")}
            tensors |= {f"profiles.{name}": tensor for name, tensor in Novelty(n_genes, n_classes).state_dict().items()}
        temperature = header["calibration"]["temperature"] if header["format_version"] > 1 else 1.0
        if not isinstance(temperature, float) or not 1e-37 < temperature < 1e38:
            raise ValueError(f"the temperature is {temperature!r}, not a positive number of 32 bits")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"The header of {str(path)!r} cannot be read: {_short(error)}") from error
    names = {
        r"^(?!profiles\.|calibration\.)": "network.",
        r"^profiles\.": "novelty.",
        r"^calibration\.": "calibration_cells.",
        "strangeness": "nonconformity",
    }
    tensors = _renamed(tensors, names | single)
    return header, tensors | {"temperature": torch.tensor(temperature), "logit_adjustment": torch.zeros(n_classes)}


def _renamed(tensors: dict[str, torch.Tensor], patterns: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors, their names changed by regular expressions, one after the other."""
    for pattern, name in patterns.items():
        tensors = {re.sub(pattern, name, old): tensor for old, tensor in tensors.items()}
    return tensors


def _from_checkpoint(path: Path) -> SIMSClassifier:
    """The classifier of a checkpoint that Lightning wrote; read without unpickling code."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return SIMSClassifier.from_checkpoint(checkpoint)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{str(path)!r} is not a checkpoint of a SIMSClassifier with its genes and classes ({_short(error)}). "
            "Models are kept with `save_model(model, path)`."
        ) from error


def _short(value: object) -> str:
    """What to show of a value from a file, which may be long."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
