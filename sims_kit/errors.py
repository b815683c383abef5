"""Named errors. Each message says what was found, what was expected and what to do next."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from sims_kit.text import printable


class SimsError(Exception):
    """The base class of all errors of sims_kit; names in a message cannot steer a terminal, and none fills it."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n", most=4000)


class DataError(SimsError, ValueError):
    """A file or matrix cannot be used: damaged, empty, turned, scaled, not finite."""


class GeneError(SimsError, ValueError):
    """The genes of two inputs do not fit together."""


class LabelError(SimsError, ValueError):
    """Labels are missing, of another length, or of too few classes."""


class SettingError(SimsError, ValueError):
    """An argument has a value that is not allowed."""


class RegistryError(SimsError, ValueError):
    """`data_registry.yaml` does not follow its schema; the message names entry and key."""


class ModelFileError(SimsError, ValueError):
    """A model file is damaged, of another format, or contradicts itself."""


class FetchError(SimsError, FileNotFoundError):
    """A dataset's file is not in the cache, and no address delivers it."""


class UnknownNameError(SimsError, KeyError):
    """A name (dataset, column, layer, recipe, ...) does not exist; the message offers the nearest ones."""

    def __init__(self, kind: str, name: object, options: Iterable[object]):
        super().__init__(kind, name, [str(option) for option in options])

    def __str__(self) -> str:
        kind, name, options = self.args
        return printable(f"There is no {kind} {name!r}. {nearest(name, options)}", keep="\n", most=4000)


def refuse_unknown(
    function: str, unknown: Iterable[str], known: Iterable[str], hints: Mapping | None = None, *, kind: str = "argument"
) -> None:
    """Raise for the first unknown name, with what to write instead if `hints` has it, else with the nearest names."""
    for name in unknown:
        if hints and name in hints:
            raise SettingError(f"{function} has no {kind} {name!r}. {hints[name]}")
        raise UnknownNameError(f"{kind} of {function[0].lower() + function[1:]}", name, known)


def nearest(name: object, options: Iterable[object]) -> str:
    """A sentence that offers the three names most like `name`, or the first 12 names when none is like it."""
    options = [str(option) for option in options]
    if not options:
        return "None exist."
    by_lower_case = {option.lower(): option for option in options}
    close = [by_lower_case[match] for match in get_close_matches(str(name).lower(), by_lower_case)]
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, options[:12]))
    return f"Choose from: {shown}{', ...' if len(options) > 12 else ''}."
