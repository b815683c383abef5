"""Models to share: `list` what a zoo has, `load` one by name, `publish` one of your own with its card.

A zoo is a folder, or an address on the web, with an index, ``zoo.json``, that gives each model's file, size and hash.
Which one: the argument `source`, else the environment variable `SIMS_KIT_ZOO`, else the folder ``zoo`` in the cache.
"""

from sims_kit.zoo.models import list_models as list
from sims_kit.zoo.models import load_published as load
from sims_kit.zoo.models import publish

__all__ = ["list", "load", "publish"]
