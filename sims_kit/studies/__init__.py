"""The thesis's experiments, as functions over scikit-learn estimators that return tidy tables.

`compare` asks several methods the same folds. `generalization` trains on one group of cells and tests on the others;
`ablation` trains on fewer and fewer cells, and `smallest_within` and `convergence` read off when they are enough.
`inference` labels a tissue culture by a model of primary tissue. `METHODS` holds the methods by name. `rank_genes`,
`marker_recovery`, `faithfulness`, `stability` and `check_gene_set` measure what explanations are worth.
"""

from sims_kit.studies.ablation import Ablation, ablation, convergence, smallest_within
from sims_kit.studies.comparison import Comparison, compare
from sims_kit.studies.generalization import Generalization, generalization
from sims_kit.studies.inference import Inference, inference
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
    "Ablation",
    "Comparison",
    "Generalization",
    "Inference",
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
