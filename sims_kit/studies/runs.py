"""What studies that train many models share: methods by name, cells with nothing but labels, one sweep of them all."""

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from sims_kit.cells.matrix import Expression, as_csr
from sims_kit.datasets import check_orientation
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.studies.adaptor import UNKNOWN, Peer
from sims_kit.studies.peers import make_peer, versions_of
from sims_kit.studies.sweep import sweep
from sims_kit.studies.worker import cpu_seconds
from sims_kit.text import class_labels


def as_peers(methods: str | Peer | Sequence[str | Peer]) -> dict[str, Peer]:
    """Methods by their names.

    Raises
    ------
    UnknownNameError
        If there is no peer of that name.
    SettingError
        If there is no method, or two have the same name.
    """
    methods = list(methods) if isinstance(methods, list | tuple) else [methods]
    peers = [make_peer(method) if isinstance(method, str) else method for method in methods]
    names = [peer.name for peer in peers]
    if not names or len(set(names)) < len(names):
        raise SettingError(f"The methods need names of their own, one or more: found {names}.")
    return {peer.name: peer for peer in peers}


def as_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Different whole numbers, one or more.

    Raises
    ------
    SettingError
        If they are not.
    """
    seeds = [seeds] if isinstance(seeds, int | np.integer) else list(seeds)
    whole = all(isinstance(seed, int | np.integer) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds={seeds}: give different whole numbers, 0 or more, such as (0, 1, 2).")
    return [int(seed) for seed in seeds]


def plain_cells(cells: AnnData, label: str, name: str = "cells") -> AnnData:
    """The cells that have a label, numbered, with matrix, genes and ``obs["label"]``: nothing else that could leak.

    Parameters
    ----------
    cells
        Cells x genes, counts or log-normalised; never changed.
    label
        The `obs` column with the labels.
    name
        What messages call these cells.

    Warns
    -----
    UserWarning
        If cells without a label are left out.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    LabelError
        If a class is called ``"Unknown"``, or no cell has a label.
    DataError
        If the values are scaled, not finite, or turned.
    """
    if label not in cells.obs:
        raise UnknownNameError(f"obs column of {name} called", label, cells.obs.columns)
    expression = Expression(cells, name=f"The matrix of {name}")
    check_orientation(cells, label, f"The matrix of {name}")
    labels = class_labels(cells.obs[label], label)
    known = np.flatnonzero(labels.notna())
    if not len(known):
        raise LabelError(f"{name}: none of {len(labels):,} cells has a {label!r}.")
    if n_unknown := int((labels == UNKNOWN).sum()):
        raise LabelError(
            f'{name}: {n_unknown} cells are labelled "Unknown", as rejected cells are. '
            "Leave them out, or rename the class."
        )
    if n_unlabelled := len(labels) - len(known):
        warnings.warn(
            f"{name}: {n_unlabelled:,} of {len(labels):,} cells have no {label!r} and are left out.", stacklevel=4
        )
    obs = pd.DataFrame({"label": labels.iloc[known].to_numpy(str)}, index=np.arange(len(known)).astype(str))
    matrix = as_csr(cells.X) if n_unlabelled == 0 else as_csr(cells.X[known])
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=expression.var.index.astype(str)))


def fingerprint(parts: Iterable[AnnData], *settings: object) -> str:
    """A hash of values, genes and `obs` of cells, and of settings: equal ones mean the same study."""
    digest = hashlib.sha256(repr(settings).encode())
    for cells in parts:
        for values in (cells.X.data, cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)):
            digest.update(np.ascontiguousarray(values).tobytes())
        digest.update("\n".join([*cells.var_names, *cells.obs.astype(str).to_numpy().ravel()]).encode())
    return digest.hexdigest()[:12]


def sweep_methods(
    peers: Mapping[str, Peer],
    runs: Sequence[Mapping],
    run: Callable[..., pd.DataFrame],
    folder: str | os.PathLike | None,
    *,
    data: str,
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
    desc: str = "runs",
    text: Sequence[str] = (),
) -> pd.DataFrame:
    """`sweep` over all methods, in which a stored run is used again only if its method's settings are the same.

    Parameters
    ----------
    peers
        Methods by name.
    runs
        Arguments of each run, ``method`` among them.
    run
        Takes a fresh peer and, by name, the arguments but ``method``; gives one row per observation.
    folder, n_jobs, part, desc, text
        As in `sweep`.
    data
        The `fingerprint` of cells and settings of the study.
    """
    versions = {
        name: hashlib.sha256(f"{peer.name}\n{peer.settings}\n{versions_of(peer)}".encode()).hexdigest()[:8]
        for name, peer in peers.items()
    }
    arguments = [{**one, "version": versions[one["method"]]} for one in runs]
    table = sweep(
        arguments,
        partial(_with_peer, run, dict(peers)),
        folder,
        fingerprint=data,
        n_jobs=n_jobs,
        part=part,
        desc=desc,
        text=["method", "version", *text],
    )
    return table.drop(columns="version")


def fit_seconds(peer: Peer, reference: AnnData, seed: int, sample: str | None = None) -> float:
    """Train a peer on ``obs["label"]``, and give the CPU seconds that it took."""
    started = cpu_seconds()
    peer.fit(reference, "label", sample=sample, seed=seed)
    return round(cpu_seconds() - started, 2)


def _with_peer(
    run: Callable[..., pd.DataFrame], peers: Mapping[str, Peer], method: str, version: str, **arguments
) -> pd.DataFrame:
    return run(copy.deepcopy(peers[method]), **arguments)
