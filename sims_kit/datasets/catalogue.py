"""The datasets that `load` knows, as a table and as a page."""

import pandas as pd

from sims_kit.datasets.registry import Dataset, read_registry

COLUMNS = [
    *("title", "version", "tier", "species", "tissue", "protocol", "cells", "genes", "classes", "state", "gene_ids"),
    *("label", "other_labels", "sample", "region", "alternatives", "lessons", "licence", "doi", "citation"),
]


def catalogue() -> pd.DataFrame:
    """The datasets that `load` knows, one row each.

    Returns
    -------
    DataFrame, indexed by name
        The keys of `data_registry.yaml`: title, version, tier, species, tissue, protocol, cells, genes, classes,
        state, gene_ids, label, other_labels, sample, region, alternatives, lessons, licence, doi, citation; and
        megabytes (to download; 0 for bundled and simulated data). What is unknown is missing.
    """
    rows = {
        name: {column: _text(getattr(entry, column)) for column in COLUMNS} | {"megabytes": megabytes(entry)}
        for name, entry in read_registry().datasets.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("dataset")
    return table.astype(dict.fromkeys(["cells", "genes", "classes"], "Int64"))  # whole numbers, also beside gaps


def _text(value: object) -> object:
    """Several names as one text."""
    return ", ".join(value) if isinstance(value, list) else value


def megabytes(entry: Dataset) -> float | None:
    """What is to be downloaded, in MB; None where the registry does not know."""
    sizes = [file.size for file in entry.source.files]
    return None if None in sizes else round(sum(sizes) / 1e6, 1)
