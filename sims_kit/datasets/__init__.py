"""A name or a file becomes an AnnData: registry, fetching, readers, labels; and simulated tissue."""

from sims_kit.datasets.fetch import cache_folder
from sims_kit.datasets.labels import attach_labels, check_orientation, select_cells
from sims_kit.datasets.load import catalogue, load
from sims_kit.datasets.readers import read
from sims_kit.datasets.simulate import simulate, simulated

__all__ = [
    "attach_labels",
    "cache_folder",
    "catalogue",
    "check_orientation",
    "load",
    "read",
    "select_cells",
    "simulate",
    "simulated",
]
