"""Whether an explanation holds: against known markers, and against what the model does without the genes it names.

`rank_genes` ranks genes for each class by SIMS and by other methods, `marker_recovery` compares rankings with true
markers, `faithfulness` and `sufficiency` take genes away and look at what the calls become.
"""

from sims_kit.evidence.cell_scores import CELL_METHODS, gene_scores_per_cell
from sims_kit.evidence.faithfulness import area_under, faithfulness, sufficiency
from sims_kit.evidence.rankings import METHODS, rank_genes, top_genes_overall
from sims_kit.evidence.truth import marker_recovery, simulated_markers

__all__ = [
    "CELL_METHODS",
    "METHODS",
    "area_under",
    "faithfulness",
    "gene_scores_per_cell",
    "marker_recovery",
    "rank_genes",
    "simulated_markers",
    "sufficiency",
    "top_genes_overall",
]
