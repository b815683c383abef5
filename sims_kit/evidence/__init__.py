"""What an explanation is worth: four questions, each a function, a table and a plot.

Truth: `rank_genes` ranks genes for each class by SIMS and by other methods, `marker_recovery` compares rankings with
true markers. Faithfulness: `faithfulness` and `sufficiency` take genes away and look at what the calls become.
Stability: `stability`, `consensus` and `members_for_stability` compare the class tables of several models. Gene sets:
`check_gene_set` asks how much a model relies on a named set of genes, such as `STRESS_GENES`.
"""

from sims_kit.evidence.cell_scores import CELL_METHODS, gene_scores_per_cell
from sims_kit.evidence.faithfulness import area_under, faithfulness, sufficiency
from sims_kit.evidence.gene_sets import STRESS_GENES, GeneSetCheck, check_gene_set
from sims_kit.evidence.rankings import METHODS, rank_genes, top_genes_overall
from sims_kit.evidence.stability import (
    Consensus,
    consensus,
    members_for_stability,
    rank_biased_overlap,
    stability,
)
from sims_kit.evidence.truth import marker_recovery, simulated_markers

__all__ = [
    "CELL_METHODS",
    "METHODS",
    "STRESS_GENES",
    "Consensus",
    "GeneSetCheck",
    "area_under",
    "check_gene_set",
    "consensus",
    "faithfulness",
    "gene_scores_per_cell",
    "marker_recovery",
    "members_for_stability",
    "rank_biased_overlap",
    "rank_genes",
    "simulated_markers",
    "stability",
    "sufficiency",
    "top_genes_overall",
]
