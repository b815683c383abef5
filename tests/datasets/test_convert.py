"""Conversion: what lies in the file is what pandas reads, whatever happens on the way."""

import contextlib
import gzip
import importlib
import multiprocessing
import os
import signal
import zipfile
from collections import namedtuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets import delimited
from sims_kit.datasets.convert import convert
from sims_kit.errors import DataError, SettingError

module = importlib.import_module("sims_kit.datasets.convert")  # whose name is the function's, too


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks and bands so small that tiny files have many."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 200)
    monkeypatch.setattr(module, "VALUES_PER_BAND", 60)


@pytest.fixture
def table():
    """Forty cells x twelve genes: counts, one negative and one decimal number, an empty cell and an empty gene."""
    rng = np.random.default_rng(0)
    values = (rng.poisson(0.8, size=(40, 12)) * rng.integers(1, 40, size=(40, 12))).astype(float)
    values[3, 4], values[5, 6], values[7], values[:, 8] = -2, 0.125, 0, 0
    return pd.DataFrame(values, [f"cell_{i}" for i in range(40)], [f"GENE{i}" for i in range(12)])


@pytest.fixture
def parsed(monkeypatch):
    """The names of the rows of every block that is parsed, as they come."""
    names, cut = [], delimited._cut

    def counting(text, delimiter):
        found = cut(text, delimiter)
        names.extend(found[0])
        return found

    monkeypatch.setattr(delimited, "_cut", counting)
    return names


def write(table, path, orientation="cells_by_genes"):
    """Write the table in an orientation, by the suffix of the path."""
    table = table if orientation == "cells_by_genes" else table.T
    table.to_csv(path, sep="," if ".csv" in path.name else "\t")
    return path


def same(path, table):
    """The file holds the table: names, values, types; and nothing is left beside it."""
    found = ad.read_h5ad(path)
    assert list(found.obs_names) == list(table.index) and list(found.var_names) == list(table.columns)
    np.testing.assert_array_equal(found.X.toarray(), table.to_numpy(np.float32))
    assert found.X.format == "csr" and found.X.dtype == np.float32 and found.X.indices.dtype == np.int32
    assert found.X.has_canonical_format and (found.X.data != 0).all()
    assert not path.with_name(f"{path.name}.parts").exists()


