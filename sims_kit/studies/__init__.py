"""The thesis's experiments, as functions over scikit-learn estimators that return tidy tables.

``METHODS["linear SVM"](seed)`` is an unfitted classifier; some need the packages of ``pip install 'sims_kit[peers]'``.
"""

from sims_kit.datasets.simulate import STRESS_GENES as STRESS_GENES
from sims_kit.studies.ablation import ablation
from sims_kit.studies.comparison import compare
from sims_kit.studies.generalization import generalization
from sims_kit.studies.inference import inference
from sims_kit.studies.interpretation import check_gene_set, faithfulness
from sims_kit.studies.methods import METHODS

__all__ = ["METHODS", "ablation", "check_gene_set", "compare", "faithfulness", "generalization", "inference"]
