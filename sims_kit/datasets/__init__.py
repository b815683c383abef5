"""A name or a file becomes an AnnData: registry, fetching, conversion, readers, labels; and simulated tissue."""

from sims_kit.datasets.catalogue import catalogue
from sims_kit.datasets.convert import convert
from sims_kit.datasets.fetch import cache_folder
from sims_kit.datasets.labels import attach_labels, check_orientation, chosen_cells, select_cells
from sims_kit.datasets.load import load, load_or_open, prepare
from sims_kit.datasets.readers import read
from sims_kit.datasets.shuffling import shuffle
from sims_kit.datasets.simulate import simulate, simulated
from sims_kit.datasets.stored import StoredMatrix, open_stored

__all__ = [
    "StoredMatrix",
    "attach_labels",
    "cache_folder",
    "catalogue",
    "check_orientation",
    "chosen_cells",
    "convert",
    "load",
    "load_or_open",
    "open_stored",
    "prepare",
    "read",
    "select_cells",
    "shuffle",
    "simulate",
    "simulated",
]
