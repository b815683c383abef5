"""Named errors. Each message says what was found, what was expected and what to do next."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class DataError(ValueError):
    """A file or matrix cannot be used: damaged, empty, turned, scaled, not finite."""


class GeneError(ValueError):
    """The genes of two inputs do not fit together."""


class LabelError(ValueError):
    """Labels are missing, of another length, or of too few classes."""


class SettingError(ValueError):
    """An argument has a value outside of what is allowed."""


class RegistryError(ValueError):
    """`data_registry.yaml` does not follow its schema; the message names entry and key."""


class ModelFileError(ValueError):
    """A model file is damaged, of another format, or contradicts itself."""


class PeerError(ValueError):
    """A peer of the benchmark cannot take this input, or its package is not there; never a score of 0."""


class FetchError(FileNotFoundError):
    """A dataset's file is neither in the cache nor to be had from its addresses."""


class UnknownNameError(KeyError):
    """A name (dataset, column, layer, recipe, ...) does not exist; the nearest ones are offered.

    Parameters
    ----------
    kind
        What the name stands for, as a noun: ``"dataset"``, ``"obs column"``.
    name
        The name that was asked for.
    options
        The names that exist.
    """

    def __init__(self, kind: str, name: object, options: Iterable[object]):
        self.kind, self.name, self.options = kind, name, [str(option) for option in options]
        super().__init__(f"There is no {kind} {name!r}. {nearest(name, self.options)}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return self.args[0]


def refuse_unknown(
    function: str,
    unknown: Iterable[str],
    known: Iterable[str],
    hints: Mapping[str, str] | None = None,
    *,
    kind="argument",
) -> None:
    """Raise for the first unknown name, with what to write instead if `hints` has it, else with the nearest names.

    >>> refuse_unknown("fit", {"epochs": 3}, ["max_epochs"], {"epochs": "Write max_epochs=..."})
    Traceback (most recent call last):
    sims_kit.errors.SettingError: fit has no argument 'epochs'. Write max_epochs=...
    """
    for name in unknown:
        if name in (hints or {}):
            raise SettingError(f"{function} has no {kind} {name!r}. {hints[name]}")
        raise UnknownNameError(f"{kind} of {function[0].lower() + function[1:]}", name, known)


def nearest(name: object, options: Iterable[object], n: int = 3) -> str:
    """A sentence that offers the `n` names most like `name`, or all of them when few."""
    options = [str(option) for option in options]
    if not options:
        return "None exist."
    by_lower_case = {option.lower(): option for option in options}
    close = [by_lower_case[match] for match in get_close_matches(str(name).lower(), by_lower_case, n=n, cutoff=0.5)]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, options[:12]))
    return f"Choose from: {shown}{', ...' if len(options) > 12 else ''}."
