"""Any number of files or AnnData objects as training, validation and test batches."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from reprlib import repr as short_repr
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from pooch import file_hash
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only

from sims_kit.cells.genes import GeneAlignment, common_names, id_kind, restrict_genes, shared_genes
from sims_kit.cells.loaders import CellDataset, CellLoader
from sims_kit.cells.matrix import AS_IS, Expression, open_cells, stay_in_files
from sims_kit.cells.splits import Split, check_shares, check_whole, stratified_split
from sims_kit.datasets.labels import attach_labels, check_orientation
from sims_kit.datasets.ontology import COLUMN, common_term
from sims_kit.datasets.read import ORIENTATIONS
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.text import class_labels, label_text, printable, warn


class DataModule(LightningDataModule):
    """Labelled cells from files or AnnData objects, split and ready to train on (thesis, section 0.2).

    Files are brought onto common genes at once; AnnData objects are never changed. Each batch is normalised to log1p of
    10,000 per cell. Classes are stratified over all files together.

    Parameters
    ----------
    datafiles
        Path, AnnData, or a list of them. Any format of `sims_kit.read`.
    labelfiles
        None when labels are in ``obs``; else a delimited file, or a list with one entry (or None) per datafile.
    class_label, groups
        Columns with the labels, in ``obs`` or the label file, and with the donor or sample. Both are compared as text.
    orientation, layer
        Of text files, as in `sims_kit.read`, one for all or one per datafile; None for ``X``, a layer, or ``"raw"``.
    genes
        ``"intersection"`` of the files' genes, ``"union"`` with absent ones as zero, a list of names, or a query.
    validation, test, seed
        As in `stratified_split`; `seed` also decides the order of training batches.
    batch_size, num_workers
        Cells per batch, at least 2, None: the recipe's, else 64; threads that prepare batches, which stay the same.
    backed
        Leave matrices in files, text in the cache: True, False, or ``"auto"``, for files above a tenth of the memory.
    labelled, verbose
        False takes all cells, with or without a label, as pretraining does; print what was found.

    Examples
    --------
    >>> module = DataModule(["a.h5ad", "b.csv.gz"], [None, "b_labels.csv"], "cell_type", groups="donor")
    >>> module.genes, module.classes, module.split.test
    """

    def __init__(
        self,
        datafiles: str | os.PathLike | AnnData | Sequence[str | os.PathLike | AnnData],
        labelfiles: str | os.PathLike | Sequence[str | os.PathLike | None] | None = None,
        class_label: str | None = None,
        *,
        orientation: str | Sequence[str] = "cells_by_genes",
        layer: str | None = None,
        genes: str | Sequence[str] | AnnData = "intersection",
        groups: str | None = None,
        batch_size: int | None = None,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        backed: bool | str = "auto",
        labelled: bool = True,
        verbose: bool = True,
    ):
        super().__init__()
        self.datafiles = _listed(datafiles)
        self.labelfiles = [None] * len(self.datafiles) if labelfiles is None else _listed(labelfiles)
        self.orientations = [orientation] * len(self.datafiles) if isinstance(orientation, str) else list(orientation)
        self.class_label, self.layer, self.genes_wanted, self.groups = class_label, layer, genes, groups
        self.batch_size, self.validation, self.test = batch_size, validation, test
        self.seed, self.num_workers, self.labelled = seed, num_workers, labelled
        self._check_settings()
        self.backed = stay_in_files([item for item in self.datafiles if isinstance(item, Path)], backed)
        self._files = [self._read(i) for i in range(len(self.datafiles))]
        self.classes, self.labels = self._encoded_labels()
        self.split, self.genes = self._split(), self._common_genes()
        self.input_dim, self.output_dim = len(self.genes), len(self.classes)
        sources = [file.expression for file in self._files]
        scales = [source.scale for source in sources]
        if len({(scale.state, scale == AS_IS) for scale in scales}) > 1:
            taken = "All but those of unknown scale are brought to log1p of 10,000; counts everywhere would be safer"
            warn(f"The files differ in scale: {', '.join(map(str, scales))}. {taken}.")
        self._dataset = CellDataset(sources, self.labels)
        if verbose:
            rank_zero_only(print)(self)

    def setup(self, stage: str | None = None) -> None:
        """Do nothing: everything was read when the module was made."""

    @property
    def cell_names(self) -> list[str]:
        """Name of every cell; with ``-0``, ``-1``, ... for its file when files share names."""
        names = []
        for file, orientation in zip(self._files, self.orientations, strict=True):
            of_file = file.names
            if isinstance(of_file, Path):
                of_file = open_cells(of_file, backed=True, orientation=orientation)[0].obs_names
            names.append(of_file[file.expression.cells].astype(str).tolist())
        are_shared = len(names) > 1 and pd.Index([name for of_file in names for name in of_file]).has_duplicates
        return [f"{name}-{i}" if are_shared else name for i, of_file in enumerate(names) for name in of_file]

    @property
    def class_weights(self) -> torch.Tensor:
        """float32 (classes,): training cells / (classes x training cells of the class)."""
        training = np.bincount(self.labels[self.split.train], minlength=self.output_dim)
        return torch.tensor(training.sum() / (self.output_dim * training), dtype=torch.float32)

    @property
    def provenance(self) -> dict:
        """Where the cells come from, as plain values that any file format can hold."""
        colours = {label: colour for file in self._files for label, colour in file.colours.items()}
        ids = pd.concat([file.terms for file in self._files]).groupby("label")["term"].agg(common_term).dropna()
        found = {
            "files": [dict(file.description) for file in self._files],
            "gene_kind": id_kind(self.genes),
            "cells": {part: len(positions) for part, positions in self.split._asdict().items()},
            **{name: getattr(self, name) for name in ("class_label", "layer", "groups", "seed")},
            "label_colors": {label: colours[label] for label in self.classes if label in colours} or None,
            "ontology_ids": {label: ids[label] for label in self.classes if label in ids} or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def train_dataloader(self) -> CellLoader:
        """Training cells, in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> CellLoader | list:
        """Validation cells in order; an empty list when there are none."""
        return self._loader("validation")

    def test_dataloader(self) -> CellLoader | list:
        """Test cells in order, ``cell_names[i] for i in split.test``; an empty list when there are none."""
        return self._loader("test")

    predict_dataloader = test_dataloader

    def __str__(self) -> str:
        line, found = "{}: {cells:,} cells x {genes:,} genes, {state}", [file.description for file in self._files]
        lines = [line.format(one["dataset"] or one["file"], **one) for one in found]
        parts = ", ".join(f"{len(positions):,} {part}" for part, positions in self.split._asdict().items())
        classes = f"{len(self.classes)} classes" if self.labelled else "labels not used"
        return printable("\n".join([*lines, f"{classes}, {len(self.genes):,} genes, cells: {parts}"]), keep="\n")

    __repr__ = __str__

    def _loader(self, part: str, shuffle: bool = False) -> CellLoader | list:
        positions, trainer = getattr(self.split, part), self.trainer
        if not len(positions):
            return []
        shard = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        if shard[1] > 1 and len(positions) < 2 * shard[1]:
            more = "more cells" if part == "train" else "a larger share"
            found = f"The {part} part has {len(positions)} cells for {shard[1]} processes; each needs two."
            raise SettingError(f"{found} Use fewer devices, or {more}.")
        options = {"seed": self.seed, "num_workers": self.num_workers, "shuffle": shuffle, "shard": shard}
        return CellLoader(self._dataset, positions, self.batch_size or 64, **options)

    def _read(self, i: int) -> SimpleNamespace:
        """The labelled cells of one file, and what is known of them."""
        item, labelfile, orientation = self.datafiles[i], self.labelfiles[i], self.orientations[i]
        columns = None if labelfile else [*filter(None, [self.class_label, self.groups])]
        adata, layer = open_cells(item, self.layer, self.backed, orientation=orientation, columns=columns)
        name = item.name if isinstance(item, Path) else f"AnnData {i + 1}"
        expression = Expression(adata, layer, name=f"The matrix of {name}")
        check_orientation(adata, self.class_label if labelfile is None else None, expression.name)
        obs = adata.obs
        if labelfile is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
                cells = AnnData(obs=obs.copy(), var=adata.var[[]])
                attach_labels(cells, labelfile, self.class_label)
            obs = cells.obs
        for column in filter(None, [self.class_label if self.labelled else None, self.groups]):
            if column not in obs:
                raise UnknownNameError(f"obs column of {name} called", column, obs.columns)
        labels = obs[self.class_label] if self.labelled else pd.Series("all", obs.index)
        has_label = label_text(labels).notna().to_numpy()
        if not has_label.any():
            found = f"{name}: none of {len(labels):,} cells has a {self.class_label!r}"
            raise LabelError(f"{found}. Check class_label, and whether the label file names these cells.")
        expression.cells = np.flatnonzero(has_label)
        origin = adata.uns.get("sims_kit")  # of a dataset of the registry, unless it is another's entry
        origin = origin if isinstance(origin, Mapping) else {}
        hashes = [file_hash(path) for path in (item, labelfile) if isinstance(path, Path) and path.is_file()]
        is_stored = isinstance(item, Path) and self.backed
        return SimpleNamespace(
            expression=expression,
            labels=labels[has_label],  # as they are in the file
            groups=None if self.groups is None else obs[self.groups][has_label],
            names=item.absolute() if is_stored else adata.obs_names,  # read later: many take more memory than all else
            colours=_colours(adata, self.class_label) if labelfile is None else {},
            terms=_terms(obs.filter([COLUMN])[has_label], labels[has_label]),
            description={  # for the summary, and for a model's provenance
                "file": name,
                "dataset": str(origin.get("dataset", "")),
                "state": str(expression.scale),
                "cells": len(expression),
                "genes": len(expression.genes),
                "sha256": hashes or [str(found) for found in origin.get("sha256", ())],
            },
        )

    def _encoded_labels(self) -> tuple[list[str], np.ndarray]:
        """The classes, and the class of every cell as a number."""
        if not self.labelled:
            return [], np.full(sum(len(file.labels) for file in self._files), -1)
        labels = class_labels(pd.concat([file.labels for file in self._files]), self.class_label).to_numpy()
        if n_missing := sum(file.expression.matrix.shape[0] for file in self._files) - len(labels):
            warn(f"{n_missing:,} of {n_missing + len(labels):,} cells have no {self.class_label!r} and are left out.")
        codes, classes = pd.factorize(labels, sort=True)
        if len(classes) < 2:
            found = f"Column {self.class_label!r} has one class only, {classes[0]!r}, in {len(labels):,} cells"
            raise LabelError(f"{found}. A classifier needs at least two; check class_label.")
        return list(classes), codes

    def _split(self) -> Split:
        groups = None if self.groups is None else pd.concat([file.groups for file in self._files])
        split = stratified_split(self.labels, self.validation, self.test, self.seed, groups=groups)
        for part, share in (("validation", self.validation), ("test", self.test)):
            if share and not len(getattr(split, part)):
                found = f"None of the {len(self.classes)} classes has a cell to spare for the {part} part"
                way_out = f"that {self.class_label!r} is the column of the labels, merge classes, or set {part}=0"
                raise LabelError(f"{found}. Check {way_out}.")
        return split

    def _common_genes(self) -> list[str]:
        """The vocabulary; each file is aligned to it."""
        file_names, wanted = [file.description["file"] for file in self._files], self.genes_wanted
        names = common_names([file.expression.genes for file in self._files], file_names)
        genes = shared_genes(names, union=isinstance(wanted, str) and wanted == "union", names=file_names)
        if not isinstance(wanted, str):
            genes = restrict_genes(genes, wanted.var if isinstance(wanted, AnnData) else wanted)
        for file, of_file in zip(self._files, names, strict=True):
            file.expression.use(GeneAlignment(of_file, genes))
        return genes

    def _check_settings(self) -> None:
        """Refuse impossible arguments before any file is read."""
        n_files, genes = len(self.datafiles), self.genes_wanted
        check_shares(self.validation, self.test)
        check_whole("batch_size", 2 if self.batch_size is None else self.batch_size, 2)
        check_whole("seed", self.seed, 0)
        check_whole("num_workers", self.num_workers, 0)
        types = [type(item).__name__ for item in self.datafiles if not isinstance(item, Path | AnnData)]
        if types or not n_files:
            found = f"holds {types}" if types else "is empty"
            raise SettingError(f"datafiles {found}: give paths or AnnData objects, at least one.")
        if len(self.orientations) != n_files or not set(self.orientations) <= set(ORIENTATIONS):
            raise SettingError(f"orientation={self.orientations}: choose of {ORIENTATIONS}, for all or for each file.")
        if not (genes in ("intersection", "union") if isinstance(genes, str) else _are_genes(genes)):
            way_out = "or give names of genes (of a mask: var_names[mask]) or a query."
            raise SettingError(f"genes={short_repr(genes)}: choose 'intersection' or 'union', {way_out}")
        if len(self.labelfiles) != n_files:
            found = f"There are {len(self.labelfiles)} labelfiles for {n_files} datafiles."
            raise LabelError(f"{found} Give one for each, None where the labels are in obs.")
        paths = [path for path in [*self.datafiles, *self.labelfiles] if isinstance(path, Path)]
        if missing := [str(path) for path in paths if not path.exists()]:
            found = f"{len(missing)} of {len(paths)} files do not exist: {', '.join(missing)}. Check the paths"
            raise FileNotFoundError(f"{found}; a dataset of the registry is given as sims_kit.load(name).")
        if self.labelled and not isinstance(self.class_label, str):
            first = self.datafiles[0]
            columns = f", one of {list(first.obs)}" if isinstance(first, AnnData) else ""
            found = f"label (class_label) is {self.class_label!r}"
            raise LabelError(f"{found}: name the column with the labels{columns}.")


