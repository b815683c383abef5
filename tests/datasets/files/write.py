"""Write the small files of this folder; each is written by the version of anndata in its name.

Run once per version, with this folder as the argument, in an environment that has that anndata and zarr:
0.7.8 (Python 3.8, pandas 1.4), 0.8.0 (3.10, 1.5), 0.10.9 (3.11, 2.2), 0.11.4 (3.11, 2.3), 0.12.19 (3.11, 2.3) and
0.13.4 (3.13, 3.1). The two stores are zarr format 2 (zarr 2.18, with 0.11.4) and 3 (zarr 3.4, with 0.13.4).
"""

import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

folder, version = Path(sys.argv[1]), anndata.__version__
release = tuple(int(part) for part in version.split(".")[:2])
counts = np.maximum(np.arange(120).reshape(12, 10) * 37 % 11 - 5, 0).astype("float32")  # raw; X has the first 8 genes
codes = np.array([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, -1])

obs = pd.DataFrame({"label": pd.Categorical.from_codes(codes, ["alpha", "beta", "unused"])})
obs.index = [f"cell-{number}" for number in range(1, 13)]
obs["note"] = [f"note {number}" for number in range(12)]  # all different, or anndata makes categories of them
obs["score"] = np.where(np.arange(12) == 3, np.nan, np.arange(12) / 4)
obs["kept"], obs["number"] = np.arange(12) % 3 > 0, np.arange(12) * 10
options = {} if release < (0, 12) else {"convert_strings_to_categoricals": False}
if options:  # older versions cannot write text with missing values
    anndata.settings.allow_write_nullable_strings = True
    obs["sample"] = pd.array([None, *obs["note"][1:]], dtype="string")
    obs["donor"] = pd.array([*obs["note"][:-1], None], dtype="str" if release >= (0, 13) else "string")
var = pd.DataFrame({"gene_ids": [f"ENSG{number:011}" for number in range(1, 11)]}, [f"GENE{n}" for n in range(1, 11)])

adata = anndata.AnnData(csr_matrix(counts[:, :8]), obs=obs, var=var[:8].copy())
adata.uns = {"title": "twelve cells", "nested": {"depth": {"number": 3, "names": np.array(["a", "b"], dtype=object)}}}
adata.raw = anndata.AnnData(csr_matrix(counts), obs=obs[[]].copy(), var=var)
adata.layers["counts"] = csr_matrix(counts[:, :8].astype("int32"))
adata.obsm["X_pca"] = np.arange(24.0).reshape(12, 2)
adata.write_h5ad(folder / f"anndata-{version}.h5ad", **options)
if release in ((0, 11), (0, 13)):
    adata.write_zarr(folder / f"anndata-{version}.zarr", **options)
if release in ((0, 7), (0, 13)):
    adata.X = counts[:, :8]
    adata.write_h5ad(folder / f"anndata-{version}-dense.h5ad", **options)

if release == (0, 13):  # as Convert of SeuratDisk writes: no reference from codes to categories, no type of the root
    columns = {"note": list(obs["note"]), "score": obs["score"].to_numpy(), "_index": list(obs.index)}
    columns["label"] = np.where(codes < 0, np.iinfo("int32").min, codes).astype("int32")
    columns["__categories/label"] = ["alpha", "beta", "unused"]
    matrices = {"X": csr_matrix(np.log1p(counts[:, :8]), dtype="f8"), "raw/X": csr_matrix(counts, dtype="f8")}
    frames = {"obs": columns, "var": {"_index": list(var.index[:8]), "vst.mean": np.arange(8) / 2}}
    frames["raw/var"] = {"_index": list(var.index), "vst.mean": np.arange(10) / 2}
    with h5py.File(folder / "seuratdisk.h5ad", "w") as file:
        for name, matrix in matrices.items():
            file.create_group(name).attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
            file[name].attrs["shape"] = np.array(matrix.shape, "int32")
            for part in ("data", "indices", "indptr"):
                file[name][part] = getattr(matrix, part)
        for name, frame in frames.items():
            file.create_group(name).attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
            file[name].attrs["_index"] = "_index"
            file[name].attrs["column-order"] = [column for column in frame if column[0] != "_"]
            for column, values in frame.items():
                file[name][column] = values
