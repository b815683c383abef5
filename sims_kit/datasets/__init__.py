"""Datasets and files: by name or path to an AnnData. The registry, downloads, readers, labels, simulated tissue."""

from sims_kit.datasets.labels import attach_labels
from sims_kit.datasets.load import catalogue, gene_table, load
from sims_kit.datasets.read import convert, read
from sims_kit.datasets.simulate import simulate

__all__ = ["attach_labels", "catalogue", "convert", "gene_table", "load", "read", "simulate"]
