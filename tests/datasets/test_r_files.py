"""Files of R: matrices, SingleCellExperiment and Seurat objects arrive as cells x genes, with counts and tables."""

import gzip
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sims_kit.datasets.read import read
from sims_kit.errors import DataError, SettingError, UnknownNameError

pytest.importorskip("rdata")
from rdata.conversion.to_r import DEFAULT_CLASS_MAP, build_r_object, convert_python_to_r_data
from rdata.parser import RObjectType
from rdata.unparser._xdr import UnparserXDR

GENES, CELLS = (pd.Index([f"{what}{i}" for i in range(n)], dtype=object) for what, n in (("GENE", 5), ("cell", 4)))
COUNTS = sp.csc_matrix(np.arange(20).reshape(5, 4) % 7 * (np.arange(20).reshape(5, 4) % 3 > 0), dtype=float)
LABELS = pd.Categorical(["a", "b", "a", "b"])


class S4(SimpleNamespace):
    """An object of R with slots; `_data` makes it a vector that has them as attributes, such as a dense matrix."""

    def to_r(self, converter):
        """The object in the terms of `rdata`, whose own writer knows no S4."""
        slots = {key.replace("__", "."): slot for key, slot in vars(self).items() if key != "_data"}
        data = converter.convert_to_r_object(getattr(self, "_data", None))
        kind = RObjectType.S4 if data.value is None else data.info.type
        attributes = converter.convert_to_r_attributes(slots)
        return build_r_object(kind, value=data.value, is_object="class" in slots, attributes=attributes)


class Writer(UnparserXDR):
    """rdata's writer, for S4 as well."""

    def unparse_r_object(self, obj):
        """An S4 object has a head that says so, and attributes alone."""
        is_s4 = obj.info.type == RObjectType.S4
        self.unparse_int(0x300 + RObjectType.S4.value) if is_s4 else None
        super().unparse_r_object(obj.attributes if is_s4 else obj)


def write(path, value):
    """Write an object as R's saveRDS or, of several by name, save does."""
    kind = "rda" if isinstance(value, dict) and path.suffix.lower() != ".rds" else "rds"
    classes = {S4: S4.to_r, **DEFAULT_CLASS_MAP}
    with gzip.open(path, "wb") as file:
        file.write(b"RDX3\n" * (kind == "rda"))
        Writer(file).unparse_r_data(convert_python_to_r_data(value, file_type=kind, constructor_dict=classes))
    return path


def dense(values, *names, **slots):
    """A matrix of R with names of its rows and columns."""
    names = [None if name is None else np.array(name) for name in names]
    return S4(_data=values.ravel(order="F"), dim=np.array(values.shape), dimnames=names, **slots)


def matrix(kind="dgCMatrix", values=COUNTS, genes=GENES, cells=CELLS):
    """A matrix of R, genes x cells, of any class."""
    if kind in ("dense", "data.frame"):
        return (dense if kind == "dense" else pd.DataFrame)(values.toarray(), genes, cells)
    made = {"dgCMatrix": values.tocsc, "dgRMatrix": values.tocsr, "dgTMatrix": values.tocoo}[kind]()
    slots = {"dgCMatrix": {"i": "indices", "p": "indptr"}, "dgRMatrix": {"j": "indices", "p": "indptr"}}
    slots = {slot: getattr(made, name) for slot, name in slots.get(kind, {"i": "row", "j": "col"}).items()}
    names = [None if names is None else np.array(names) for names in (genes, cells)]
    return S4(**slots, x=made.data, Dim=np.array(made.shape), Dimnames=names, **{"class": kind})


def experiment(assays):
    """A SingleCellExperiment whose names lie in its tables."""
    assays = {name: matrix(kind, genes=None, cells=None) for name, kind in assays.items()}
    obs = S4(rownames=np.array(CELLS), listData={"cell_type": LABELS})
    var = S4(rownames=None, listData={"symbol": np.array([*"ABCDE"])})
    return S4(assays=S4(data=S4(listData=assays)), colData=obs, NAMES=np.array(GENES), elementMetadata=var)


def seurat(version):
    """A Seurat object of version 3, of version 5, or of version 5 with layers split by sample; sample 1 lacks GENE4."""
    matrices = {"counts": COUNTS, "data": COUNTS.log1p()}
    if version == "v3":
        scaled = dense(np.zeros((2, 4)), GENES[:2], CELLS)
        assay = S4(scale__data=scaled, **{kind: matrix(values=values) for kind, values in matrices.items()})
    else:
        samples = {".1": ([0, 3], 4), ".2": ([1, 2], 5)} if "split" in version else {"": ([0, 1, 2, 3], 5)}
        parts = {kind + sample: (kind, *part) for kind in matrices for sample, part in samples.items()}
        layers = {name: matrix("dgCMatrix", matrices[kind][:n, c], None, None) for name, (kind, c, n) in parts.items()}
        cells = np.stack([np.isin(range(4), columns) for _, columns, _ in parts.values()], 1)
        genes = np.stack([np.arange(5) < n for _, _, n in parts.values()], 1)
        assay = S4(layers=layers, cells=dense(cells, CELLS, [*layers]), features=dense(genes, GENES, [*layers]))
    obs = pd.DataFrame({"label": LABELS, "note": pd.array([*"wxyz"], "string")}, CELLS)
    slots = {"meta.data": obs, "active.assay": np.array(["SCT"]), "active.ident": LABELS, "class": "Seurat"}
    return S4(assays={"SCT": S4(**{"class": "Assay"}), "RNA": assay}, **slots)


