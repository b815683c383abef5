"""sims_kit: label single cells with SIMS, an interpretable neural network, and learn how it works.

The public face. `load` or `read` cells, `fit` a model (or `generate_trainer`, as in the thesis), `annotate` a query,
`pretrain` it without labels first, `explain` which genes were used, `calibrate` a model anew, `save_model` and
`load_model`; `calibration`, `datasets`, `lessons`, `metrics`, `plotting`, `studies` and `widgets` beside
them.
"""

import os
from importlib.metadata import version

# Threads that wait for each other sleep instead of spinning: spinning ones slow each other down ten times and more as
# soon as another program needs a core. Read when torch is first imported, hence before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sims_kit import calibration, datasets, lessons, metrics, plotting, studies, widgets
from sims_kit.annotation import annotate, calibrate, embed, gene_coverage, prediction_sets
from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.splits import stratified_split
from sims_kit.datasets import load, read
from sims_kit.estimator import SIMS
from sims_kit.explanation import CellExplanation, Explanation, explain, explain_cell
from sims_kit.model import (
    RECIPES,
    Recipe,
    SIMSClassifier,
    load_model,
    save_model,
)
from sims_kit.pretraining import pretrain
from sims_kit.training import fit, generate_trainer

__version__ = version("sims_kit")

__all__ = [
    "RECIPES",
    "SIMS",
    "CellExplanation",
    "DataModule",
    "Explanation",
    "Recipe",
    "SIMSClassifier",
    "annotate",
    "calibrate",
    "calibration",
    "datasets",
    "embed",
    "explain",
    "explain_cell",
    "fit",
    "gene_coverage",
    "generate_trainer",
    "lessons",
    "load",
    "load_model",
    "metrics",
    "plotting",
    "prediction_sets",
    "pretrain",
    "read",
    "save_model",
    "stratified_split",
    "studies",
    "widgets",
]
