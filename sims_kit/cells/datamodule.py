"""Any number of files or AnnData objects as training, validation and test batches."""

import gc
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset

from sims_kit.cells.batches import CellDataset, MemoryCells, cell_loader, cell_stream
from sims_kit.cells.device import DeviceBatches, on_device
from sims_kit.cells.disk import CellStream, DiskCells
from sims_kit.cells.genes import GeneAlignment, id_kind, shared_genes
from sims_kit.cells.matrix import LabelledCells, labelled_cells
from sims_kit.cells.samplers import BLOCK_SIZE, BUFFER_SIZE, shard_of
from sims_kit.cells.settings import check_settings, listed, unique_names
from sims_kit.cells.splits import Split, stratified_split
from sims_kit.datasets import StoredMatrix, open_stored, read
from sims_kit.datasets.delimited import sniff
from sims_kit.datasets.stored import left_on_disk, stored_names
from sims_kit.errors import LabelError


class DataModule(LightningDataModule):
    """Labelled cells from files or AnnData objects, split and ready to train on (thesis, section 0.2).

    Files are read, filtered, labelled and brought onto common genes once, when first needed. Batches
    are sparse; counts are depth-normalised and log1p-ed batch by batch. Classes are stratified over all
    files together; class weights come from training cells alone. AnnData objects are never changed, and
    their matrix is shared where possible: leave it as it is while the module is in use.

    Parameters
    ----------
    datafiles
        Path, AnnData, or a list of them. Any format of `sims_kit.datasets.read`.
    labelfiles
        None when labels are in ``obs``; else a delimited file, or a list with one entry (or None) per
        datafile.
    class_label
        Column with the labels, in ``obs`` or the label file. Labels are compared as text.
    orientation
        ``"cells_by_genes"`` or ``"genes_by_cells"``, one for all or one per datafile. Concerns files;
        an AnnData has cells in rows.
    keep, drop
        Cells to keep or drop by their values in ``obs`` columns: ``{"cell_number": [1]}``.
    layer
        None for ``X``, ``"raw"``, or a layer's name.
    genes
        ``"intersection"`` of the files' genes, or ``"union"`` with absent ones as zero.
    batch_size
        Cells per batch, at least 2 (batch normalisation needs two).
    validation, test
        Shares of the cells; 0 for none.
    seed
        Of the split and of the order of training batches.
    num_workers
        Processes that prepare batches; 0 prepares them in the training process. Not for cells on disk, which are read
        ahead by threads.
    backed
        Leave the matrices of `.h5ad` and `.zarr` files on disk and read blocks of cells as they are needed: True,
        False, or ``"auto"``, which does so when they would take more than three tenths of the free memory. An AnnData
        that was opened backed stays on disk unless False.
    block_size, buffer_size
        For cells on disk: how many are read from one place, and how many are held at once, to be mixed.
    verbose
        Print what was found.

    Raises
    ------
    FileNotFoundError
        Files that do not exist, all of them named.
    SettingError
        An argument out of range.
    LabelError
        No class label, label files of another number, fewer than two classes.
    UnknownNameError
        No such label column or layer; the nearest are offered.
    GeneError
        Files without a common gene.
    DataError
        A matrix that is empty, scaled, not finite, or turned.
    """

    def __init__(
        self,
        datafiles: str | os.PathLike | AnnData | Sequence[str | os.PathLike | AnnData],
        labelfiles: str | os.PathLike | Sequence[str | os.PathLike | None] | None = None,
        class_label: str | None = None,
        *,
        orientation: str | Sequence[str] = "cells_by_genes",
        keep: Mapping[str, Sequence] | None = None,
        drop: Mapping[str, Sequence] | None = None,
        layer: str | None = None,
        genes: str = "intersection",
        batch_size: int = 64,
        validation: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        backed: bool | str = "auto",
        block_size: int = BLOCK_SIZE,
        buffer_size: int = BUFFER_SIZE,
        verbose: bool = True,
    ):
        super().__init__()
        self.datafiles = listed(datafiles)
        n_files = len(self.datafiles)
        self.labelfiles = [None] * n_files if labelfiles is None else listed(labelfiles)
        self.orientations = [orientation] * n_files if isinstance(orientation, str) else list(orientation)
        self.class_label, self.keep, self.drop, self.layer, self.how = class_label, keep, drop, layer, genes
        self.batch_size, self.validation, self.test = batch_size, validation, test
        self.seed, self.num_workers, self.verbose = seed, num_workers, verbose
        self.backed, self.block_size, self.buffer_size = backed, block_size, buffer_size
        self._dataset: CellDataset | None = None
        self._cell_names: list[str] | None = None
        check_settings(self)
        self._check_labels()

    def setup(self, stage: str | None = None) -> None:
        """Read everything, once; called by Lightning, and by every property that needs it."""
        if self._dataset is not None:
            return
        paths = [
            item if isinstance(item, Path) and turn == "cells_by_genes" else None
            for item, turn in zip(self.datafiles, self.orientations, strict=True)
        ]
        files = [self._read(i, backed) for i, backed in enumerate(left_on_disk(paths, self.layer, self.backed))]
        self._encode_labels(files)
        self._split = stratified_split(self._labels, self.validation, self.test, self.seed)
        for part, share in (("validation", self.validation), ("test", self.test)):
            if share and not len(getattr(self._split, part)):
                raise LabelError(
                    f"None of the {len(self._classes)} classes has a cell to spare for the {part} part. Check that "
                    f"{self.class_label!r} is the column of the labels, merge classes, or set {part}=0."
                )
        self._genes = shared_genes([file.genes for file in files], self.how, [file.name for file in files])
        self._names_of_files = [file.cell_names for file in files]
        self._files = [file.described() for file in files]
        if len(set(self._column("state"))) > 1:
            warnings.warn(
                f"The files differ in state, in order: {self._column('state')}. All are brought to "
                "log-normalised values; counts in every file would be safer.",
                stacklevel=2,
            )
        dataset = self._gathered(files)
        self._say(self._summary())
        self._dataset = dataset

    @property
    def genes(self) -> list[str]:
        """The vocabulary: one name per input of the model."""
        return self._ready("_genes")

    @property
    def gene_kind(self) -> str:
        """What the genes are: ``"ensembl"``, ``"entrez"`` or ``"symbol"``."""
        return id_kind(self.genes)

    @property
    def classes(self) -> list[str]:
        """Class names, sorted; label i stands for ``classes[i]``."""
        return self._ready("_classes")

    @property
    def input_dim(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def output_dim(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def labels(self) -> np.ndarray:
        """int64 class of every cell, over all files in order."""
        return self._ready("_labels")

    @property
    def cell_names(self) -> list[str]:
        """Name of every cell; with ``-0``, ``-1``, ... for its file when files share names."""
        if self._cell_names is None:
            self._cell_names = unique_names([names() for names in self._ready("_names_of_files")])
        return self._cell_names

    @property
    def split(self) -> Split:
        """Positions of train, validation and test cells in `labels` and `cell_names`."""
        return self._ready("_split")

    @property
    def class_weights(self) -> torch.Tensor:
        """float32 (classes,): training cells / (classes x training cells of the class)."""
        training = np.bincount(self.labels[self.split.train], minlength=self.output_dim)
        return torch.tensor(training.sum() / (self.output_dim * training), dtype=torch.float32)

    @property
    def states(self) -> list[str]:
        """What each file's matrix holds: counts, normalised or log-normalised."""
        self.setup()
        return self._column("state")

    @property
    def is_backed(self) -> bool:
        """Whether cells stay on disk."""
        return any(isinstance(source, DiskCells) for source in self._ready("_dataset").sources)

    @property
    def provenance(self) -> dict:
        """Where the cells come from, as plain values that any file format can hold."""
        parts = {part: len(positions) for part, positions in self.split._asdict().items()}
        files = [dict(file) for file in self._files]
        told = {"class_label": self.class_label, "gene_kind": self.gene_kind, "seed": self.seed}
        return {"files": files, **told, "cells": parts}

    def train_dataloader(self) -> DataLoader | CellStream | DeviceBatches:
        """Training cells, in a new order every epoch."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader | CellStream | DeviceBatches | list:
        """Validation cells in order; an empty list when `validation` is 0."""
        return self._loader("validation") if self.validation else []

    def test_dataloader(self) -> DataLoader | CellStream | DeviceBatches | list:
        """Test cells in order; an empty list when `test` is 0."""
        return self._loader("test") if self.test else []

    def predict_dataloader(self) -> DataLoader | CellStream | DeviceBatches | list:
        """Test cells in order: ``cell_names[i] for i in split.test``."""
        return self.test_dataloader()

    def __str__(self) -> str:
        if self._dataset is None:
            return f"DataModule of {len(self.datafiles)} files, not read yet"
        return self._summary()

    def _check_labels(self) -> None:
        if self.class_label is None:
            raise LabelError(f"class_label is missing: name the labels' column, one of {self._label_columns()}.")

    def _label_columns(self) -> list[str]:
        if self.labelfiles[0] is not None:
            return sniff(Path(self.labelfiles[0]), delimiters="\t,;").first
        return list(self._open(0).obs.columns)

    def _open(self, i: int, backed: bool = False) -> AnnData:
        item = self.datafiles[i]
        if isinstance(item, AnnData):
            return item
        if not backed:
            return read(item, orientation=self.orientations[i])
        columns = [*filter(None, [self.class_label]), *(self.keep or ()), *(self.drop or ())]
        return open_stored(item, self.layer, columns if self.labelfiles[i] is None else None)

    def _read(self, i: int, backed: bool) -> LabelledCells:
        item = self.datafiles[i]
        is_path = not isinstance(item, AnnData)
        cells = self._open(i, backed)
        layer = None if is_path and backed else self.layer  # open_stored has made it X
        name = Path(item).name if is_path else f"AnnData {i + 1}"
        chosen = (self.class_label, self.labelfiles[i], self.keep, self.drop, layer)
        found = labelled_cells(cells, name, *chosen, file=item, backed=self.backed is not False)
        if is_path and backed:
            found.cell_names = partial(stored_names, item, found.rows if len(found.rows) < cells.n_obs else slice(None))
            del cells
            gc.collect()  # an AnnData refers to itself: a million names would stay for a while
        return found

    def _encode_labels(self, files: list[LabelledCells]) -> None:
        unlabelled = sum(file.n_unlabelled for file in files)
        self._labels, classes = pd.factorize(np.concatenate([file.labels for file in files]), sort=True)
        self._classes = list(classes)
        if unlabelled:
            n_cells = unlabelled + len(self._labels)
            warnings.warn(
                f"{unlabelled:,} of {n_cells:,} cells have no {self.class_label!r} and are left out.",
                stacklevel=3,
            )
        if len(self._classes) < 2:
            raise LabelError(
                f"Column {self.class_label!r} has one class only, {self._classes[0]!r}, in {len(self._labels):,} "
                "cells. A classifier needs at least two; check class_label, keep and drop."
            )

    def _gathered(self, files: list[LabelledCells]) -> CellDataset:
        """All cells on the common genes; a matrix in memory is let go as soon as it is aligned."""
        sources, start = [], 0
        for file in files:
            labels = self._labels[start : start + len(file.labels)]
            alignment = GeneAlignment(file.genes, self._genes)
            if isinstance(file.matrix, StoredMatrix):
                name = f"The matrix of {file.name}"
                sources.append(DiskCells(file.matrix, file.state, labels, alignment, file.rows, name))
            else:
                matrix, file.matrix = alignment.apply(file.matrix), None
                sources.append(MemoryCells(matrix, file.state, labels))
            start += len(labels)
        return CellDataset(sources)

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader | CellStream | DeviceBatches:
        dataset, positions = self._ready("_dataset"), getattr(self.split, part)
        shard = shard_of(self.trainer, part, len(positions))
        options = dict(batch_size=self.batch_size, shuffle=shuffle, seed=self.seed, shard=shard)
        if self.is_backed:
            return cell_stream(dataset, positions, block_size=self.block_size, buffer_size=self.buffer_size, **options)
        loader = cell_loader(Subset(dataset, positions.tolist()), num_workers=self.num_workers, **options)
        return on_device(loader, self.trainer)

    def _ready(self, name: str):
        self.setup()
        return getattr(self, name)

    def _column(self, key: str) -> list:
        return [file[key] for file in self._files]

    def _summary(self) -> str:
        use = {"log-normalised": "used as they are"}
        lines = [
            f"{file['dataset'] or file['file']}: {file['cells']:,} cells x {file['genes']:,} genes, {file['state']} "
            f"({use.get(file['state'], 'scaled to 10,000 per cell and log1p-ed in each batch')})"
            for file in self._files
        ]
        parts = ", ".join(f"{len(positions):,} {part}" for part, positions in self._split._asdict().items())
        classes = f"{len(self._classes)} classes" if self._classes else "no labels asked for"
        lines.append(f"{classes}, {len(self._genes):,} genes ({self.how}), cells: {parts}")
        return "\n".join(lines)

    @rank_zero_only
    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)
