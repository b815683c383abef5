"""Numbers and tables in, matplotlib Axes out: the figures of the thesis, and those of the studies.

Each function draws on the Axes that it is given, or on a new figure that is large enough for the names, and returns
the Axes for whatever comes next: a title, ``ax.figure.savefig``. Nothing here knows of models or AnnData.
"""

from sims_kit.plotting.ablation import ablation, ablation_scores, convergence
from sims_kit.plotting.comparisons import method_scores, recall_by_size
from sims_kit.plotting.evidence import cell_genes, cell_masks, faithfulness_curves, marker_recovery
from sims_kit.plotting.figures import (
    class_genes,
    confidence,
    confusion_matrix,
    explain_matrix,
    label_distribution,
    top_genes,
    training_curves,
)
from sims_kit.plotting.generalization import generalization, transfer_matrix
from sims_kit.plotting.inference import composition, confidence_shift, stress_curves
from sims_kit.plotting.pretraining import label_efficiency, learning_speed
from sims_kit.plotting.stability import consensus_size, gene_set_weight, stability
from sims_kit.plotting.trust import (
    rejection_curves,
    reliability_diagram,
    set_coverage,
    unseen_roc,
    unseen_scores,
    unseen_types,
)

__all__ = [
    "ablation",
    "ablation_scores",
    "cell_genes",
    "cell_masks",
    "class_genes",
    "composition",
    "confidence",
    "confidence_shift",
    "confusion_matrix",
    "consensus_size",
    "convergence",
    "explain_matrix",
    "faithfulness_curves",
    "gene_set_weight",
    "generalization",
    "label_distribution",
    "label_efficiency",
    "learning_speed",
    "marker_recovery",
    "method_scores",
    "recall_by_size",
    "rejection_curves",
    "reliability_diagram",
    "set_coverage",
    "stability",
    "stress_curves",
    "top_genes",
    "training_curves",
    "transfer_matrix",
    "unseen_roc",
    "unseen_scores",
    "unseen_types",
]
