"""Build the zoo of small models that the lessons use, each with its card; nothing in it is made by hand.

    python tools/build_zoo.py                       # all, into the folder `zoo` of the cache
    python tools/build_zoo.py zoo pbmc68k           # some, into a folder

A tenth of each dataset's cells is kept aside before training and examines the finished model.
"""

import argparse
import sys
from pathlib import Path

import sims_kit as sk
from sims_kit.datasets import cache_folder

SEED = 0
NETWORK = dict(n_models=2, n_d=16, n_a=16)  # a quarter of the default's weights: quick to load in a workshop
LESSONS = {
    "pbmc68k": "Blood cells of one donor, ten broad types: for the lessons.",
    "sim-cortex": "Simulated cortex with known markers: for the lessons.",
    "cell-lines-celseq2": "Three lung cancer cell lines: for the lessons.",
}


def build(name: str, folder: Path, max_epochs: int | None = None) -> Path:
    """Train on nine tenths of a dataset and publish, examined on the rest."""
    cells = sk.load(name)
    label = cells.uns["sims_kit"]["label"]
    split = sk.stratified_split(cells.obs[label], validation=0, test=0.1, seed=SEED)
    settings = {} if max_epochs is None else {"max_epochs": max_epochs}
    model = sk.fit(
        cells[split.train].copy(),
        label,
        test=0,
        seed=SEED,
        logger=False,
        verbose=False,
        model_params={"network": NETWORK},
        **settings,
    )
    licence = f"the data's: {cells.uns['sims_kit'].get('licence', 'not stated')}"
    options = dict(cells=cells[split.test].copy(), label=label, title=LESSONS[name], licence=licence)
    return sk.zoo.publish(model, folder, name=name, notes="Built by tools/build_zoo.py.", **options)


def main() -> int:
    """Build the models that were asked for; 0 when all are there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of the zoo; by default in the cache")
    parser.add_argument("names", nargs="*", choices=[*LESSONS, []], help="by default all")
    parser.add_argument("--max-epochs", type=int, help="fewer than the recipe's, to try the script")
    options = parser.parse_args()
    folder = options.folder or cache_folder() / "zoo"
    for name in options.names or LESSONS:
        print(f"{name}: {build(name, folder, options.max_epochs)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
