"""Files of R (`.rds`, `.rda`, `.RData`): matrices, SingleCellExperiment and Seurat objects become AnnData."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData, concat

from sims_kit.errors import DataError, SettingError, UnknownNameError

WAY_OUT = 'Write it as .h5ad in R, and read that:\n  x <- readRDS("cells.rds")\n  anndataR::write_h5ad(x, "cells.h5ad")'


def read_r(path: Path, object_name: str | None = None) -> AnnData:
    """An object of R, cells x genes: a matrix or data.frame, SummarizedExperiment, or Seurat object of version 3 to 5.

    `X` holds counts where there are any, `layers` the rest without scaled values. `object_name` is a name of
    `r_objects`, or the end of one. Vectors and data.frames of the same cells beside the object go to `obs`.
    """
    objects = r_objects(path)
    usable = [name for name, value in objects.items() if _is_matrix(value)]
    if object_name is None and len(usable) != 1:
        way_out = f"Choose one, such as object_name={usable[0]!r}." if usable else WAY_OUT
        raise DataError(f"{path} holds {len(usable) or 'no'} matrices of cells among {list(objects)}. {way_out}")
    name = next((n for n in objects if f".{n}".endswith(f".{object_name or usable[0]}")), None)
    if name is None:
        raise UnknownNameError(f"object in {path}", object_name, objects)
    try:
        adata = _adata(objects[name])
    except Exception as error:  # whatever an object of an unknown build raises
        raise DataError(f"{path}: {name!r} cannot be read ({type(error).__name__}: {error}). {WAY_OUT}") from error
    for other, value in objects.items():
        if other != name and other.rpartition(".")[0] == name.rpartition(".")[0]:
            columns = {other.rpartition(".")[2]: value}
            if isinstance(value, pd.DataFrame):
                columns = value.reindex(adata.obs_names) if set(value.index) == set(adata.obs_names) else {}
            adata.obs = adata.obs.assign(**_table(columns, adata.obs_names))
    return adata


def r_objects(path: Path) -> dict[str, object]:
    """The objects of a file of R by name, as `rdata` converts them; members of lists are called ``list.member``."""
    try:
        import rdata

        with warnings.catch_warnings(action="ignore"):  # of classes that `rdata` leaves as they are
            parsed = rdata.parser.parse_file(path, extension=path.suffix.lower())
            objects = rdata.conversion.convert(parsed, default_encoding=parsed.extra.encoding or "utf-8")
    except ImportError as error:
        raise SettingError(f"{path} is a file of R. Reading it needs: pip install 'sims_kit[r]'") from error
    except Exception as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}). {WAY_OUT}") from error
    objects = objects if isinstance(objects, dict) else {path.stem: objects}
    while lists := [name for name, value in objects.items() if isinstance(value, dict | list)]:
        members = objects.pop(lists[0])
        members = members.items() if isinstance(members, dict) else enumerate(members, 1)
        objects |= {f"{lists[0]}.{member}": value for member, value in members}
    return objects


def _is_matrix(value: object) -> bool:
    kinds = value.dtypes if isinstance(value, pd.DataFrame) else [getattr(value, "dtype", None)]
    is_dense = getattr(value, "ndim", 0) == 2 and all(kind.kind in "iuf" for kind in kinds)
    return is_dense or hasattr(value, "Dim") or hasattr(value, "assays")


def _adata(value: object) -> AnnData:
    if hasattr(value, "assays"):
        return _experiment(value) if hasattr(value, "colData") else _seurat(value)
    if isinstance(value, pd.DataFrame):
        matrix, names = value.to_numpy(np.float32, na_value=np.nan), [value.index, value.columns]
    elif hasattr(value, "Dim"):  # dgCMatrix, dgTMatrix, dgRMatrix and their kin
        slots, names = vars(value), value.Dimnames
        kind, indices = (sp.csr_matrix, "j") if "j" in slots else (sp.csc_matrix, "i")
        where = (slots[indices], slots["p"]) if "p" in slots else ((slots["i"], slots["j"]),)
        x = np.asarray(slots.get("x", np.ones(len(slots[indices]))), np.float32)
        matrix = kind((x, *where), tuple(value.Dim))
        matrix.check_format(full_check=True)
    else:
        matrix = np.ma.array(getattr(value, "values", value), dtype=np.float32).filled(np.nan)
        names = [value.coords.get(axis) for axis in value.dims] if hasattr(value, "dims") else [None, None]
    adata, (genes, cells) = AnnData(matrix.T), names.values() if isinstance(names, dict) else names
    adata.var_names = np.asarray(genes if np.ndim(genes) else adata.var_names).astype(str)
    adata.obs_names = np.asarray(cells if np.ndim(cells) else adata.obs_names).astype(str)
    return adata


def _experiment(value: object) -> AnnData:
    assays = getattr(value.assays, "data", None) or vars(value.assays)[".xData"]["data"]  # before Bioconductor 3.10
    layers = {str(name): _adata(assay) for name, assay in assays.listData.items()}
    adata = layers.pop("counts" if "counts" in layers else next(iter(layers)))
    ranges = getattr(value, "rowRanges", value)  # a table of genes, or where they lie
    places = [value, *(getattr(ranges, slot, None) for slot in ("ranges", "partitioning"))]
    genes = next((place.NAMES for place in places if np.ndim(getattr(place, "NAMES", None))), adata.var_names)
    cells = value.colData.rownames if np.ndim(value.colData.rownames) else adata.obs_names
    obs, var = _table(value.colData.listData, cells), _table(ranges.elementMetadata.listData, genes)
    return AnnData(adata.X, obs=obs, var=var, layers={name: layer.X for name, layer in layers.items()})


def _seurat(value: object) -> AnnData:
    slots, parts = vars(value), {"counts": [], "data": []}  # scaled values are left out
    obs = slots["meta.data"].assign(active_ident=slots["active.ident"])
    assay = value.assays["RNA" if "RNA" in value.assays else slots["active.assay"][0]]
    is_v5 = hasattr(assay, "layers")  # names are in tables of names x layers
    for layer, stored in (assay.layers if is_v5 else vars(assay)).items():
        kind = layer.partition(".")[0]  # of "counts.2", too
        if kind in parts and 0 not in (part := _adata(stored)).shape:
            tables = (assay.cells, assay.features) if is_v5 else ()
            names = [table.dim_0.values[table.sel(dim_1=layer).values] for table in tables]
            part.obs_names, part.var_names = names or (obs.index, part.var_names)
            parts[kind].append(part)
    layers = {kind: concat(split, join="outer")[obs.index] for kind, split in parts.items() if split}
    adata = layers.pop("counts" if "counts" in layers else "data").copy()
    adata.obs = _table(obs, obs.index)
    adata.layers.update({kind: layer[:, adata.var_names].X for kind, layer in layers.items()})
    return adata


def _table(columns: Mapping, names: Iterable) -> pd.DataFrame:
    """The columns with a value for each name; text as objects, which every version of anndata can write."""
    columns = {str(c): pd.Series(v) for c, v in dict(columns).items() if np.ndim(v) == 1 and len(v) == len(names)}
    columns = {c: (v.astype(object) if v.dtype == "string" else v).array for c, v in columns.items()}
    return pd.DataFrame(columns, index=np.asarray(names).astype(str))
