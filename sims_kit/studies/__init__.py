"""The thesis's experiments, as functions that give tidy tables: so far the benchmark against other methods.

`benchmark` compares methods on the same folds, `read_benchmark` reads what it left on disk; `TASKS` and `PEERS` are
what it knows by name, `Task` and `Peer` what it takes beside these.
"""

from sims_kit.studies.adaptor import Peer, Prediction
from sims_kit.studies.benchmark import Benchmark, benchmark, read_benchmark
from sims_kit.studies.peers import PEERS, make_peer
from sims_kit.studies.tasks import TASKS, Folds, Task

__all__ = [
    "PEERS",
    "TASKS",
    "Benchmark",
    "Folds",
    "Peer",
    "Prediction",
    "Task",
    "benchmark",
    "make_peer",
    "read_benchmark",
]
