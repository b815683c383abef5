"""Settings of a network: which there are, of which kind, and what is wrong with given ones."""

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from sims_kit.model.network import TabNet

DEFAULTS: Mapping[str, Any] = {
    "n_models": 1,  # the `Ensemble`'s own
    **{name: option.default for name, option in list(inspect.signature(TabNet).parameters.items())[2:]},
}
LEAST = dict.fromkeys(("n_shared", "n_independent"), 0) | {"virtual_batch_size": 1}  # others: `TabNet` and `Ensemble`


def wrong_setting(settings: Mapping[str, Any]) -> str | None:
    """What is wrong with the first setting that is of another kind than `TabNet` takes, or None; names are known."""
    for name, value in settings.items():
        default = DEFAULTS[name]
        if default is None and value is None:
            continue
        kind = bool if isinstance(default, bool) else Integral if isinstance(default, int) else Real
        is_right = isinstance(value, bool) if kind is bool else isinstance(value, kind) and not isinstance(value, bool)
        if not is_right or not math.isfinite(value):
            wanted = {bool: "True or False", Integral: "a whole number", Real: "a number"}[kind]
            return f"{name} is {_short(value)}; give {wanted}."
        if value < LEAST.get(name, -math.inf):
            return f"{name} is {_short(value)}; give at least {LEAST[name]}."
    return None


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy as Python's, so that a file can hold them."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
