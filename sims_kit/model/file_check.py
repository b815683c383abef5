"""What a model file claims, checked before anything is built or memory is taken for it.

A safetensors file is eight bytes that give the length of a JSON index, the index, and the bytes of its tensors. The
index has a text of our own, the header, which names genes, classes and network; these decide every tensor's shape.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sims_kit.errors import ModelFileError
from sims_kit.model.network import make_network
from sims_kit.model.network_settings import DEFAULTS, wrong_setting
from sims_kit.model.novelty import Novelty

LARGEST_INDEX = 2**24  # bytes: 60,000 genes need 1.2 million
WIDTHS = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}  # all that is written
PROFILES = "profiles."
LARGEST_PROFILES = 100  # times the file: what a model makes room for beside what its file holds


class Entry(NamedTuple):
    """A tensor as the index announces it."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_index(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors that a safetensors file announces, and its texts; nothing of the tensors is read.

    Raises
    ------
    ModelFileError
        If the file is cut short, its index is no JSON or longer than the file, or tensors overlap, leave gaps, or are
        of another type than models have.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(path, f"{size:,} bytes, of which its index alone claims {length:,}")
        if length > LARGEST_INDEX:
            raise _damaged(path, f"an index of {length:,} bytes, where {LARGEST_INDEX:,} are the most that is read")
        text = file.read(length)
    try:
        index = json.loads(text)
        texts = index.pop("__metadata__", None) or {}
        entries = {name: _entry(**announced) for name, announced in index.items()}
        places = sorted(tuple(announced["data_offsets"]) for announced in index.values())
        if not all(isinstance(place, int) and place >= 0 for pair in places for place in pair):
            raise ValueError("data_offsets that are no positions")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"an index that cannot be read, {_short(error)}") from error
    end = 0
    for start, stop in places:
        if start != end or stop < start:
            raise _damaged(path, f"a tensor from byte {start:,} to {stop:,} where one should start at {end:,}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"{size - 8 - length:,} bytes of tensors where its index announces {end:,}")
    announced = {name: stop - start for name, (start, stop) in ((n, e["data_offsets"]) for n, e in index.items())}
    for name, entry in entries.items():
        if math.prod(entry.shape) * entry.dtype.itemsize != announced[name]:
            raise _damaged(path, f"tensor {name!r} of {entry.shape} in {announced[name]:,} bytes")
    return entries, texts


def read_header(texts: dict[str, str], path: Path, *, kind: str, versions: Sequence[int], required: Collection[str]):
    """The header of a file of that kind, a dict with what is required and a version that can be read.

    Raises
    ------
    ModelFileError
        If it is of another kind or of a newer version, is damaged, or lacks something.
    """
    if not isinstance(texts, dict) or texts.get("format") != kind:
        raise ModelFileError(f"{str(path)!r} is a safetensors file, but not one of sims_kit's of the kind {kind!r}.")
    try:
        header = json.loads(texts["header"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"The header of {str(path)!r} cannot be read: {error!r}") from error
    if not isinstance(header, dict) or (missing := required - header.keys()):
        lacking = ", ".join(sorted(missing)) if isinstance(header, dict) else "everything: it is no mapping"
        raise ModelFileError(f"The header of {str(path)!r} lacks {lacking}.")
    if header["format_version"] not in versions:
        raise ModelFileError(
            f"{str(path)!r} has format version {header['format_version']!r}; this sims_kit reads versions "
            f"{versions[0]} to {versions[-1]}. Install a newer sims_kit."
        )
    return header


def check_names(header: dict[str, Any], kind: str, path: Path) -> None:
    """Refuse a header that does not list its ``"genes"`` or ``"classes"`` as texts, each once."""
    listed = header[kind]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ModelFileError(f"The header of {str(path)!r} does not list its {kind} as texts.")
    if len(set(listed)) != len(listed):
        raise ModelFileError(f"The header of {str(path)!r} names some of its {kind} twice.")


def check_plain(header: dict[str, Any], path: Path) -> None:
    """Refuse a header whose entries are of another kind than those that are written."""
    kinds = {"network": dict, "provenance": dict, "recipe": dict, "versions": dict, "saved": str, "notes": str}
    optional = {"test_metrics": dict, "licence": str, "gene_kind": str}
    for key, kind in (kinds | optional).items():
        found = header.get(key, kind())
        if not (isinstance(found, kind) or (key in optional and found is None)):
            raise ModelFileError(f"The header of {str(path)!r} gives {key} as {_short(found)}, not as {kind.__name__}.")
    for name, value in (header.get("test_metrics") or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"The header of {str(path)!r} gives the metric {name!r} as {_short(value)}.")


def check_tensors(header: dict[str, Any], entries: dict[str, Entry], extra: set[str], path: Path) -> None:
    """Refuse a file whose tensors are not those that its genes, classes and network need.

    Parameters
    ----------
    header
        With ``genes``, ``classes`` and ``network``.
    entries
        From `read_index`.
    extra
        Names of tensors that are no part of the network, and may be there.

    Raises
    ------
    ModelFileError
        The message names the first tensor that differs.
    """
    network = header["network"]
    check_settings(network, len(entries), path)
    try:
        with torch.device("meta"):  # shapes without memory
            sizes = len(header["genes"]), len(header["classes"])
            needed = named_tensors(make_network(*sizes, **network), Novelty(*sizes))
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise ModelFileError(f"{str(path)!r} describes a network that cannot be built: {_short(error)}") from error
    if not any(name.startswith(PROFILES) for name in entries):  # files of earlier versions
        needed = {name: tensor for name, tensor in needed.items() if not name.startswith(PROFILES)}
        if 8 * math.prod(sizes) > LARGEST_PROFILES * path.stat().st_size:
            raise ModelFileError(f"{str(path)!r} is too small for {sizes[0]:,} genes and {sizes[1]:,} classes.")
    check_entries(needed, {name: entry for name, entry in entries.items() if name not in extra}, path)


def check_entries(needed: Mapping[str, torch.Tensor], entries: Mapping[str, Entry], path: Path) -> None:
    """Refuse a file whose tensors have other names, shapes or types than those needed."""
    if needed.keys() != entries.keys():
        differing = sorted(needed.keys() ^ entries.keys())
        raise ModelFileError(f"{str(path)!r} does not hold the tensors of its network; differing: {differing[:3]}.")
    for name, tensor in needed.items():
        if entries[name] != Entry(tensor.dtype, tuple(tensor.shape)):
            raise ModelFileError(
                f"Tensor {name!r} of {str(path)!r} is {entries[name].shape} {entries[name].dtype}; its network needs "
                f"{tuple(tensor.shape)} {tensor.dtype}."
            )


def named_tensors(network: nn.Module, profiles: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors by the names that they have in a file; layers that steps share are there once."""
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return named | {f"{PROFILES}{name}": tensor for name, tensor in profiles.named_buffers()}


def check_settings(network: dict[str, Any], n_tensors: int, path: Path) -> None:
    """Each setting of the kind that `TabNet` takes, and no more layers than the file has tensors."""
    unknown = [name for name in network if name not in DEFAULTS]
    wrong = f"there is no setting {_short(unknown[0])}." if unknown else wrong_setting(network)
    if wrong:
        raise ModelFileError(f"{str(path)!r} describes a network that cannot be built: {wrong}")
    counts = {**DEFAULTS, **network}
    n_layers = counts["n_models"] * (counts["n_steps"] * (1 + counts["n_independent"]) + counts["n_shared"])
    if n_layers > n_tensors:
        raise ModelFileError(
            f"{str(path)!r} describes a network that cannot be built: its settings make {n_layers:,} layers or more, "
            f"and the file holds {n_tensors:,} tensors."
        )


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    if dtype not in WIDTHS:
        raise ValueError(f"a tensor of type {dtype!r}, none of {sorted(WIDTHS)}")
    if not all(type(length) is int and length >= 0 for length in shape) or len(data_offsets) != 2:
        raise ValueError(f"a tensor of shape {shape!r}")
    return Entry(WIDTHS[dtype], tuple(shape))


def _damaged(path: Path, found: str) -> ModelFileError:
    return ModelFileError(
        f"{str(path)!r} is not a whole safetensors file: it has {found}. Copy or download it again. Only what "
        "`save_model` wrote can be opened, no pickle and no checkpoint."
    )


def _short(value: object) -> str:
    """What to show of a value from a file, which may be long."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
