"""Models as files: one safetensors file, which is data and never runs code when it is opened.

Format version 6, for classifiers and pretrained encoders. The metadata holds ``format``, ``header`` (JSON: kind, genes,
classes, recipe, provenance, test metrics, versions, licence, notes) and ``sha256`` of header and tensors. The tensors
are those of the model's `state_dict`, layers that steps share once, and the calibration cells.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from itertools import islice, takewhile
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sims_kit.calibration import CalibrationCells
from sims_kit.datasets.fetch import fetch
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import ModelFileError, SettingError, SimsError, nearest
from sims_kit.files import atomic_write, file_to_write
from sims_kit.model.classifier import SIMSClassifier, present_versions
from sims_kit.model.novelty import Novelty
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import FIELDS, NETWORK_FIELDS, Recipe
from sims_kit.model.trainer import Module, plain_torch, read_checkpoint
from sims_kit.text import warn

READY = Path(__file__).resolve().parents[1] / "models"  # trained by tools/train_models.py, described in docs/models.md
FORMAT, VERSION = "sims_kit", 6
KINDS = {"classifier": SIMSClassifier, "pretrained encoder": MaskedPretraining}
METADATA = ("saved", "versions", "recipe", "gene_kind", "licence", "notes")  # of the header, kept in `model.metadata`
CELLS = tuple(f"calibration_cells.{name}" for name in CalibrationCells._fields)
OF_MODEL = (*NETWORK_FIELDS, "linear_share")  # settings that decide what a fitted model answers
MOST_TENSORS = 20_000  # a network of as many is built in seconds


@dataclass
class Header:
    """What a file says of its model beside the tensors; every entry is checked."""

    kind: str
    genes: list
    recipe: dict
    provenance: dict
    classes: list = field(default_factory=list)  # of classifiers, as the next
    test_metrics: dict | None = None
    mask_share: int | float | None = None  # of pretrained encoders, as the next
    unexpressed: int | float | None = None
    saved: str = ""  # early versions lack this and what follows
    versions: dict = field(default_factory=dict)
    gene_kind: str | None = None
    licence: str | None = None
    notes: str = ""
    format_version: int = VERSION
    history: dict = field(default_factory=dict)  # of checkpoints; files lack it

    def __post_init__(self):
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not isinstance(value, entry.type) or isinstance(value, bool):
                wanted = getattr(entry.type, "__name__", entry.type)
                raise SettingError(f"{entry.name} is {short(value)}, not {wanted}.")
        if self.kind not in KINDS:
            raise SettingError(f"The model is of kind {short(self.kind)}. {nearest('', KINDS)}")
        texts = {name: value for name, value in vars(self).items() if not isinstance(value, list)}
        try:  # in pieces: a list that holds another twice, many levels deep, has no end
            n_values = sum(1 for _ in islice(json.JSONEncoder().iterencode(texts), 10**6))
        except (TypeError, ValueError, RecursionError) as error:
            raise SettingError(f"Its recipe, provenance or metrics cannot be written as JSON: {error}.") from error
        if max(n_values, len(self.history) * len(set().union(*self.history.values()))) >= 10**6:
            raise SettingError("Its history, recipe, provenance or metrics have more than a million values.")
        for names, least in ((self.genes, 1), (self.classes, 2 if self.kind == "classifier" else 0)):
            if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names) or len(names) < least:
                raise SettingError(f"Genes or classes are {short(names)}; expected {least} or more names, each once.")


def save_model(model: Module, path: str | os.PathLike, *, licence: str | None = None, notes: str | None = None) -> Path:
    """Write a fitted classifier or a pretrained encoder into one file, with all that is known of it.

    The file, by convention ``*.safetensors``, appears whole or not at all: a full disk or an interruption leaves an
    older file of that name as it was. Missing folders are made. `licence` and `notes` say under which the model may be
    used, and what a user should know; when left out, they are those of the file it came from.

    >>> sk.save_model(model, "cortex.safetensors", licence="CC-BY-4.0", notes="Adult cortex only.")
    """
    if isinstance(path, Module):
        raise SettingError("In the path's place is a model. Mind the order: save_model(model, path).")
    model = fitted_model(model, kind=MaskedPretraining if isinstance(model, MaskedPretraining) else SIMSClassifier)
    path, facts = file_to_write(path), model.facts()
    if path.suffix == ".ckpt":
        raise SettingError(f"{str(path)!r} would be taken for a checkpoint of Lightning. End its name in .safetensors.")
    known, cells = model.metadata, facts.pop("calibration_cells", None)
    header = Header(
        **facts | {"history": {}},
        kind=next(kind for kind, of_kind in KINDS.items() if isinstance(model, of_kind)),
        recipe=known.get("recipe") or model.recipe.plain(),
        **{name: getattr(model, name, None) for name in ("mask_share", "unexpressed")},
        saved=date.today().isoformat(),
        versions=present_versions(),
        gene_kind=model.provenance.get("gene_kind", known.get("gene_kind")),
        licence=known.get("licence") if licence is None else licence,
        notes=known.get("notes", "") if notes is None else notes,
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _named_tensors(model).items()}
    tensors |= zip(CELLS, cells or (), strict=False)
    text = json.dumps(vars(header))
    with atomic_write(path) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "header": text, "sha256": digest(text, tensors)})
        part.chmod(0o644)  # safetensors writes for the owner alone; a model is there to be shared
    return path


@plain_torch()
def load_model(source: str | os.PathLike, *, known_hash: str | None = None) -> SIMSClassifier | MaskedPretraining:
    """Read a model that `save_model` wrote, on the CPU and ready to predict.

    `source` is a path, also of a ``.ckpt`` that Lightning wrote while a classifier was trained; a ready model,
    ``"human-blood"``, ``"human-pancreas"`` or ``"mouse-immune"``; or an address on the web, with `known_hash`, the
    file's SHA-256. No code in it is run, and memory grows with the file, not with what it claims.

    >>> model = sk.load_model("cortex.safetensors")
    >>> model = sk.load_model("https://example.org/cortex.safetensors", known_hash="sha256:5d41...")
    """
    path = _find(source, known_hash)
    read = _read_checkpoint if path.suffix == ".ckpt" else _read
    try:
        model = _built(*read(path))
    except Exception as error:  # whatever a file that is no model makes of it
        reason = str(error) if isinstance(error, SimsError) else f"{type(error).__name__}: {error}."
        found = f"{str(path)!r} cannot be read as a model. {reason[:300]}"
        way_out = "Only what `save_model` wrote can be read, and checkpoints of a SIMSClassifier (*.ckpt)."
        raise ModelFileError(f"{found} {way_out} Copy or download a damaged file again.") from error
    if read is _read_checkpoint and not model.novelty.is_measured:
        warn("This checkpoint is of a training that had not ended: it is not calibrated.")
    return model


def fitted_model(model: Any, kind: type = SIMSClassifier) -> Any:
    """The model, or the one that `load_model` finds under this path or name, provided it is of the kind and fitted."""
    model = getattr(model, "model_", model)  # of a fitted estimator
    found = load_model(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(found, kind):
        where = f"The file {str(model)!r} holds" if found is not model else "In the model's place is an object of type"
        raise SettingError(
            f"{where} {type(found).__name__}. Expected a {kind.__name__} or the path of one. Mind the order: "
            "annotate(query, model), explain(model, cells), save_model(model, path), fit(cells, label, pretrained=...)."
        )
    if not found.is_fitted:
        way = "fit(cells, label)" if kind is SIMSClassifier else "pretrain(cells)"
        raise SettingError(f"{kind.__name__} is not fitted. Fit it with sims_kit.{way} or trainer.fit(model, module).")
    return found


def _find(source: str | os.PathLike, known_hash: str | None) -> Path:
    """The file on this machine: named by its path, or downloaded by name or address."""
    if isinstance(source, str) and re.match("https?://", source):
        if not isinstance(known_hash, str) or not re.fullmatch("(sha256:)?[0-9a-fA-F]{64}", known_hash):
            raise SettingError(f"{known_hash=} for {source!r}: give the SHA-256 of the file, 64 hexadecimal digits.")
        sha256 = known_hash.removeprefix("sha256:").lower()
        return fetch(source, "models", DataFile(f"{sha256[:16]}.safetensors", (source,), sha256, None))
    path, ready = Path(source).expanduser(), {file.stem: file for file in READY.glob("*.safetensors")}
    if path.is_file():
        return path
    if str(source) in ready:
        return ready[str(source)]
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder. Expected a file that `save_model(model, path)` wrote.")
    found = f"There is no model file {str(path)!r}. `save_model(model, path)` writes one."
    raise FileNotFoundError(f"{found} Among ready models: {nearest(source, ready)}")


def _read(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    """Header and tensors of a file, whole as far as its hash says, and as the present version has them."""
    with safe_open(path, framework="pt") as file:
        texts, names = file.metadata() or {}, list(file.keys())
        if len(names) > MOST_TENSORS:
            raise ModelFileError(f"It holds {len(names):,} tensors, more than the {MOST_TENSORS:,} of any model.")
        if not texts.get("format", "").startswith(FORMAT):
            raise ModelFileError("It is a safetensors file, but not one that `save_model` wrote.")
        tensors = {name: file.get_tensor(name).clone() for name in names}  # else they change with the file
    entries = json.loads(texts["header"])
    version = entries.get("format_version") if isinstance(entries, dict) else None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ModelFileError(f"It has format version {short(version)}, not 1 to {VERSION}. Install a newer sims_kit.")
    if version >= 5 and texts.get("sha256") != digest(texts["header"], tensors):
        raise ModelFileError("It is damaged: its content does not have the SHA-256 that it was saved with.")
    if version < 5:
        entries, tensors = _from_earlier(entries, tensors, is_encoder=texts["format"] != FORMAT)  # theirs was their own
    if version < 6:
        tensors = _side_by_side(tensors) | {"network.genes": torch.arange(len(entries["genes"]))}
    return Header(**{entry.name: entries[entry.name] for entry in fields(Header) if entry.name in entries}), tensors


def _read_checkpoint(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    """Header and tensors of a checkpoint that Lightning wrote while a classifier was trained."""
    checkpoint = read_checkpoint(path)
    facts, state = checkpoint["sims_kit"], checkpoint["state_dict"]
    tensors = {name: state[name] for name in state if not name.startswith("loss.")}
    tensors |= zip(CELLS, facts.pop("calibration_cells") or (), strict=False)
    return Header(kind="classifier", recipe=dict(checkpoint["hyper_parameters"]), **facts), tensors


def digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of a text and of tensors, whatever their order."""
    hashed = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def _built(header: Header, tensors: dict[str, torch.Tensor]) -> SIMSClassifier | MaskedPretraining:
    """The model with these tensors, built without memory and filled once names, shapes and types agree."""
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in tensors.values()):
        raise ModelFileError("It has a tensor that claims more memory than its values take in the file.")
    cells = [tensors.pop(name) for name in CELLS if name in tensors]
    if unknown := header.recipe.keys() - set(FIELDS):
        raise SettingError(f"There is no setting {short(min(unknown))}.")
    recipe = Recipe(**{name: value for name, value in header.recipe.items() if name in OF_MODEL})
    n_layers = recipe.n_steps * (1 + recipe.n_independent + recipe.n_shared)
    if 5 * n_layers > len(tensors) or n_layers * recipe.n_models > MOST_TENSORS:  # each has a batch normalisation
        found = f"{n_layers:,} layers or more in {recipe.n_models:,} networks"
        raise SettingError(f"It has {found}, too many for {len(tensors):,} tensors.")
    n_genes, names = len(header.genes), dict(genes=header.genes, recipe=recipe)
    with torch.device("meta"):
        if header.kind == "classifier":
            model = SIMSClassifier(n_genes, len(header.classes), classes=header.classes, **names)
        else:
            model = MaskedPretraining(n_genes, mask_share=header.mask_share, unexpressed=header.unexpressed, **names)
    needed, state = _named_tensors(model), model.state_dict(keep_vars=True)
    if differing := sorted((needed.keys() - tensors.keys()) | (tensors.keys() - state.keys())):
        raise ModelFileError(f"It does not hold the tensors of its network; differing: {short(differing)}.")
    for name, tensor in needed.items():
        found, wanted = ((part.dtype, tuple(part.shape)) for part in (tensors[name], tensor))
        if found != wanted:
            raise ModelFileError(f"Its tensor {name!r} is {found}; the network needs {wanted}.")
        if not torch.isfinite(tensors[name]).all():
            raise ModelFileError(f"Its tensor {name!r} holds NaN or infinite values.")
    name_of = {id(tensor): name for name, tensor in needed.items()}
    model.load_state_dict({name: tensors[name_of[id(tensor)]] for name, tensor in state.items()}, assign=True)
    model.metadata = {name: getattr(header, name) for name in METADATA}
    if header.kind == "classifier":
        model.class_weights = torch.ones(len(header.classes))  # not part of the file
        _check_cells([tensor.numpy() for tensor in cells], len(header.classes))
    model.set_facts(vars(header) | {"calibration_cells": cells or None})
    return model.to("cpu").eval()  # Lightning still takes it to be on "meta"


