"""Write a model file of the present format version and, beside it, what the model answers.

Run once for each format version, by the sims_kit of that time (`PYTHONPATH=checkout python tests/model/files/make.py`).
Files of versions that are no longer written stay as they are: `test_file.py` reads them all.
"""

import json
from pathlib import Path

import pandas as pd
import torch

from sims_kit.model import SIMSClassifier, save_model
from sims_kit.model.file import VERSION

CELLS = [[0.0, 1.5, 0.0, 3.0], [2.0, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0]]
NETWORK = dict(n_models=2, n_d=2, n_a=2)  # small files


def main() -> None:
    """Train for one batch, save, and write down the probabilities."""
    torch.manual_seed(0)
    model = SIMSClassifier(4, 2, genes=list("abcd"), classes=["B cell", "T cell"], recipe=NETWORK)
    model(torch.rand(8, 4))
    model.provenance = {"files": [{"file": "cells.h5ad", "cells": 8}], "class_label": "cell_type", "seed": 0}
    model.test_metrics = pd.Series({"accuracy_micro": 0.75, "median_f1": float("nan")})
    cells, labels = torch.rand(8, 4), torch.arange(8) % 2
    model.novelty.measure([(cells, labels)], torch.ones(len(model.classes)))
    model.logit_adjustment.copy_(torch.tensor([0.5, 0.0]))
    model.calibrate(model.eval()(cells).detach(), labels, model.novelty.distances(cells))
    model.temperature.fill_(1.5)
    path = Path(__file__).with_name(f"version_{VERSION}.safetensors")
    save_model(model.eval(), path)
    with torch.no_grad():
        probabilities = (model(torch.tensor(CELLS)) / 1.5).softmax(dim=1).tolist()
    path.with_suffix(".json").write_text(json.dumps({"cells": CELLS, "probabilities": probabilities}, indent=1) + "\n")


if __name__ == "__main__":
    main()
