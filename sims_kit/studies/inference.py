"""Inference on tissue cultures (thesis section 0.3.7, figures 0.20 and 0.21): train on primary tissue, label organoids.

The true labels of a culture are not known. So the labels come with what can be known: how confident the model is,
compared with primary cells that it has not seen, whether it uses genes of cell stress, and whether cells of known
origin are labelled accordingly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import binomtest, ttest_ind

from sims_kit.annotation import annotate
from sims_kit.calibration import UNKNOWN
from sims_kit.cells.splits import stratified_split
from sims_kit.datasets import load
from sims_kit.errors import GeneError, SettingError, UnknownNameError
from sims_kit.explanation import explain
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.studies.interpretation import STRESS_GENES, check_gene_set
from sims_kit.text import label_text
from sims_kit.training import fit

PRIMARY, CULTURE = "primary", "culture"
TEST_SET, ALL = "test set", "all"  # samples: of primary tissue, and of a culture taken together

Expected = Mapping[str, Mapping[object, Sequence[str]]]


@dataclass(frozen=True)
class Inference:
    """What a model predicts of a culture, as tables; intervals are 95 %, those of percentages Wilson's.

    Intervals cover the drawing of cells, and neither wrong predictions nor other samples.

    Attributes
    ----------
    cells
        By ``tissue`` (``"primary"``, the test set, or ``"culture"``), ``sample`` and ``cell``: ``label``
        (``"Unknown"`` below the threshold), ``confidence`` (0 to 1), ``best_label``, ``second_label``.
    composition
        ``percent`` of each sample's cells by ``class``, ``"Unknown"`` among them, with ``_low`` and ``_high``.
    confidence
        By tissue and sample (``"all"``: the whole culture): ``mean_confidence``, ``median_confidence``,
        ``confidence_shift`` from the primary test set (``_low``, ``_high``: Welch), ``unknown_percent``.
    stress
        `check_gene_set` of each ``tissue``. Empty without a gene set.
    expected
        For each value of `expected` ``n_cells``, ``n_unknown``, ``n_consistent``, and ``consistent_percent`` of the
        cells that are not ``"Unknown"``, with ``_low``, ``_high``.
    model
        The model, trained or given.
    """

    cells: pd.DataFrame
    composition: pd.DataFrame
    confidence: pd.DataFrame
    stress: pd.DataFrame
    expected: pd.DataFrame
    model: SIMSClassifier


def inference(
    primary: AnnData | str | PathLike,
    culture: AnnData | str | PathLike,
    *,
    label: str | None = None,
    sample: str | None = None,
    model: SIMSClassifier | str | PathLike | None = None,
    threshold: float = 0.5,
    expected: Expected | None = None,
    gene_set: Sequence[str] | None = STRESS_GENES,
    test: float = 0.2,
    seed: int = 0,
    **settings,
) -> Inference:
    """Label the cells of a culture by a model of primary tissue, and say how far to trust the labels.

    Parameters
    ----------
    primary, culture
        Cells x genes of any gene sets; AnnData, or a dataset name or path. A share of the labelled primary cells is
        kept from training and is the test set; with a `model` all of them are, so pass cells that it has not seen.
    label, sample
        The `obs` columns of `primary` with the labels, and of `culture` with its organoid, line or donor; None for
        those that the registry knows.
    model
        A fitted classifier, or its path, if it is not to be trained here.
    threshold
        Confidence below which a cell is ``"Unknown"``.
    expected
        What is known of cells beforehand: `obs` column of `culture` -> value (as text) -> classes allowed, such as
        ``{"is_transplanted": {True: ["SST", "PVALB", "VIP"]}}``.
    gene_set
        Genes that the model should not use, named as its genes are; None for no check.
    test, seed
        Share of `primary` that is the test set, of each class; seed of the split, the training and the check.
    **settings
        As in `sims_kit.fit`: ``recipe``, ``max_epochs``, ...

    Examples
    --------
    >>> found = inference("sim-cortex", "sim-organoid", recipe={"n_models": 1})
    >>> found.confidence[["tissue", "sample", "mean_confidence", "unknown_percent"]]
    """
    primary, culture = (cells if isinstance(cells, AnnData) else load(cells) for cells in (primary, culture))
    label = label or primary.uns.get("sims_kit", {}).get("label")
    sample = sample or culture.uns.get("sims_kit", {}).get("sample")
    model = None if model is None else fitted_model(model)
    if label is None:
        raise SettingError('Which obs column of the primary tissue holds the labels? Pass label="cell_type", or so.')
    for name, value, highest in (("threshold", threshold, 1), ("test", test, 0.99)):
        if not 0 <= value <= highest or (name == "test" and not value):
            raise SettingError(f"{name}={value!r}; expected a share between 0 and 1.")
    truth = label_text(_column(primary, label))
    samples = ALL if sample is None else label_text(_column(culture, sample)).fillna("(no sample)").to_numpy()
    genes = primary.var_names if model is None else model.genes
    if gene_set is not None and not set(gene_set) & set(genes):
        found = f"None of the {len(gene_set):,} genes of gene_set is among the {len(genes):,} of the primary tissue"
        raise GeneError(f"{found}. Name them as there ({genes[0]!r}), or pass gene_set=None.")
    classes = sorted(set(truth.dropna())) if model is None else list(model.classes)
    expected = _checked_expectation(culture, expected or {}, classes)
    if model is None:
        split = stratified_split(truth, validation=0, test=test, seed=seed)
        model = fit(primary[split.train].copy(), label, seed=seed, test=0, **settings)
        primary, classes = primary[split.test], list(model.classes)
    tissues = {PRIMARY: primary, CULTURE: culture}
    tables = [_labels(name, cells, annotate(cells, model, copy=True), classes) for name, cells in tissues.items()]
    tables[0].insert(2, "sample", TEST_SET)
    tables[1].insert(2, "sample", samples)
    cells = pd.concat(tables, ignore_index=True)
    cells.insert(3, "label", cells["best_label"].where(cells["confidence"] >= threshold, UNKNOWN))
    return Inference(
        cells=cells,
        composition=_composition(cells, classes),
        confidence=_confidence(cells, threshold),
        stress=_stress(model, tissues, gene_set, seed),
        expected=_consistent(cells[cells["tissue"] == CULTURE], culture, expected),
        model=model,
    )


def _column(cells: AnnData, name: str) -> pd.Series:
    if name not in cells.obs:
        raise UnknownNameError("obs column", name, cells.obs.columns)
    return cells.obs[name]


def _checked_expectation(culture: AnnData, expected: Expected, classes: Sequence[str]) -> list[tuple]:
    """Each expectation as column, value (text) and the classes allowed."""
    found = []
    for column, by_value in expected.items():
        values = set(label_text(_column(culture, column)).dropna())
        for value, allowed in by_value.items():
            value = label_text([value]).iloc[0]
            if value not in values:
                raise UnknownNameError(f"value of {column!r}", value, sorted(values))
            if unknown := [name for name in allowed if name not in classes]:
                raise UnknownNameError("class", unknown[0], classes)
            found.append((column, value, list(allowed)))
    return found


def _labels(tissue: str, cells: AnnData, annotated: AnnData, classes: list[str]) -> pd.DataFrame:
    """The rows of `Inference.cells` of one tissue, without sample and label."""
    probabilities = annotated.obsm["sims_probabilities"]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    best, second = (np.array(classes, dtype=object)[order[:, i]] for i in (0, 1))
    found = {"tissue": tissue, "cell": cells.obs_names, "confidence": probabilities.max(axis=1)}
    return pd.DataFrame(found | {"best_label": best, "second_label": second})


def _composition(cells: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Share of each class in each sample, classes that are not found there included."""
    rows = []
    for (tissue, sample), part in cells.groupby(["tissue", "sample"], sort=False):
        counts = part["label"].value_counts().reindex([*classes, UNKNOWN], fill_value=0)
        named = {"tissue": tissue, "sample": sample}
        rows += [named | {"class": name, "n_cells": n} | _percent(n, len(part)) for name, n in counts.items()]
    return pd.DataFrame(rows)


