"""The registry of datasets."""

import copy

import pytest
import yaml

import write_catalogue
from sims_kit.datasets import catalogue
from sims_kit.datasets.load import converted_path
from sims_kit.datasets.registry import read_registry, registry_path
from sims_kit.errors import RegistryError, UnknownNameError

NAMES = {
    *("pbmc68k", "cell-lines-celseq2", "cell-lines-dropseq", "cell-lines-5cl-p1", "cell-lines-5cl-p2"),
    *("cell-lines-5cl-p3", "mouse-immune", "worm-neurons", "sim-cortex", "sim-mouse", "sim-organoid"),
    *("allen-human", "allen-human-ucsc", "allen-human-cellxgene", "allen-mouse", "allen-mouse-cellxgene"),
    *("allen-mtg", "retina", "dental", "ucsf-cortex", "ucsf-organoids", "mouse-retina"),
    *("abdelaal-amb", "baron-human", "muraro", "segerstolpe", "xin", "zheng68k"),
}
LESSONS = {
    *("01_preprocessing_background", "02_learning_a_classifier", "03_tabnet_and_training", "04_interpretability"),
    *("05_generalization", "06_ablation", "07_benchmark", "08_organoid_inference", "09_pretraining"),
    "10_annotate_your_data",
}


@pytest.fixture
def content():
    """The registry as plain Python, free to be spoiled."""
    return copy.deepcopy(yaml.safe_load(registry_path().read_text()))


def spoiled(tmp_path, content):
    """The message of the error that a spoiled registry raises."""
    path = tmp_path / "data_registry.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RegistryError) as caught:
        read_registry(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_registry_lists_all_datasets():
    """The file in the repository follows its schema and holds every promised entry."""
    assert set(read_registry().datasets) == NAMES


def test_catalogue_has_a_row_per_dataset():
    """The catalogue says for each entry what the registry says."""
    table = catalogue()
    assert list(table.index) == list(read_registry().datasets)
    assert table.loc["cell-lines-5cl-p2", ["cells", "genes", "classes"]].tolist() == [155, 14078, 5]
    assert table.loc["mouse-immune", "megabytes"] == pytest.approx(2.3)
    assert table.loc["pbmc68k", "tier"] == "bundled" and table.loc["pbmc68k", "megabytes"] == 0
    assert table.loc["allen-human", "other_labels"] == "class_label, cluster_label"
    assert table[["genes", "megabytes"]].isna().loc["retina"].all()  # unknown


def test_page_is_in_step_with_the_registry():
    """docs/datasets.md is what `make catalogue` would write now."""
    assert write_catalogue.PAGE.read_text(encoding="utf-8") == write_catalogue.page(), "run `make catalogue`"


def test_every_small_file_has_hash_and_size():
    """No small dataset is fetched unchecked."""
    for name, entry in read_registry().datasets.items():
        assert entry.tier != "small" or all(file.sha256 and file.size for file in entry.source.files), name


def test_every_file_has_its_own_place():
    """A place in the cache belongs to one file, which several datasets may share, or to one converted dataset."""
    at = {}
    for name, entry in read_registry().datasets.items():
        for file in entry.source.files:
            assert at.setdefault((entry.source.folder, file.name), file) == file, name
        if entry.source.files:
            converted = converted_path(name, entry)
            assert at.setdefault((converted.parent.name, converted.name), name) == name


def test_every_dataset_serves_a_lesson():
    """The lessons that an entry names are the ten of the kit, and every entry has one."""
    for name, entry in read_registry().datasets.items():
        assert entry.lessons and set(entry.lessons) <= LESSONS, name


def test_alternatives_are_mutual():
    """Where one entry names another as the same cells, the other names it too."""
    datasets = read_registry().datasets
    for name, entry in datasets.items():
        assert all(name in datasets[other].alternatives for other in entry.alternatives), name


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("gene_pattern", "(.*", "no regular expression"),
        ("gene_pattern", "(.*)", "(?P<symbol>...)"),
        ("source", {"kind": "simulated", "sizes": {"huge": {"cells": 1, "genes": 1}}}, "huge"),
        ("source", {"kind": "archive", "folder": "a", "matrix": ["../b.csv"]}, "matrix"),
        ("source", {"kind": "web"}, "'archive'"),
    ],
)
def test_wrong_layout_is_refused(tmp_path, content, key, value, told):
    """Patterns without a symbol, unknown sizes, members outside of the archive and unknown kinds are mistakes."""
    content["datasets"]["allen-human"][key] = value
    message = spoiled(tmp_path, content)
    assert "entry 'allen-human'" in message and key in message and told in message


