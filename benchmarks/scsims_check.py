"""Why scsims stays at the level of chance on small data: its training looked into, on pbmc68k.

    SIMS_KIT_SCSIMS_PYTHON=PYTHON python benchmarks/scsims_check.py [--epochs 50]

Trains scsims 3.0.6 as `sims_kit.studies` does, with its tutorial's settings, in the environment of that Python; then
with what may be at fault changed: training batches shuffled (it makes the same ones in every epoch), the second
normalisation of each cell left out, ten times the learning rate. Prints the accuracy on its own training and validation
cells, by the statistics of each batch (as in training) and by the running ones (as in prediction).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp

CHANGES = {  # shuffled, normalised again, learning rate
    "as it is": (False, True, 3e-4),
    "batches shuffled": (True, True, 3e-4),
    "shuffled, not normalised again": (True, False, 3e-4),
    "shuffled, not normalised again, ten times the rate": (True, False, 3e-3),
}


def main() -> None:
    """Write the cells, run each change in the other environment, print the table; or be such a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(Path(arguments.run[0]), arguments.run[1], arguments.epochs)
    import sims_kit as sk
    from sims_kit.cells.matrix import detect_scale, normalise

    cells = sk.load("pbmc68k")
    values = sp.csr_matrix(cells.X)
    labels = cells.obs[cells.uns["sims_kit"]["label"]].astype(str).tolist()
    print("| change | training cells: batch's own | running | validation cells: batch's own | running |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sp.save_npz(Path(folder, "values.npz"), normalise(values, detect_scale(values)))
        Path(folder, "cells.json").write_text(json.dumps({"labels": labels, "genes": cells.var_names.tolist()}))
        for change in CHANGES:
            command = [os.environ["SIMS_KIT_SCSIMS_PYTHON"], str(Path(__file__).resolve()), "--run", folder, change]
            options = dict(cwd=folder, capture_output=True, text=True, check=True)  # it leaves checkpoints where it is
            done = subprocess.run([*command, "--epochs", str(arguments.epochs)], **options)
            print(f"| {change} | {done.stdout.strip().splitlines()[-1]} |", flush=True)


def run(folder: Path, change: str, epochs: int) -> None:
    """Train and print four accuracies; imports nothing of the kit, which this environment lacks."""
    import pandas as pd
    import pytorch_lightning as pl
    import torch
    from anndata import AnnData
    from scsims import SIMS
    from scsims.data import CollateLoader
    from sklearn.preprocessing import StandardScaler

    pl.seed_everything(0)
    shuffled, normalised, rate = CHANGES[change]
    given = json.loads((folder / "cells.json").read_text())
    values = StandardScaler().fit_transform(sp.load_npz(folder / "values.npz").toarray()).astype(np.float32)
    obs = pd.DataFrame({"label": given["labels"]}, index=[str(i) for i in range(len(values))])
    sims = SIMS(data=AnnData(values, obs=obs, var=pd.DataFrame(index=given["genes"])), class_label="label")
    module, setup = sims.datamodule, sims.datamodule.setup

    def set_up(stage=None) -> None:
        setup(stage)
        for name, order in (("trainloader", shuffled), ("valloader", False)):
            loader = getattr(module, name)
            options = dict(batch_size=loader.batch_size, num_workers=0, normalize=normalised, shuffle=order)
            setattr(module, name, CollateLoader(dataset=loader.dataset, **options))

    module.setup = set_up
    optimizer = dict(optimizer=torch.optim.Adam, lr=rate, weight_decay=1e-8)  # its own but for the rate
    sims.setup_model(n_a=64, n_d=64, weights=sims.weights, optim_params=optimizer)
    quiet = dict(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=folder)
    sims.setup_trainer(max_epochs=epochs, **quiet)
    sims.train()
    network = sims.model.network
    state = {name: value.clone() for name, value in network.state_dict().items()}
    found = []
    for loader in (module.trainloader, module.valloader):
        for by_batch in (True, False):
            network.load_state_dict(state)
            network.train(by_batch)
            with torch.no_grad():
                right = torch.cat([network(cells)[0].argmax(1) == labels for cells, labels in loader])
            found.append(f"{right.float().mean():.3f}")
    print(" | ".join(found))


if __name__ == "__main__":
    sys.exit(main())