def _named_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers that belong in a file; layers that steps share are there once."""
    stored = {name for name in model.state_dict() if name.split(".")[0] not in ("metrics", "loss")}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name in stored}


def _check_cells(parts: list[np.ndarray], n_classes: int) -> None:
    """Refuse calibration cells that lack a part or hold numbers out of range; models without validation cells pass."""
    fits = [part.dtype.kind for part in parts] == list("iffb") and {part.shape for part in parts} == {(parts[0].size,)}
    if fits and parts[0].size:
        labels, nonconformity, confidence, _ = parts
        in_range = (labels >= 0) & (labels < n_classes) & (confidence >= 0) & (confidence <= 1)
        fits = (in_range & np.isfinite(nonconformity)).all()
    if parts and not fits:
        raise ModelFileError("Its calibration cells lack a part, or hold numbers out of range.")


def _from_earlier(entries: dict[str, Any], tensors: dict[str, torch.Tensor], is_encoder: bool) -> tuple[dict, dict]:
    """Header and tensors of a file of version 1 to 4 (pretrained encoders: 1) as version 5 has them.

    Version 1 had no temperature; 2 no recipe; 3 another novelty score. In version 4, the logit adjustment was a part of
    the additive bias and stays there.
    """
    network, recipe = entries["network"], entries.get("recipe") or {}
    recipe = {name: value for name, value in recipe.items() if name != "network"} | network
    entries = entries | {"kind": "pretrained encoder" if is_encoder else "classifier", "recipe": recipe}
    names = {} if "n_models" in network else {r"^network\.": "network.members.0."}  # now an ensemble of one
    if not is_encoder:
        n_genes, n_classes = len(entries["genes"]), len(entries["classes"])
        if entries["format_version"] < 4 or not any(name.startswith("profiles.") for name in tensors):
            if 8 * n_genes * n_classes > 100 * sum(tensor.nbytes for tensor in tensors.values()):
                raise ModelFileError(f"It is too small for {n_genes:,} genes and {n_classes:,} classes.")
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("profiles.")}
            tensors |= {f"profiles.{name}": tensor for name, tensor in Novelty(n_genes, n_classes).state_dict().items()}
        temperature = entries["calibration"]["temperature"] if entries["format_version"] > 1 else 1.0
        if not isinstance(temperature, float) or not 1e-37 < temperature < 1e38:
            raise ModelFileError(f"Its temperature is {short(temperature)}, not a positive number of 32 bits.")
        tensors |= {"temperature": torch.tensor(temperature), "logit_adjustment": torch.zeros(n_classes)}
        names = {
            r"^(?!profiles\.|calibration\.|temperature$|logit_adjustment$)": "network.",
            r"^profiles\.": "novelty.",
            r"^calibration\.": "calibration_cells.",
            "strangeness": "nonconformity",
        } | names
    for pattern, new in names.items():
        tensors = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
    return entries, tensors


def _side_by_side(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file of version 5, where each network had its own, as version 6 has them."""
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("network.members.")}
    first = "network.members.0."
    for name in [name.removeprefix(first) for name in tensors if name.startswith(first)]:
        others = (tensors.get(f"network.members.{number}.{name}") for number in range(len(tensors)))
        parts = list(takewhile(lambda part: part is not None, others))
        if name.endswith(("num_batches_tracked", "initial_bn.scale", "initial_bn.shift")):
            found[f"network.{name}"] = parts[0]
        else:
            found[f"network.{name}"] = torch.cat(parts) if "bn." in name else torch.stack(parts)
    return found