def test_unknown_alternative_offers_the_nearest(tmp_path, content):
    """An entry can only point to another one."""
    content["datasets"]["allen-human"]["alternatives"] = ["allen-human-uscs"]
    message = spoiled(tmp_path, content)
    assert "'allen-human'" in message and "'alternatives'" in message and "'allen-human-ucsc'" in message


def test_unknown_key_names_entry_key_value_and_nearest(tmp_path, content):
    """A misspelt key is refused, and the right one offered."""
    content["datasets"]["mouse-immune"]["speceis"] = "Mus musculus"
    message = spoiled(tmp_path, content)
    assert "entry 'mouse-immune'" in message and "'speceis'" in message
    assert "'Mus musculus'" in message and "'species'" in message


def test_unknown_key_inside_a_file_names_the_whole_key(tmp_path, content):
    """The message leads to a key deep in the entry."""
    content["datasets"]["mouse-immune"]["source"]["labels"]["sha265"] = "0" * 64
    message = spoiled(tmp_path, content)
    assert "key 'source.labels'" in message and "'sha265'" in message and "'sha256'" in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("orientation", "genes", "genes_by_cells"), ("tier", "huge", "small"), ("cells", -3, "greater than 0")],
)
def test_wrong_value_names_entry_key_value_and_what_is_allowed(tmp_path, content, key, value, allowed):
    """A value outside of what is allowed is reported with the alternatives."""
    content["datasets"]["pbmc68k"][key] = value
    message = spoiled(tmp_path, content)
    assert "entry 'pbmc68k'" in message and f"key {key!r}" in message
    assert repr(value) in message and allowed in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("sha256", "abc"), ("urls", []), ("urls", ["ftp://host/file"]), ("name", "../escape.csv"), ("size", 0)],
)
def test_wrong_file_is_refused(tmp_path, content, key, value):
    """Hashes, addresses, sizes and names of files are checked, and no name leaves the cache folder."""
    content["datasets"]["worm-neurons"]["source"]["matrix"][key] = value
    message = spoiled(tmp_path, content)
    assert "entry 'worm-neurons'" in message and f"source.matrix.{key}" in message


def test_missing_key_is_named(tmp_path, content):
    """An entry without a licence is refused."""
    del content["datasets"]["pbmc68k"]["licence"]
    assert "entry 'pbmc68k', key 'licence': Field required" in spoiled(tmp_path, content)


def test_other_schema_version_is_refused(tmp_path, content):
    """A registry of another schema is not half understood."""
    content["schema_version"] = 2
    assert "'schema_version'" in spoiled(tmp_path, content)


@pytest.mark.parametrize("text", ["", "just a sentence", "a: [1, 2", "- 1\n- 2"])
def test_file_that_is_no_registry(tmp_path, text):
    """Empty, other and broken YAML give a RegistryError that names the file."""
    path = tmp_path / "data_registry.yaml"
    path.write_text(text)
    with pytest.raises(RegistryError, match=r"data_registry\.yaml"):
        read_registry(path)


def test_unknown_dataset_offers_the_nearest():
    """A misspelt name of a dataset leads to the right one."""
    with pytest.raises(UnknownNameError, match="'worm-neurons'"):
        read_registry()["worm-neuron"]
