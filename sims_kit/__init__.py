"""sims_kit: label single cells with SIMS, an interpretable neural network, and learn how it works.

>>> import sims_kit as sk
>>> reference = sk.load("pbmc68k")
>>> model = sk.fit(reference, "bulk_labels")
>>> sk.annotate(query, model)

Each name is loaded with its room when it is first used, so that the import itself takes no time.
"""

import os
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

_FACE = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")  # names and their homes, for editors, too
_HOME_OF = {name: home for home, name in re.findall(r"^from sims_kit\.(\S+) import (\w+)", _FACE, re.MULTILINE)}
_SHOWN = re.findall(r"^from sims_kit import (\w+)", _FACE, re.MULTILINE)
_ROOMS = ("errors", "text", *_SHOWN)

__version__ = version("sims_kit")
__all__ = sorted([*_HOME_OF, *_SHOWN])


def __getattr__(name: str) -> object:
    """Load a room, or a name of the face, when it is first asked for."""
    if name not in _HOME_OF and name not in _ROOMS:
        from sims_kit.errors import nearest

        raise AttributeError(f"sims_kit has no {name!r}. {nearest(name, __all__)}")
    # Threads that wait sleep instead of spinning: spinning ones slow each other down ten times and more as soon as
    # another program needs a core. OpenMP reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if name in _ROOMS:
        return import_module(f"sims_kit.{name}")
    globals()[name] = value = getattr(import_module(f"sims_kit.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    """The names of the face alone."""
    return __all__
