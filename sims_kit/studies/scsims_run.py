"""Trains scsims and predicts with it, inside the environment that holds it: a script, run by `packages.Scsims`.

The folder that is its only argument holds ``job.json``, ``reference.npz`` and ``query.npz`` (log-normalised, cells x
genes) and takes the checkpoint and ``result.json``. Imports nothing of the kit, which that environment lacks.
"""

import json
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp


def fit(folder: Path, job: dict) -> None:
    """Train with the settings of the package's tutorial; leaves ``best.ckpt``, ``scale.npz``."""
    import pandas as pd
    import pytorch_lightning as pl
    from anndata import AnnData
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
    from scsims import SIMS
    from sklearn.preprocessing import StandardScaler

    pl.seed_everything(job["seed"])
    values = sp.load_npz(folder / "reference.npz").toarray().astype(np.float32)
    scaler = StandardScaler().fit(values)
    np.savez(folder / "scale.npz", mean=scaler.mean_, scale=scaler.scale_)
    names = [str(number) for number in range(len(values))]
    cells = AnnData(
        scaler.transform(values).astype(np.float32),
        obs=pd.DataFrame({"label": job["labels"]}, index=names),
        var=pd.DataFrame(index=job["genes"]),
    )
    model = SIMS(data=cells, class_label="label")
    if len(model.trainloader.dataset) % model.batch_size == 1:  # scsims stops at a last batch of one cell
        model = SIMS(data=cells, class_label="label", batch_size=model.batch_size + 1)
    model.setup_model(n_a=64, n_d=64, weights=model.weights)
    best = ModelCheckpoint(dirpath=folder, filename="best", save_top_k=1, monitor="val_loss", mode="min")
    model.setup_trainer(
        callbacks=[EarlyStopping(monitor="val_loss", patience=50), best],
        max_epochs=50,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
    )
    model.train()


def predict(folder: Path, job: dict) -> None:
    """Predict with the best checkpoint; leaves ``result.json``."""
    import pandas as pd
    from anndata import AnnData
    from scsims import SIMS

    scale = np.load(folder / "scale.npz")
    values = (sp.load_npz(folder / "query.npz").toarray() - scale["mean"]) / scale["scale"]
    cells = AnnData(values.astype(np.float32), var=pd.DataFrame(index=job["genes"]))
    table = SIMS(weights_path=str(folder / "best.ckpt")).predict(cells, num_workers=0)
    ranks = ("first", "second", "third")
    result = {
        "labels": table[[f"{rank}_pred" for rank in ranks]].to_numpy().tolist(),
        "probabilities": table[[f"{rank}_prob" for rank in ranks]].to_numpy().tolist(),
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    where = Path(sys.argv[1])
    the_job = json.loads((where / "job.json").read_text())
    if the_job["step"] == "fit":
        fit(where, the_job)
        (where / "result.json").write_text("{}")
    else:
        predict(where, the_job)
