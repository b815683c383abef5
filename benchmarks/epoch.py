"""Seconds per epoch of `sims_kit.fit`, end to end, beside pytorch-tabnet's `TabNetClassifier.fit` and scsims.

    SIMS_KIT_DATA=FOLDER python benchmarks/epoch.py [--dataset worm-neurons] [--batch-size 256] [--skip-stock]

Each row is a process of its own and CPU time on one thread (`--threads` for more, then on the clock). All take the same
cells, nine tenths of which are trained on and a tenth of which validates every epoch, in batches of the same size. Ours
reads counts and normalises them on the way; pytorch-tabnet is handed dense, log-normalised values, whose making is not
counted. "First" is a whole call that trains one epoch; "further" is what each of the next epochs adds.
"""

import argparse
import importlib.util
import tempfile
import warnings
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import torch
from predict_explain import apart, clock
from pytorch_tabnet.tab_model import TabNetClassifier
from sklearn.model_selection import train_test_split

import sims_kit as sk
from sims_kit.cells.matrix import Scale, normalise

PINNED = "scsims 3.0.6 asks for torch 1.13.1, numpy 1.24.3 and pytorch-tabnet 4.0, so it does not install beside ours"


def main() -> None:
    """Time each method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="worm-neurons")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5, help="of ours, 2 or more; the others train one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-stock", action="store_true", help="which takes minutes")
    arguments = parser.parse_args()
    common = arguments.dataset, arguments.batch_size, arguments.threads
    rows = [
        (f"sk.fit, {recipe} recipe", fit_ours, (recipe, *common), arguments.epochs) for recipe in ("thesis", "default")
    ]
    if not arguments.skip_stock:
        rows.append(("TabNetClassifier.fit", fit_stock, common, 1))  # one takes minutes
    print(f"{arguments.dataset}, batches of {arguments.batch_size}, threads: {arguments.threads}\n")
    print("| method | first epoch, s | further epochs, s each |\n|---|---|---|")
    for name, fit, settings, epochs in rows:
        first = apart(fit, *settings, 1)
        further = f"{(apart(fit, *settings, epochs) - first) / (epochs - 1):.1f}" if epochs > 1 else "not measured"
        print(f"| {name} | {first:.1f} | {further} |", flush=True)
    print("| TabNetClassifier.fit | not run: left out by --skip-stock | |\n" * arguments.skip_stock, end="")
    found = importlib.util.find_spec("scsims")
    print(f"| scsims | not run: {'installed, but not measured here' if found else PINNED} | |")


def fit_ours(recipe: str, dataset: str, batch_size: int, threads: int, n_epochs: int) -> float:
    """Seconds of `sims_kit.fit`."""
    torch.set_num_threads(threads)
    cells, now = sk.load(dataset), clock(threads, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        quiet = dict(verbose=False, logger=False, enable_progress_bar=False, default_root_dir=folder, test=0)
        started = now()
        sk.fit(
            cells, cells.uns["sims_kit"]["label"], recipe=recipe, batch_size=batch_size, max_epochs=n_epochs, **quiet
        )
        return now() - started


def fit_stock(dataset: str, batch_size: int, threads: int, n_epochs: int) -> float:
    """Seconds of pytorch-tabnet's classifier, with its own defaults, which are the thesis recipe's network."""
    torch.set_num_threads(threads)
    cells, now = sk.load(dataset), clock(threads, "cpu")
    labels = cells.obs[cells.uns["sims_kit"]["label"]].astype(str).to_numpy()
    values = normalise(cells.X, Scale("linear")).toarray()
    train, validation = train_test_split(np.arange(len(labels)), test_size=0.1, stratify=labels, random_state=0)
    classifier = TabNetClassifier(verbose=0, device_name="cpu")
    evaluated = [(values[validation], labels[validation])]
    started = now()
    with redirect_stdout(StringIO()), warnings.catch_warnings(action="ignore"):  # it tells of its best epoch
        classifier.fit(
            values[train],
            labels[train],
            evaluated,
            max_epochs=n_epochs,
            batch_size=batch_size,
            drop_last=False,
            compute_importance=False,  # a pass over all cells that is no training
        )
    return now() - started


if __name__ == "__main__":
    main()
