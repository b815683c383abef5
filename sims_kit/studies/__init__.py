"""The thesis's experiments, as functions that give tidy tables.

`benchmark` compares methods on the same folds, `read_benchmark` reads what it left on disk; `TASKS` and `PEERS` are
what it knows by name, `Task` and `Peer` what it takes beside these. `generalization` trains on one group of cells and
tests on the others; `ablation` trains on fewer and fewer cells, of which `smallest_within` and `convergence` tell when
they are enough. `inference` labels a tissue culture by a model of primary tissue; `stress_test` and `stress_losses`
measure what cell stress does to labels. `pretraining` compares training from random weights with training from
encoders that learned without labels. `rank_genes`, `marker_recovery`, `faithfulness`, `stability` and
`check_gene_set` measure what explanations are worth.
"""

from sims_kit.studies.ablation import Ablation, ablation
from sims_kit.studies.adaptor import Peer, Prediction
from sims_kit.studies.benchmark import Benchmark, benchmark, read_benchmark
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
from sims_kit.studies.peers import PEERS, make_peer
from sims_kit.studies.pretraining import PretrainingStudy, pretraining
from sims_kit.studies.stress import stress_losses, stress_test
from sims_kit.studies.tasks import TASKS, Folds, Task
from sims_kit.studies.training_size import convergence, smallest_within

__all__ = [
    "PEERS",
    "STRESS_GENES",
    "TASKS",
    "Ablation",
    "Benchmark",
    "Folds",
    "Generalization",
    "Inference",
    "Peer",
    "Prediction",
    "PretrainingStudy",
    "Task",
    "ablation",
    "benchmark",
    "check_gene_set",
    "convergence",
    "faithfulness",
    "generalization",
    "inference",
    "make_peer",
    "marker_recovery",
    "pretraining",
    "rank_genes",
    "read_benchmark",
    "smallest_within",
    "stability",
    "stress_losses",
    "stress_test",
]
