"""Figures of the thesis: numbers and tables in, matplotlib Axes out.

Each function draws on a new figure that is large enough for the names, and returns the Axes for a title or for
``ax.figure.savefig``. Those of one panel draw on `ax` instead, if it is given.
"""

from sims_kit.plotting.classifier import confidence, confusion_matrix, label_distribution, training_curves
from sims_kit.plotting.explanation import cell_genes, top_genes
from sims_kit.plotting.style import METHOD_COLOURS

__all__ = [
    "METHOD_COLOURS",
    "cell_genes",
    "confidence",
    "confusion_matrix",
    "label_distribution",
    "top_genes",
    "training_curves",
]