def _listed(value) -> list:
    """One entry or several as a list; text becomes a path."""
    items = value if isinstance(value, list | tuple) else [value]
    return [Path(os.fspath(item)).expanduser() if isinstance(item, str | os.PathLike) else item for item in items]


def _are_genes(genes) -> bool:
    """Whether this is a query, or names or Entrez ids of genes: no mask, no single number, not empty."""
    names = genes if isinstance(genes, Iterable) else ()
    has_names = any(isinstance(name, str | Integral) and not isinstance(name, bool) for name in names)
    return isinstance(genes, AnnData | pd.DataFrame) or has_names


def _colours(adata: AnnData, label: str | None) -> dict[str, str]:
    """The colours that scanpy keeps of a column of `obs`, by label."""
    colours, is_there = adata.uns.get(f"{label}_colors", ()), label in adata.obs
    labels = label_text(adata.obs[label].astype("category").cat.categories) if len(colours) and is_there else ()
    return dict(zip(labels, map(str, colours), strict=True)) if len(colours) == len(labels) else {}


def _terms(obs: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Each label with each term of an ontology that its cells have."""
    terms = obs[COLUMN].astype(str).str.strip() if COLUMN in obs else ""
    pairs = pd.DataFrame({"label": label_text(labels), "term": terms}).drop_duplicates()
    return pairs[pairs["term"].str.fullmatch(r"[A-Za-z]+:\d+")]  # not "unknown", a list or an address
