"""The registry of datasets: what is in it, and how mistakes in it are reported."""

import copy

import pytest
import yaml

import write_catalogue
from sims_kit.datasets.registry import PATH, read_registry
from sims_kit.errors import RegistryError

KEYS = {"files": "folder matrix", "archive": "folder archive matrix", "scanpy": "function", "simulated": "sizes"}
DATASETS, TABLES = vars(read_registry()).values()
ENTRIES = DATASETS | TABLES


def test_registry_and_page():
    """The file in the repository follows its schema, and the page is in step with it."""
    assert len(DATASETS) == 35 and list(TABLES) == ["gencode-human", "orthologs-human-mouse"]
    assert write_catalogue.PAGE.read_text(encoding="utf-8") == write_catalogue.page(), "run `make catalogue`"


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_is_complete(name):
    """Each source has what its kind needs, small files have a hash and a size, and names lead to what exists."""
    entry = ENTRIES[name]
    needed = KEYS.get(entry.source.kind, "folder matrix columns").split()
    assert all(getattr(entry.source, key) for key in needed)
    assert entry.tier != "small" or all(file.sha256 and file.size for file in entry.source.files)
    assert all(name in DATASETS[other].alternatives for other in entry.alternatives)
    assert all((PATH.parent / f"notebooks/{lesson}.ipynb").exists() for lesson in entry.lessons)
    assert name in TABLES or {entry.tissue, entry.protocol}.isdisjoint({None})
    assert (entry.label is None) == (name in {"immune-unlabelled", *TABLES})


def test_every_file_has_its_own_place():
    """A place in the cache belongs to one file, which several entries may share."""
    at = {}
    for name, entry in ENTRIES.items():
        for file in entry.source.files:
            assert at.setdefault((entry.source.folder, file.name), file) == file, name


CONTENT = yaml.safe_load(PATH.read_text(encoding="utf-8"))
MATRIX = ("source", "matrix")
MISTAKES = [  # a dataset, the way to a key, the new value (None: the key is removed), what the error tells
    ("mouse-immune", ("speceis",), "Mus musculus", ["'speceis'", "'Mus musculus'", "'species'"]),
    ("mouse-immune", ("source", "labels", "sha265"), "0" * 64, ["'source'", "'labels'", "'sha265'", "'sha256'"]),
    ("pbmc68k", ("orientation",), "genes", ["'genes'", "genes_by_cells"]),
    ("pbmc68k", ("cells",), -3, ["-3"]),
    ("pbmc68k", ("other_labels",), "louvain", ["'louvain'", "tuple"]),
    ("pbmc68k", ("licence",), None, ["licence"]),
    ("pbmc68k", ("source", "kind"), "web", ["'web'", "'archive'"]),
    ("pbmc68k", ("drop_unlabelled",), "no", ["'no'", "False"]),
    ("muraro", ("gene_pattern",), "(.*)", ["'(.*)'", "symbol"]),
    ("worm-neurons", (*MATRIX, "sha256"), "abc", ["'matrix'", "'sha256'", "'abc'", "64"]),
    ("worm-neurons", (*MATRIX, "urls"), [], ["'urls'", "[]", "https"]),
    ("worm-neurons", (*MATRIX, "urls"), ["http://host/file"], ["http://host/file", "https"]),
    ("worm-neurons", (*MATRIX, "name"), "../escape.csv", ["'../escape.csv'"]),
    ("worm-neurons", ("source", "folder"), "/etc", ["'/etc'"]),
]


@pytest.mark.parametrize(("name", "way", "value", "says"), MISTAKES)
def test_mistake_names_file_entry_key_and_value(tmp_path, name, way, value, says):
    """The error leads to the mistake, and says what is allowed."""
    entry = copy.deepcopy(CONTENT["datasets"][name])
    place = entry
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    if value is None:
        del place[way[-1]]
    path = tmp_path / "data_registry.yaml"
    content = {"schema_version": 1, "datasets": {name: entry}, "tables": {}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RegistryError) as caught:
        read_registry(path)
    for part in (str(path), f"entry {name!r}", *says):
        assert part in str(caught.value), part
