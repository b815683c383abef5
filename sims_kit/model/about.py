"""A model in words: what `repr` shows and what its file says of how it was made."""

import textwrap
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims_kit.model.classifier import SIMSClassifier

PACKAGES = ("sims_kit", "torch", "pytorch-tabnet", "pytorch-lightning")
SHOWN = {"accuracy_micro": "accuracy", "median_f1": "median F1", "f1_macro": "macro F1"}  # of the test metrics


def recipe_settings(model: "SIMSClassifier") -> dict[str, Any]:
    """Every setting of a model's training as plain values: those of its recipe, with the optimiser it really had."""
    settings = {field.name: _plain(getattr(model.recipe, field.name)) for field in fields(model.recipe)}
    for kind, choice in (("optimizer", model.optimizer_choice), ("scheduler", model.scheduler_choice)):
        make, params = choice or (None, {})
        settings |= {kind: _plain(make), f"{kind}_params": _plain(params)}
    return settings | {"network": _plain(model.network_params)}


def present_versions() -> dict[str, str]:
    """The versions of the packages that decide what a model answers."""
    return {package: version(package) for package in PACKAGES}


def summary(model: "SIMSClassifier") -> str:
    """What a model is, in a few lines: classes, genes, network, training data, test metrics, date and licence."""
    kind = model.about.get("gene_kind")
    size = f"{model.input_dim:,} genes{f' ({kind})' if kind else ''} to {model.output_dim:,} classes"
    lines = {
        "classes": ", ".join(model.classes or ()),
        "network": ", ".join(f"{name}={value}" for name, value in model.network_params.items()),
        "trained on": _trained_on(model.provenance),
        "calibrated": _calibration(model),
        "test cells": _metrics(model.test_metrics),
        "saved": _saved(model.about),
        "notes": model.about.get("notes", ""),
    }
    told = [f"  {name:10} {textwrap.shorten(text, 100, placeholder=' ...')}" for name, text in lines.items() if text]
    return "\n".join([f"SIMSClassifier, {'fitted' if model.is_fitted else 'not fitted'}: {size}", *told])


def _trained_on(provenance: Mapping[str, Any]) -> str:
    files = provenance.get("files")
    files = [file if isinstance(file, Mapping) else {"file": file} for file in files] if isinstance(files, list) else []
    cells = provenance.get("cells")
    parts = [f"{n:,} {part}" for part, n in cells.items()] if isinstance(cells, Mapping) else []
    told = [
        ", ".join(str(file.get("dataset") or file.get("file", "")) for file in files),
        f"cells: {', '.join(parts)}" if parts else "",
        f"seed {provenance['seed']}" if "seed" in provenance else "",
    ]
    return "; ".join(filter(None, told))


def _calibration(model: "SIMSClassifier") -> str:
    cells = model.calibration_cells
    if not model.is_fitted:
        return ""
    return f"temperature {model.temperature.item():.3g}" + (f", on {len(cells.labels):,} cells" if cells else "")


def _metrics(metrics: Mapping[str, float] | None) -> str:
    return ", ".join(f"{SHOWN[name]} {metrics[name]:.3f}" for name in SHOWN if metrics is not None and name in metrics)


def _saved(about: Mapping[str, Any]) -> str:
    made_with = about.get("versions", {}).get("sims_kit")
    told = [
        about.get("saved", ""),
        f"by sims_kit {made_with}" if made_with else "",
        f"licence {about['licence']}" if about.get("licence") else "",
    ]
    return ", ".join(filter(None, told))


def _plain(value: object) -> Any:
    """As JSON has it; classes and functions by their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", None) or repr(value)
