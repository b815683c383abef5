"""Inference on tissue cultures (thesis section 0.3.7, figures 0.20, 0.21): train on primary tissue, label organoids."""

import pandas as pd
from anndata import AnnData
from scipy.stats import binomtest, ttest_ind

from sims_kit.annotation import Cells, Model, annotate
from sims_kit.calibration import UNKNOWN
from sims_kit.cells.splits import stratified_split
from sims_kit.datasets import load
from sims_kit.errors import SettingError
from sims_kit.estimator import obs_values
from sims_kit.model.file import fitted_model
from sims_kit.studies.runs import Tables
from sims_kit.text import label_text
from sims_kit.training import fit


def inference(
    primary: Cells,
    culture: Cells,
    *,
    label: str | None = None,
    sample: str | None = None,
    model: Model | None = None,
    seed: int = 0,
    **settings,
) -> Tables:
    """Label the cells of a culture by a model of primary tissue, and say how far to trust the labels.

    `primary` and `culture` are cells x genes of any gene sets: AnnData, a dataset name or a path. `label` and `sample`
    are the `obs` columns of `primary` with the labels, and of `culture` with its organoid, line or donor; None for
    those that the registry knows. `model` is a fitted classifier, or its path, and all primary cells are its test set,
    so pass cells that it has not seen. By default one is trained without a fifth of them; `seed` is of the split and
    the training, and **settings are as in `sims_kit.fit`: ``recipe``, ``max_epochs``, ...

    Tables are ``cells`` of each ``tissue`` (``"primary"``, the test set, or ``"culture"``) and ``sample``: ``label``
    (``"Unknown"`` under a confidence of 0.5), ``confidence``, ``best_label``, ``second_label``. ``composition``, the
    ``percent`` of each sample's cells by class, with Wilson's 95 % interval. ``confidence`` by sample (``"all"``: the
    whole culture), and its shift from the primary test set, with Welch's. Intervals cover the drawing of cells, and
    neither wrong predictions nor other samples. And the ``model``.

    >>> found = inference("sim-cortex", "sim-organoid", recipe={"n_models": 1})
    >>> found.confidence[["tissue", "sample", "mean_confidence", "unknown_percent"]]
    """
    primary, culture = (cells if isinstance(cells, AnnData) else load(cells) for cells in (primary, culture))
    label = label or primary.uns.get("sims_kit", {}).get("label")
    sample = sample or culture.uns.get("sims_kit", {}).get("sample")
    if label is None:
        raise SettingError('Which obs column of the primary tissue holds the labels? Pass label="cell_type", or so.')
    truth = label_text(obs_values(primary, label))
    samples = "all" if sample is None else label_text(obs_values(culture, sample)).fillna("(no sample)").to_numpy()
    if model is None:
        split = stratified_split(truth, validation=0, test=0.2, seed=seed)
        model = fit(primary[split.train].copy(), label, seed=seed, test=0, **settings)
        primary = primary[split.test]
    model, tables = fitted_model(model), []
    for tissue, sample, cells in (("primary", "test set", primary), ("culture", samples, culture)):
        obs = annotate(cells, model, copy=True).obs.astype({"sims_label": object, "sims_second_label": object})
        found = {"tissue": tissue, "cell": obs.index, "sample": sample}
        found |= {"label": obs["sims_label"].where(obs["sims_confidence"] >= 0.5, UNKNOWN)}
        found |= {"confidence": obs["sims_confidence"], "best_label": obs["sims_label"]}
        tables.append(pd.DataFrame(found | {"second_label": obs["sims_second_label"]}))
    cells, composition = pd.concat(tables, ignore_index=True), []
    for (tissue, sample), part in cells.groupby(["tissue", "sample"], sort=False):
        for name in [*model.classes, UNKNOWN]:
            n_cells = (part["label"] == name).sum()
            row = {"tissue": tissue, "sample": sample, "class": name, "n_cells": n_cells}
            composition.append(row | _percent(n_cells, len(part)))
    return Tables(cells=cells, composition=pd.DataFrame(composition), confidence=_confidence(cells), model=model)


def _confidence(cells: pd.DataFrame) -> pd.DataFrame:
    """How confident the model is in each sample, against the primary test set."""
    primary, culture = (cells[cells["tissue"] == tissue] for tissue in ("primary", "culture"))
    parts = [("primary", "test set", primary), ("culture", "all", culture)]
    parts += [("culture", sample, part) for sample, part in culture.groupby("sample") if len(part) < len(culture)]
    rows, baseline = [], primary["confidence"]
    for tissue, sample, part in parts:
        values, low, high = part["confidence"], 0.0, 0.0
        if tissue == "culture":
            low, high = ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95)
        row = {"tissue": tissue, "sample": sample, "n_cells": len(part), "mean_confidence": values.mean()}
        row |= {"median_confidence": values.median(), "confidence_shift": values.mean() - baseline.mean()}
        row |= {"confidence_shift_low": low, "confidence_shift_high": high}
        rows.append(row | _percent((part["label"] == UNKNOWN).sum(), len(part), "unknown_percent"))
    return pd.DataFrame(rows)


def _percent(count: int, total: int, name: str = "percent") -> dict[str, float]:
    """A percentage with its interval, as columns: ``name``, ``name_low``, ``name_high``."""
    low, high = binomtest(int(count), total).proportion_ci(0.95, method="wilson")
    return {name: 100 * count / total, f"{name}_low": 100 * low, f"{name}_high": 100 * high}
