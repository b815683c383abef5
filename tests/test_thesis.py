"""The two listings of the thesis's section 0.3.1, as literally as Lightning 2 and this package's name allow."""

from importlib.util import find_spec

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import yaml

from sims_kit import RECIPES, DataModule, SIMSClassifier, generate_trainer, load_model


@pytest.fixture
def files(make_cells, tmp_path, monkeypatch):
    """data.h5ad without labels and labels.csv, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    cells = make_cells(n_cells=300)
    cells.obs[["cell_type"]].rename(columns={"cell_type": "Cell Type"}).to_csv("labels.csv")
    del cells.obs["cell_type"]
    cells.write_h5ad("data.h5ad")
    return tmp_path


@pytest.mark.parametrize("recipe", ["default", "thesis"])
def test_first_listing(files, monkeypatch, recipe):
    """Three objects that fit together; training leaves nothing behind, also where temporary files lie."""
    monkeypatch.setattr("tempfile.tempdir", str(files))
    settings = dict(max_epochs=3, recipe=recipe)
    trainer, model, module = generate_trainer(["data.h5ad"], ["labels.csv"], class_label="Cell Type", **settings)
    trainer.fit(model, datamodule=module)
    assert len(model.history) == 3 and model.classes == module.classes and model.is_fitted
    assert {path.name for path in files.iterdir()} == {"data.h5ad", "labels.csv"}


@pytest.mark.parametrize("kind", ["CSVLogger", "TensorBoardLogger", "WandbLogger"])
def test_second_listing(files, kind):
    """With a plain Lightning trainer the model keeps its history, the recipe's batch, and its hyperparameters."""
    package = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}.get(kind, "yaml")
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'sims_kit[tracking]'")
    module = DataModule(datafiles=["data.h5ad"], labelfiles=["labels.csv"], class_label="Cell Type")
    where = {"project": "Single-Cell Classifier"} if kind == "WandbLogger" else {"save_dir": "logs"}
    logger = getattr(pl.loggers, kind)(name="name", **where)
    early_stopping_callback = pl.callbacks.EarlyStopping(monitor="val_loss", patience=4)
    trainer = pl.Trainer(
        accelerator="cpu",  # gpus=1 in the thesis
        logger=logger,
        gradient_clip_val=0.5,
        callbacks=[early_stopping_callback],
        max_epochs=3,
    )
    model = SIMSClassifier(input_dim=module.input_dim, output_dim=module.output_dim)
    trainer.fit(model, datamodule=module)
    assert list(model.history.index) == [0, 1, 2] and len([name for name in model.history if name[:4] == "val_"]) > 12
    assert module.batch_size == RECIPES["default"].schedule(len(module.split.train))[0]
    assert model.genes == module.genes and trainer.logged_metrics["val_median_f1"] > 0
    if kind == "WandbLogger":
        found = dict(logger.experiment.config)
        logger.experiment.finish()
    else:
        found = yaml.safe_load((files / logger.log_dir / "hparams.yaml").read_text())
    names = ("n_steps", "n_models", "label_smoothing", "training_steps")
    assert {name: found[name] for name in names} == {name: getattr(RECIPES["default"], name) for name in names}
    torch.testing.assert_close(model.class_weights, module.class_weights)
    again = load_model(trainer.checkpoint_callback.best_model_path)
    assert (again.genes, again.classes) == (model.genes, model.classes) and again.is_fitted and len(again.history) > 0
    if kind == "CSVLogger":
        assert "val_median_f1" in pd.read_csv(files / logger.log_dir / "metrics.csv")