def _confidence(cells: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """How confident the model is in each sample, against the primary test set."""
    primary, culture = cells[cells["tissue"] == PRIMARY], cells[cells["tissue"] == CULTURE]
    parts = [(PRIMARY, TEST_SET, primary), (CULTURE, ALL, culture)]
    if culture["sample"].nunique() > 1:
        parts += [(CULTURE, sample, part) for sample, part in culture.groupby("sample", sort=True)]
    rows, baseline = [], primary["confidence"]
    for tissue, sample, part in parts:
        values, low, high = part["confidence"], 0.0, 0.0
        if tissue == CULTURE:
            low, high = ttest_ind(values, baseline, equal_var=False).confidence_interval(0.95)
        row = {"tissue": tissue, "sample": sample, "n_cells": len(part), "mean_confidence": values.mean()}
        row |= {"median_confidence": values.median(), "confidence_shift": values.mean() - baseline.mean()}
        row |= {"confidence_shift_low": low, "confidence_shift_high": high}
        row |= _percent((part["label"] == UNKNOWN).sum(), len(part), "unknown_percent")
        rows.append(row | {"threshold": threshold})
    return pd.DataFrame(rows)


def _percent(count: int, total: int, name: str = "percent") -> dict[str, float]:
    """A percentage with its interval, as columns: ``name``, ``name_low``, ``name_high``."""
    if not total:
        return {name: np.nan, f"{name}_low": 0.0, f"{name}_high": 100.0}
    low, high = binomtest(int(count), int(total)).proportion_ci(0.95, method="wilson")
    return {name: 100 * count / total, f"{name}_low": 100 * low, f"{name}_high": 100 * high}


def _stress(model: SIMSClassifier, tissues: Mapping[str, AnnData], gene_set, seed: int) -> pd.DataFrame:
    """The check of the gene set, one tissue after the other."""
    if gene_set is None:
        return pd.DataFrame(columns=["tissue", "class"])
    checks = {
        name: check_gene_set(explain(model, cells), cells, gene_set, seed=seed) for name, cells in tissues.items()
    }
    return pd.concat(checks, names=["tissue"]).reset_index()


def _consistent(labels: pd.DataFrame, culture: AnnData, expected: list[tuple]) -> pd.DataFrame:
    """How many cells are labelled as expected."""
    rows = []
    for column, value, allowed in expected:
        part = labels[(label_text(culture.obs[column]) == value).to_numpy()]
        known = part[part["label"] != UNKNOWN]
        row = {"column": column, "value": value, "allowed": ", ".join(allowed), "n_cells": len(part)}
        row |= {"n_unknown": len(part) - len(known), "n_consistent": int(known["label"].isin(allowed).sum())}
        rows.append(row | _percent(row["n_consistent"], len(known), "consistent_percent"))
    return pd.DataFrame(rows)
