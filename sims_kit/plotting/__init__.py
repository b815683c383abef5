"""Figures of the thesis and of the studies: numbers and tables in, matplotlib Axes out.

Each function draws on the Axes that it gets, or on a new figure that is large enough for the names, and returns the
Axes for a title or for ``ax.figure.savefig``. A table that lacks a column, has no rows or has more lines than there are
colours (seven) gets an error that names what is expected.
"""

from sims_kit.plotting.confidence import confidence, rejection_curves, reliability_diagram
from sims_kit.plotting.explanation import (
    cell_genes,
    class_genes,
    explain_matrix,
    faithfulness_curves,
    gene_set_weight,
    top_genes,
)
from sims_kit.plotting.studies import ablation, composition, generalization, method_scores
from sims_kit.plotting.training import confusion_matrix, label_distribution, training_curves

__all__ = [
    "ablation",
    "cell_genes",
    "class_genes",
    "composition",
    "confidence",
    "confusion_matrix",
    "explain_matrix",
    "faithfulness_curves",
    "gene_set_weight",
    "generalization",
    "label_distribution",
    "method_scores",
    "rejection_curves",
    "reliability_diagram",
    "top_genes",
    "training_curves",
]