@pytest.mark.parametrize("orientation", ["cells_by_genes", "genes_by_cells"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.csv.gz", "a.tsv.gz"])
def test_both_orientations(tmp_path, table, parsed, name, orientation):
    """Text of either orientation, packed or not, arrives with cells in rows, in many blocks and bands."""
    source = write(table, tmp_path / name, orientation)
    assert convert(str(source), tmp_path / "new" / "a.h5ad", orientation=orientation) == tmp_path / "new" / "a.h5ad"
    same(tmp_path / "new" / "a.h5ad", table)
    assert parsed == list(table.index if orientation == "cells_by_genes" else table.columns)


def test_backed_and_compressed(tmp_path, table):
    """The file can be read in backed mode, and is stored in checked, compressed chunks."""
    convert(write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(backed.X[[31, 2, 5]].toarray(), table.to_numpy(np.float32)[[31, 2, 5]])
    backed.file.close()
    with h5py.File(tmp_path / "a.h5ad") as file:
        for name in ("data", "indices"):
            stored = file[f"X/{name}"]
            assert stored.compression and stored.fletcher32 and stored.chunks == module.STORAGE["chunks"]


@pytest.mark.parametrize("orientation", ["cells_by_genes", "genes_by_cells"])
def test_members_of_a_zip_are_summed(tmp_path, table, orientation):
    """Counts of exons and introns in one zip file are added, though their blocks end at different rows."""
    introns = (table * 100).round()
    introns.iloc[0, 0] = -table.iloc[0, 0]  # a sum of zero
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in (("exon.csv", table), ("intron.csv", introns)):
            archive.writestr(name, (part if orientation == "cells_by_genes" else part.T).to_csv())
    members = [zipfile.Path(tmp_path / "data.zip", name) for name in ("exon.csv", "intron.csv")]
    same(convert(members, tmp_path / "a.h5ad", orientation=orientation), table + introns)
    same(convert(members[0], tmp_path / "b.h5ad", orientation=orientation), table)


def test_sum_needs_the_same_names(tmp_path, table):
    """Sources with other columns, or other rows, are refused with the names that differ."""
    source = write(table, tmp_path / "a.csv")
    other = write(table.rename(columns={"GENE3": "ACTB"}), tmp_path / "b.csv")
    with pytest.raises(DataError, match="columns have different names \\('GENE3' where the other has 'ACTB'"):
        convert([source, other], tmp_path / "a.h5ad")
    write(table.iloc[:-1], other)
    with pytest.raises(DataError, match="rows have different names \\(40 and 39"):
        convert([source, other], tmp_path / "a.h5ad")


def test_complete(tmp_path, table):
    """Names, columns and uns that `complete` gives are in the file; text becomes categorical and keeps its NaN."""

    def complete(shell):
        assert shell.X is None and list(shell.obs_names) == list(table.index)
        shell.var["entrez"] = [str(i) for i in range(12)]
        shell.var_names = [name.lower() for name in shell.var_names]
        shell.obs["cell_type"] = ["neuron", np.nan] * 20
        shell.uns["dataset"] = {"name": "tiny"}

    path = convert(write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad", complete=complete)
    same(path, table.rename(columns=str.lower))
    found = ad.read_h5ad(path)
    assert found.obs["cell_type"].dtype == "category" and list(found.obs["cell_type"].isna()) == [False, True] * 20
    assert list(found.var["entrez"]) == [str(i) for i in range(12)] and found.uns["dataset"] == {"name": "tiny"}


def test_complete_must_not_drop(tmp_path, table):
    """A `complete` that drops cells is refused before the matrix is written."""
    with pytest.raises(SettingError, match="shape from \\(40, 12\\) to \\(1, 12\\)"):
        convert(write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad", complete=lambda s: s._inplace_subset_obs([0]))
    assert not (tmp_path / "a.h5ad").exists()


@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique")
def test_double_names_stay(tmp_path):
    """Genes and cells of one name are kept as they are."""
    (tmp_path / "a.csv").write_text(",A,A,B\nx,1,2,0\nx,0,3,4\n")
    found = ad.read_h5ad(convert(tmp_path / "a.csv", tmp_path / "a.h5ad"))
    assert list(found.var_names) == ["A", "A", "B"] and list(found.obs_names) == ["x", "x"]


class Interrupt(BaseException):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("orientation", ["cells_by_genes", "genes_by_cells"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "zip"])
def test_restart_after_any_block(tmp_path, table, parsed, monkeypatch, name, orientation):
    """Runs that end after two steps each are taken up there, and the result is the same."""
    source = write(table, tmp_path / ("a.csv" if name == "zip" else name), orientation)
    if name == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(source, "a.csv")
        source = zipfile.Path(tmp_path / "a.zip", "a.csv")
    target, replace, n_runs, n_steps = tmp_path / "a.h5ad", os.replace, 0, 0

    def replace_twice(a, b):
        """Put two files in their places, and end the run at the third."""
        nonlocal n_steps
        n_steps += 1
        if n_steps % 3 == 0:
            raise Interrupt
        replace(a, b)

    monkeypatch.setattr(module.os, "replace", replace_twice)
    while not target.exists():
        with contextlib.suppress(Interrupt):
            convert(source, target, orientation=orientation)
        n_runs, n_steps = n_runs + 1, 0
    monkeypatch.undo()
    names = list(table.index if orientation == "cells_by_genes" else table.columns)
    blocks = {name: parsed.count(name) for name in names}
    assert n_runs > 2 and list(dict.fromkeys(parsed)) == names
    assert max(blocks.values()) == 2  # parsed again only where the run had ended before the block was stored
    assert sum(blocks.values()) < len(names) * 2
    same(target, table)


def test_finished_blocks_are_not_parsed_again(tmp_path, table, parsed, monkeypatch):
    """When writing fails, the next run parses nothing."""
    source = write(table, tmp_path / "a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(Interrupt))
        with pytest.raises(Interrupt):
            convert(source, tmp_path / "a.h5ad")
    assert parsed == list(table.index)
    convert(source, tmp_path / "a.h5ad")
    assert parsed == list(table.index)
    same(tmp_path / "a.h5ad", table)


@pytest.mark.parametrize("change", ["values", "time", "orientation"])
def test_starts_anew_when_the_source_has_changed(tmp_path, table, parsed, monkeypatch, change):
    """Blocks of another source, or of another orientation, are not taken."""
    source, target = write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(Interrupt))
        with pytest.raises(Interrupt):
            convert(source, target)
    if change == "values":
        write(table * 3, source)
    elif change == "time":
        os.utime(source, (1, 1))
    orientation = "genes_by_cells" if change == "orientation" else "cells_by_genes"
    convert(source, target, orientation=orientation)
    assert parsed == list(table.index) * 2
    same(target, {"values": table * 3, "time": table, "orientation": table.T}[change])


def killed(source, target):
    """Convert and die without a word when the third block is put in its place."""
    delimited.BLOCK_BYTES, replace, n = 200, os.replace, 0

    def replace_or_die(a, b):
        nonlocal n
        n += 1
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(a, b)

    os.replace = replace_or_die
    convert(source, target)


def test_killed(tmp_path, table, parsed):
    """A process that is killed leaves no target, no lock, and the blocks that were finished."""
    source, target = write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad"
    process = multiprocessing.get_context("fork").Process(target=killed, args=(source, target))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not target.exists()
    assert len(list((tmp_path / "a.h5ad.parts").glob("source-*"))) == 2
    convert(source, target)
    assert 0 < len(parsed) < len(table)
    same(target, table)


@pytest.mark.parametrize("n_writes", [0, 3])
def test_full_disk(tmp_path, table, parsed, monkeypatch, n_writes):
    """A disk without space is named with what is left, the blocks stay, and the next run goes on."""
    source, target = write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad"
    usage, free = namedtuple("usage", "free"), iter([2**40] * n_writes)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: usage(next(free, 10_000_000)))
        with pytest.raises(DataError, match=r"disk is full: .* has 0.01 GB left.*kept in a.h5ad.parts"):
            convert(source, target)
    assert len(list((tmp_path / "a.h5ad.parts").glob("source-*"))) == n_writes
    convert(source, target)
    assert set(parsed) == set(table.index)
    same(target, table)


def test_full_disk_as_hdf5_tells_it(tmp_path, table, monkeypatch):
    """The same for the error that h5py raises on closing a file, which has no number."""

    def write_elem(*_, **__):
        raise RuntimeError("Unable to close file (error message = 'No space left on device')")

    monkeypatch.setattr(module, "write_elem", write_elem)
    with pytest.raises(DataError, match="disk is full"):
        convert(write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad")


def test_second_process_takes_what_the_first_made(tmp_path, table, parsed, monkeypatch):
    """A target that another process completed while this one waited is returned as it is."""
    source, target = write(table, tmp_path / "a.csv"), tmp_path / "a.h5ad"

    class Waiting(module.FileLock):
        def __enter__(self):
            target.write_bytes(b"made by the first")
            return super().__enter__()

    monkeypatch.setattr(module, "FileLock", Waiting)
    assert convert(source, target).read_bytes() == b"made by the first" and not parsed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "empty"),
        ("name,a\n", "no rows"),
        ("a\nb\n", "one column"),
        ("name,a,b,c\nx,1\n", "header has 4 fields and the first row 2"),
        ("name,a,b\nx,1,2\n" + "y,1,2\n" * 50 + "z,1\n", "missing in row 'z', column 'b'"),
        ("name,a,b\nx,1,2\n" + "y,1,2\n" * 50 + "z,1,2,3\n", "Expected 3 fields in line 53, saw 4"),
        ("name,a,b\nx,1,2\n" + "y,1,2\n" * 50 + "z,1,B cell\n", "'B cell' is not a number in row 'z', column 'b'"),
        ("name,a,b\nx,1,2\n\xe9,1,2\n", "cannot be read"),
    ],
)
def test_wrong_text(tmp_path, text, found):
    """Whatever is wrong in the text is said, with the file, and no target appears."""
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        convert(tmp_path / "a.csv", tmp_path / "a.h5ad")
    assert found in str(caught.value) and "a.csv" in str(caught.value) and not (tmp_path / "a.h5ad").exists()


def test_damaged_packing(tmp_path, table):
    """Packed text that is cut short, changed, or no packed text at all is called damaged."""
    packed = bytearray(gzip.compress(table.to_csv().encode()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", table.to_csv())
    member = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(member.replace(b"cell_39", b"cell_40", 1))
    for content in (packed[:-20], packed[:-8] + bytes(8), b"name,a\nx,1\n"):
        (tmp_path / "a.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.csv\.gz cannot be read .* damaged"):
            convert(tmp_path / "a.csv.gz", tmp_path / "a.h5ad")
    with pytest.raises(DataError, match=r"a\.zip/a\.csv cannot be read .* damaged"):
        convert(zipfile.Path(tmp_path / "a.zip", "a.csv"), tmp_path / "a.h5ad")


def test_refused_before_work(tmp_path, table):
    """Wrong arguments and missing or unknown files are refused, each with the way out, and leave nothing behind."""
    source = write(table, tmp_path / "a.csv")
    with pytest.raises(SettingError, match="genes_by_cells"):
        convert(source, tmp_path / "a.h5ad", orientation="gene_by_cell")
    with pytest.raises(SettingError, match=r"\.h5ad"):
        convert(source, tmp_path / "a.h5")
    with pytest.raises(SettingError, match="no source"):
        convert([], tmp_path / "a.h5ad")
    with pytest.raises(FileNotFoundError, match=r"b\.csv"):
        convert([source, tmp_path / "b.csv"], tmp_path / "a.h5ad")
    (tmp_path / "a.rds").touch()
    with pytest.raises(DataError, match=r"a\.rds is no delimited text"):
        convert(tmp_path / "a.rds", tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="cannot be written"):
        convert(source, source / "a.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.rds"]
