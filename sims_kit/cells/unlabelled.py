"""Cells for a training that needs no labels, from as many files as there are."""

import numpy as np

from sims_kit.cells.batches import UNKNOWN
from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.matrix import LabelledCells


class UnlabelledModule(DataModule):
    """All cells of files or AnnData objects, whether they have a label or not; else a `DataModule`.

    Parameters
    ----------
    datafiles, **settings
        As in `DataModule`, without `labelfiles` and `class_label`. The split is random, not stratified.

    Raises
    ------
    As `DataModule`, but for what concerns labels.
    """

    def __init__(self, datafiles, **settings):
        super().__init__(datafiles, **settings)

    def _check_labels(self) -> None:
        """None are needed."""

    def _encode_labels(self, files: list[LabelledCells]) -> None:
        self._classes, self._labels = [], np.full(sum(len(file.labels) for file in files), UNKNOWN)
