"""Numbers and tables in, matplotlib Axes out: the figures of the thesis, and those of the studies.

Each function draws on the Axes that it is given, or on a new figure that is large enough for the names, and returns
the Axes for whatever comes next: a title, ``ax.figure.savefig``. Nothing here knows of models or AnnData.
"""

from sims_kit.plotting.comparisons import method_scores, recall_by_size
from sims_kit.plotting.evidence import cell_genes, faithfulness_curves, marker_recovery
from sims_kit.plotting.figures import (
    class_genes,
    confidence,
    confusion_matrix,
    explain_matrix,
    label_distribution,
    top_genes,
    training_curves,
)

__all__ = [
    "cell_genes",
    "class_genes",
    "confidence",
    "confusion_matrix",
    "explain_matrix",
    "faithfulness_curves",
    "label_distribution",
    "marker_recovery",
    "method_scores",
    "recall_by_size",
    "top_genes",
    "training_curves",
]
