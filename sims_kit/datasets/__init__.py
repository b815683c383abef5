"""Datasets and files: by name or path to an AnnData. The registry, downloads, readers, labels, simulated tissue."""

from sims_kit.datasets.fetch import cache_folder
from sims_kit.datasets.labels import attach_labels, check_orientation, select_cells
from sims_kit.datasets.load import catalogue, gene_table, load, prepare
from sims_kit.datasets.read import convert, open_backed, read
from sims_kit.datasets.simulate import simulate, simulated

__all__ = [
    "attach_labels",
    "cache_folder",
    "catalogue",
    "check_orientation",
    "convert",
    "gene_table",
    "load",
    "open_backed",
    "prepare",
    "read",
    "select_cells",
    "simulate",
    "simulated",
]
