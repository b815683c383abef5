"""What an explanation is worth: whether it comes back with another seed, and whether it leans on the wrong genes.

`stability`, `consensus` and `members_for_stability` compare class x gene tables of several models; `check_gene_set`
asks how much a model relies on a named set of genes, such as `STRESS_GENES`.
"""

from sims_kit.evidence.gene_sets import STRESS_GENES, GeneSetCheck, check_gene_set
from sims_kit.evidence.stability import (
    Consensus,
    consensus,
    members_for_stability,
    rank_biased_overlap,
    stability,
)

__all__ = [
    "STRESS_GENES",
    "Consensus",
    "GeneSetCheck",
    "check_gene_set",
    "consensus",
    "members_for_stability",
    "rank_biased_overlap",
    "stability",
]
