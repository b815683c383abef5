"""The thesis's experiments, as functions over scikit-learn estimators that return tidy tables.

`compare` asks several methods the same folds. `generalization` trains on one group of cells and tests on the others;
`ablation` trains on fewer and fewer cells, and `smallest_within` and `convergence` read off when they are enough.
`inference` labels a tissue culture by a model of primary tissue.
`rank_genes`, `marker_recovery`, `faithfulness`, `stability` and `check_gene_set` measure what explanations are worth.
`METHODS` holds the methods by name.
"""

from sims_kit.studies.ablation import ablation, convergence, smallest_within
from sims_kit.studies.comparison import compare
from sims_kit.studies.generalization import generalization
from sims_kit.studies.inference import inference
from sims_kit.studies.interpretation import (
    STRESS_GENES,
    check_gene_set,
    faithfulness,
    marker_recovery,
    rank_genes,
    stability,
)
from sims_kit.studies.methods import METHODS, make_method

__all__ = [
    "METHODS",
    "STRESS_GENES",
    "ablation",
    "check_gene_set",
    "compare",
    "convergence",
    "faithfulness",
    "generalization",
    "inference",
    "make_method",
    "marker_recovery",
    "rank_genes",
    "smallest_within",
    "stability",
]