def check(adata, layers=()):
    """Counts in X, cells x genes."""
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS.T.toarray())
    assert (adata.obs_names == CELLS).all() and (adata.var_names == GENES).all()
    assert set(adata.layers) - {None} == set(layers)  # anndata 0.13 lists X among them


@pytest.mark.parametrize("name", ["A.RDS", "a.RData"])
@pytest.mark.parametrize("kind", ["dgCMatrix", "dgTMatrix", "dgRMatrix", "dense", "data.frame"])
def test_matrices(tmp_path, kind, name):
    """Sparse and dense matrices and data.frames, alone in a file, are turned whatever is said of them."""
    write(tmp_path / name, {"counts": matrix(kind)} if name == "a.RData" else matrix(kind))
    for orientation in ("cells_by_genes", "genes_by_cells"):
        check(read(tmp_path / name, orientation=orientation))


def test_missing_names_and_values(tmp_path):
    """Names are made up where there are none; what is missing is no number."""
    missing = np.ma.array([1, 3, 2, 4], mask=[0, 0, 1, 0], dtype=np.int32)
    adata = read(write(tmp_path / "b.rds", S4(_data=missing, dim=np.array([2, 2]))))
    np.testing.assert_array_equal(adata.X.toarray(), [[1, 3], [np.nan, 4]])
    assert list(adata.obs_names) == ["0", "1"]


def test_experiment(tmp_path):
    """Counts of a SingleCellExperiment lie in X, other assays in layers; without counts, the first is taken."""
    adata = read(write(tmp_path / "a.rds", experiment({"logcounts": "dense", "counts": "dgCMatrix"})))
    check(adata, ["logcounts"])
    assert list(adata.obs["cell_type"]) == list(LABELS) and list(adata.var["symbol"]) == [*"ABCDE"]
    check(read(write(tmp_path / "b.rds", experiment({"tpm": "dgCMatrix"}))))


@pytest.mark.parametrize("version", ["v3", "v5", "v5, split"])
def test_seurat(tmp_path, version):
    """The assay RNA of any version: counts in X, data as a layer, factors as categories, split layers joined."""
    adata, expected = read(write(tmp_path / "a.rds", seurat(version))), COUNTS.T.toarray()
    expected[[0, 3], 4] *= version != "v5, split"
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    np.testing.assert_allclose(adata.layers["data"].toarray(), np.log1p(expected), rtol=1e-6)
    assert list(adata.obs_names) == [*CELLS] and list(adata.var_names) == [*GENES]
    assert set(adata.layers) - {None} == {"data"}
    assert adata.obs["label"].dtype == "category" and list(adata.obs["note"]) == [*"wxyz"]
    adata.write_h5ad(tmp_path / "a.h5ad")


def test_several_objects(tmp_path):
    """An object is chosen by name, also within a list; labels and tables beside it come along."""
    table = pd.DataFrame({"donor": [*"xyzw"]}, CELLS[::-1])
    inner = {"one": matrix(), "labels": np.array([*"abab"]), "table": table, "other": matrix(values=2 * COUNTS)}
    path = write(tmp_path / "a.rda", {"study": inner, "three": np.arange(3.0)})
    for name in ("study.one", "one"):
        check(adata := read(path, object_name=name))
        assert list(adata.obs["labels"]) == [*"abab"] and list(adata.obs["donor"]) == [*"wzyx"]
    with pytest.raises(DataError, match=r"'three', 'study\.one'.*object_name='study\.one'"):
        read(path)
    with pytest.raises(UnknownNameError, match=r"'ones'.*study\.one"):
        read(path, object_name="ones")


def test_what_cannot_be_read(tmp_path, monkeypatch):
    """Damaged files and unknown objects say how to write an .h5ad in R; a missing package says its name."""
    unknown = S4(assays={"RNA": S4(layers={"counts": S4(matrix=1.0)})}, **{"class": "Seurat"})
    diagonal = S4(Dim=np.array([2, 2]), Dimnames=[None, None], **{"class": "ddiMatrix"})
    spoiled = {"none": {"a": np.arange(3.0)}, "unknown": unknown, "diagonal": diagonal, "cut": matrix()}
    for name, value in spoiled.items():
        write(tmp_path / f"{name}.rds", value)
    (tmp_path / "cut.rds").write_bytes((tmp_path / "cut.rds").read_bytes()[:40])
    for name in spoiled:
        with pytest.raises(DataError, match=rf"(?s){name}\.rds.*readRDS.*\n.*anndataR::write_h5ad\(x, .cells\.h5ad.\)"):
            read(tmp_path / f"{name}.rds")
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(SettingError, match=r"pip install 'sims_kit\[r\]'"):
        read(tmp_path / "none.rds")
