"""`data_registry.yaml`: one entry per dataset and per gene table, checked when the file is read."""

import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import yaml

from sims_kit.errors import RegistryError, nearest

PATH = Path(__file__).resolve().parents[1] / "data_registry.yaml"  # inside the installed package
PATH = PATH if PATH.exists() else PATH.parents[1] / PATH.name  # at the root of the repository
FORMS = {  # of the value of a key, or of each value in a list
    **dict.fromkeys(["name", "folder"], r"\w[\w .+-]*"),  # without a slash, so that no file leaves the cache folder
    **dict.fromkeys(["size", "cells", "classes"], r"[1-9]\d*"),
    "urls": r"https://\S+",
    "sha256": "[0-9a-f]{64}",
    "doi": r"10\.\d{4,9}/\S+",
    "gene_pattern": r".*\(\?P<symbol>.*",
}


@dataclass(frozen=True)
class DataFile:
    """One file to download, with its addresses in order of preference."""

    name: str
    urls: tuple[str, ...]
    sha256: str | None  # None: not published
    size: int | None


@dataclass(frozen=True)
class Source:
    """Where the values and labels lie; the kind says which keys are used."""

    kind: Literal["files", "archive", "scanpy", "simulated", "table"]
    folder: str | None = None
    archive: DataFile | None = None
    matrix: DataFile | tuple[str, ...] | None = None  # a file, or members of the archive, which are summed
    labels: DataFile | str | None = None
    in_order: Literal[True, False] = False  # the labels are in the order of the cells, without their names
    genes: str | None = None
    object: str | None = None
    columns: tuple[str, ...] = ()
    function: str | None = None
    sizes: dict | None = None

    @property
    def files(self) -> list[DataFile]:
        """The files to download: the archive, or the matrix and then the labels."""
        return [file for file in (self.archive, self.matrix, self.labels) if isinstance(file, DataFile)]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One entry; the head of `data_registry.yaml` explains the keys. Those above `source` are in the catalogue."""

    title: str
    version: str
    tier: Literal["bundled", "simulated", "small", "full"]
    species: str
    tissue: str | None = None
    protocol: str | None = None
    cells: int | None = None
    genes: int | None = None
    classes: int | None = None
    state: Literal["counts", "normalised", "log-normalised", None] = None
    gene_ids: Literal["symbol", "ensembl", "entrez", "none"] = "none"
    label: str | None = None
    other_labels: tuple[str, ...] = ()
    sample: str | None = None
    condition: str | None = None
    region: str | None = None
    alternatives: tuple[str, ...] = ()
    lessons: tuple[str, ...] = ()
    licence: str
    doi: str | None = None
    citation: str
    source: Source
    orientation: Literal["cells_by_genes", "genes_by_cells"] = "cells_by_genes"
    layer: str | None = None
    gene_column: str | None = None
    gene_pattern: str | None = None
    keep: dict = field(default_factory=dict)
    drop: dict = field(default_factory=dict)
    drop_unlabelled: Literal[True, False] = False
    preprocessing: str | None = None
    notes: str | None = None


@cache
def read_registry(path: Path = PATH) -> SimpleNamespace:
    """`datasets` and gene `tables` of a registry file, by name; a `RegistryError` names entry and key."""
    try:
        text = path.read_text(encoding="utf-8")
        if (n := len(re.findall(r"(?<![\w*])\*\w", text))) > 20:  # which could stand for any number of values
            raise ValueError(f"it has {n:,} aliases (*name). Expected 20 at most.")
        content = yaml.safe_load(text)
        if content["schema_version"] != 1:
            raise ValueError(f"key 'schema_version': value {content['schema_version']!r}. Expected 1.")
        registry = SimpleNamespace(datasets={}, tables={})
        for group, entries in vars(registry).items():
            entries |= {name: _build(Dataset, of, f"entry {name!r}") for name, of in content[group].items()}
        return registry
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise RegistryError(f"{path} is no registry of datasets: {error}") from error


def _build(kind: type, values: dict, where: str) -> Dataset | Source | DataFile:
    """A dataclass from a mapping, with each key and value checked."""
    types, built = {key.name: str(key.type) for key in fields(kind)}, {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{where}, key {key!r}: unknown, with value {value!r:.99}. {nearest(key, types)}")
        if isinstance(value, dict) and "dict" not in types[key]:
            built[key] = _build(Source if key == "source" else DataFile, value, f"{where}, key {key!r}")
            continue
        many, form = isinstance(value, list), FORMS.get(key, "(?s).+")
        fits = many == ("tuple" in types[key]) and ("Literal" not in types[key] or repr(value) in types[key])
        fits = fits and value != [] and all(re.fullmatch(form, str(one)) for one in (value if many else [value]))
        if not ("None" in types[key] if value is None else fits):
            raise ValueError(f"{where}, key {key!r}: value {value!r:.99}. Expected {FORMS.get(key, types[key])}.")
        built[key] = tuple(value) if many else value
    try:
        return kind(**built)
    except TypeError as error:  # a key is missing
        raise ValueError(f"{where}: {error}") from error
