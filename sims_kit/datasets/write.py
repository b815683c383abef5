"""An AnnData as a new file, never in the place of what it was made from."""

import os
from pathlib import Path

import h5py
from anndata import AnnData

from sims_kit.datasets.stored import stored_element
from sims_kit.errors import SettingError
from sims_kit.files import make_folder, written_whole


def new_file(out: str | os.PathLike, source: AnnData | str | os.PathLike) -> Path:
    """Where to write what was made of `source`.

    Raises
    ------
    SettingError
        If `out` is no ``.h5ad`` file, a folder, in none, or the file that `source` comes from.
    """
    path = Path(out).expanduser()
    if path.suffix != ".h5ad" or path.is_dir():
        raise SettingError(f"out={str(out)!r}: name a file to write that ends in .h5ad, such as 'annotated.h5ad'.")
    make_folder(path.parent)
    origin = source.filename if isinstance(source, AnnData) else source
    if origin is not None and path.exists() and Path(origin).expanduser().exists() and path.samefile(origin):
        raise SettingError(
            f"out={str(out)!r} is the file that the cells come from, which stays as it is. Name another."
        )
    return path


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write an AnnData; the file appears whole or not at all.

    A matrix that `open_stored` left in an HDF5 file is copied from there, packed as it is.
    """
    element = None if adata.isbacked else stored_element(adata.X)
    with written_whole(path) as part:
        if not isinstance(element, h5py.Group | h5py.Dataset):
            adata.write_h5ad(part)
            return
        AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm), uns=adata.uns).write_h5ad(part)
        with h5py.File(part, "a") as file:
            file.pop("X", None)
            file.copy(element, file, "X")
