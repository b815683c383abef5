"""Pretrained encoders as files: one safetensors file, which is data and never runs code when it is opened."""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sims_kit.errors import ModelFileError, SettingError
from sims_kit.files import written_whole
from sims_kit.model.classifier import present_versions
from sims_kit.model.file import read_tensors
from sims_kit.model.file_check import check_entries, check_names, check_settings, read_header, read_index
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import Recipe
from sims_kit.model.trainer import plain_torch

FORMAT, FORMAT_VERSION = "sims_kit pretrained", 1
_KINDS = {"format_version": int, "genes": list, "network": dict, "provenance": dict}
_KINDS |= dict.fromkeys(("mask_share", "unexpressed"), int | float)


def save_pretrained(pretrained: MaskedPretraining, path: str | os.PathLike) -> Path:
    """Write weights, genes, settings and provenance of a pretrained encoder into one file, whole or not at all.

    Parameters
    ----------
    pretrained
        What `sims_kit.pretrain` gave.
    path
        Where to; by convention ``*.safetensors``. Missing folders are made.

    Returns
    -------
    pathlib.Path
        Where the file is.

    Raises
    ------
    SettingError
        If it was never trained, or `path` is a folder.
    """
    pretrained = fitted_pretrained(pretrained)
    path = Path(path).expanduser()
    if path.is_dir():
        raise SettingError(f"{str(path)!r} is a folder. Name a file, such as {str(path / 'encoder.safetensors')!r}.")
    header = {
        "format_version": FORMAT_VERSION,
        "genes": pretrained.genes,
        "network": pretrained.recipe.network_settings,
        "mask_share": pretrained.mask_share,
        "unexpressed": pretrained.unexpressed,
        "provenance": pretrained.provenance,
        "saved": date.today().isoformat(),
        "versions": present_versions(),
    }
    metadata = {"format": FORMAT, "header": json.dumps(header)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _named_tensors(pretrained).items()}
    with written_whole(path) as part:
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)  # safetensors writes for the owner alone; an encoder is there to be shared
    return path


@plain_torch()
def load_pretrained(path: str | os.PathLike) -> MaskedPretraining:
    """Read what `save_pretrained` wrote, on the CPU, ready for ``fit(..., pretrained=...)``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, was written by something else or by a newer version, or contradicts itself.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ModelFileError(f"{str(path)!r} is a folder. Expected a file that `save_pretrained` wrote.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}. `save_pretrained(pretrained, path)` writes one.")
    entries, texts = read_index(path)
    header = _header(texts, path)
    check_settings(header["network"], len(entries), path)
    try:
        with torch.device("meta"):  # shapes without memory
            check_entries(_named_tensors(_built(header)), entries, path)
    except (TypeError, KeyError, RuntimeError, OverflowError, SettingError) as error:
        raise ModelFileError(f"{str(path)!r} describes a network that cannot be built: {error}") from error
    pretrained = _built(header)
    own = _named_tensors(pretrained)
    for name, tensor in read_tensors(path, entries).items():
        own[name].data.copy_(tensor)
    pretrained.provenance = header["provenance"]
    return pretrained.eval()


def fitted_pretrained(pretrained: MaskedPretraining | str | os.PathLike) -> MaskedPretraining:
    """The pretrained encoder itself or the one in that file, provided that it was trained.

    Raises
    ------
    SettingError
        If it was not, or is something else.
    """
    if not isinstance(pretrained, MaskedPretraining | str | os.PathLike):
        raise SettingError(
            f"In the place of the pretrained encoder is an object of type {type(pretrained).__name__}. Expected what "
            "sims_kit.pretrain(cells) gave, or the path of its file."
        )
    pretrained = pretrained if isinstance(pretrained, MaskedPretraining) else load_pretrained(pretrained)
    if not pretrained.is_fitted:
        raise SettingError("The encoder was not pretrained yet. Call sims_kit.pretrain(cells).")
    return pretrained


def _header(texts: dict[str, str], path: Path) -> dict[str, Any]:
    header = read_header(texts, path, kind=FORMAT, versions=(FORMAT_VERSION,), required=_KINDS.keys())
    if wrong := [key for key, kind in _KINDS.items() if not isinstance(header[key], kind)]:
        raise ModelFileError(f"The header of {str(path)!r} gives {', '.join(wrong)} as another kind than is written.")
    check_names(header, "genes", path)
    return header


def _built(header: dict[str, Any]) -> MaskedPretraining:
    return MaskedPretraining(
        len(header["genes"]),
        genes=header["genes"],
        recipe=Recipe(**header["network"]),
        mask_share=header["mask_share"],
        unexpressed=header["unexpressed"],
    )


def _named_tensors(pretrained: MaskedPretraining) -> dict[str, torch.Tensor]:
    return {**dict(pretrained.named_parameters()), **dict(pretrained.named_buffers())}
