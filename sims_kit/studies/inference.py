"""Inference on tissue cultures (thesis section 0.3.7, figures 0.20 and 0.21): train on primary tissue, infer organoids.

What a culture's labels are worth cannot be read off them, as the truth is not known. So this study tells beside them
how sure the model is against cells of primary tissue that it has not seen, whether it looks at genes of cell stress,
and whether cells of known origin are called accordingly. `sims_kit.studies.stress` has the test where truth is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import ttest_ind

from sims_kit.annotation import annotate
from sims_kit.calibration.reliability import share_interval
from sims_kit.cells.splits import stratified_split
from sims_kit.datasets import load
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.explanation import explain
from sims_kit.metrics import score
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.studies.adaptor import UNKNOWN, vocabulary
from sims_kit.studies.interpretation import STRESS_GENES, check_gene_set, members_of
from sims_kit.studies.scores import LEVEL
from sims_kit.studies.tasks import registered
from sims_kit.text import label_text
from sims_kit.training import fit

PRIMARY, CULTURE = "primary", "culture"
TEST_SET, ALL = "test set", "all"  # samples: of primary tissue, and of a culture taken together

Expected = Mapping[str, Mapping[object, Sequence[str]]]


@dataclass(frozen=True)
class Inference:
    """What a model makes of a culture, as tables.

    Intervals are 95 %. Those of percentages are Wilson's, each for its own row: how well that many cells tell the
    share of such calls in the sample. They know nothing of wrong calls, nor of other samples.

    Attributes
    ----------
    cells
        One row per cell: ``tissue`` (``"primary"``, the test set, or ``"culture"``), ``cell``, ``sample``, ``label``
        (``"Unknown"`` below the threshold), ``confidence`` (probability of the best label, 0 to 1), ``best_label``,
        ``second_label``.
    composition
        One row per tissue, sample and class, ``"Unknown"`` among them: ``n_cells``, ``percent`` of the sample's cells,
        ``percent_low``, ``percent_high``.
    confidence
        One row per tissue and sample, and one for the whole culture (sample ``"all"``) where it has several:
        ``n_cells``, ``mean_confidence``, ``median_confidence``, ``confidence_shift`` (mean minus that of the primary
        test set) with ``_low`` and ``_high`` (Welch), ``unknown_percent`` with ``_low`` and ``_high``, ``threshold``.
    test_scores
        `sims_kit.metrics.score` of the best labels in the primary test set, calibration error included.
    stress
        `check_gene_set` of each tissue: ``tissue``, ``class`` (``"overall"`` and each best label), then its columns.
        Empty without a gene set.
    checks
        The same, a table for each tissue.
    expected
        One row per value of `expected`: ``column``, ``value``, ``allowed``, ``n_cells``, ``n_unknown``,
        ``n_consistent``, and ``consistent_percent`` of the cells that are not ``"Unknown"``, with ``_low``, ``_high``.
    unexpected
        The rows of `cells` that contradict it, with ``column`` and ``value``, the surest first.
    model
        The model, trained or taken.
    """

    cells: pd.DataFrame
    composition: pd.DataFrame
    confidence: pd.DataFrame
    test_scores: pd.Series
    stress: pd.DataFrame
    checks: Mapping[str, pd.DataFrame]
    expected: pd.DataFrame
    unexpected: pd.DataFrame
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
    """Label the cells of a culture by a model of primary tissue, and tell how far to trust the labels.

    Parameters
    ----------
    primary
        Labelled primary tissue, cells x genes; AnnData, or a dataset name or path to read. A share of it is kept from
        training and is the test set; with a `model`, all of it is, so pass cells that the model has not seen.
    culture
        Organoids or other cultures; any gene set, no labels needed.
    label
        The `obs` column of `primary` with the labels; None for the one that the registry knows.
    sample
        The `obs` column of `culture` with its organoid, line or donor; None for the registry's, or for one sample.
    model
        A fitted classifier, or the path of one, if it is not to be trained here. After a stop, go on with a saved model
        and ``primary[found.cells.query("tissue == 'primary'")["cell"]]``.
    threshold
        Confidence below which a cell is ``"Unknown"``; by default what less than half of the probability speaks for.
    expected
        What is known of cells beforehand: `obs` column of `culture` -> value -> classes allowed, such as
        ``{"is_transplanted": {True: ["SST", "PVALB", "VIP"]}}``. Values are compared as text.
    gene_set
        Genes that the model should leave alone, named as its genes are; None for no check.
    test
        Share of `primary` that is the test set, of each class.
    seed
        Of the split, the training and the gene sets drawn for comparison.
    **settings
        As in `sims_kit.fit`: ``recipe``, ``max_epochs``, ...

    Returns
    -------
    Inference

    Raises
    ------
    SettingError
        If the label column is not known, or `threshold` or `test` is out of range.
    UnknownNameError
        If a column, a value of `expected` or a class allowed there does not exist.
    GeneError
        If none of `gene_set` is known, or as `annotate` raises it.
    DataError, LabelError
        As `sims_kit.fit` and `annotate` raise them.
    """
    primary, culture = (cells if isinstance(cells, AnnData) else load(cells) for cells in (primary, culture))
    label, sample = label or registered(primary, "label"), sample or registered(culture, "sample")
    model = None if model is None else fitted_model(model)
    truth = _checked(primary, culture, label, sample, threshold, test)
    genes = vocabulary(primary) if model is None else list(model.genes)
    expected = _checked_expectation(culture, expected, sorted(set(truth.dropna())) if model is None else model.classes)
    if gene_set is not None:
        members_of(gene_set, pd.Index(genes))  # refuses a set in other names before the training
    if model is None:
        split = stratified_split(truth, validation=0, test=test, seed=seed)
        model = fit(primary[split.train].copy(), label, seed=seed, test=0, **({"logger": False} | settings))
        primary, truth = primary[split.test], truth.iloc[split.test]

    tissues = {PRIMARY: primary, CULTURE: culture}
    called = {tissue: annotate(cells, model, copy=True) for tissue, cells in tissues.items()}
    samples = {PRIMARY: TEST_SET, CULTURE: ALL if sample is None else label_text(culture.obs[sample]).to_numpy()}
    cells = pd.concat([_calls(tissue, called[tissue], samples[tissue], threshold) for tissue in tissues])
    cells = cells.reset_index(drop=True)
    checks = {} if gene_set is None else {name: _check(model, tissues[name], gene_set, seed) for name in tissues}
    classes = list(model.classes)
    labelled = truth.notna().to_numpy()
    answers = called[PRIMARY][labelled]
    met, contradictions = _against(cells[cells["tissue"] == CULTURE], culture, expected)
    return Inference(
        cells=cells,
        composition=_composition(cells, classes),
        confidence=_confidence(cells, threshold),
        test_scores=score(truth[labelled], answers.obs["sims_label"], answers.obsm["sims_probabilities"], classes),
        stress=_stress_table(checks),
        checks=checks,
        expected=met,
        unexpected=contradictions,
        model=model,
    )


def _checked(
    primary: AnnData, culture: AnnData, label: str | None, sample: str | None, threshold: float, test: float
) -> pd.Series:
    """The labels of primary tissue, once columns and settings are found to make sense."""
    if label is None:
        raise SettingError('Which obs column of the primary tissue holds the labels? Pass label="cell_type", or so.')
    for cells, column in ((primary, label), (culture, sample)):
        if column is not None and column not in cells.obs:
            raise UnknownNameError("obs column", column, cells.obs.columns)
    for name, value in (("threshold", threshold), ("test", test)):
        if not 0 <= value <= 1 or (name == "test" and value in (0, 1)):
            raise SettingError(f"{name}={value!r}; expected a share between 0 and 1.")
    return label_text(primary.obs[label])


def _checked_expectation(culture: AnnData, expected: Expected | None, classes: Sequence[str]) -> list[tuple]:
    """Each expectation as column, value (text) and the classes allowed."""
    found = []
    for column, by_value in (expected or {}).items():
        if column not in culture.obs:
            raise UnknownNameError("obs column", column, culture.obs.columns)
        values = set(label_text(culture.obs[column]).dropna())
        for value, allowed in by_value.items():
            allowed = [allowed] if isinstance(allowed, str) else list(allowed)
            value = label_text(pd.Series([value])).iloc[0]
            if value not in values:
                raise UnknownNameError(f"value of {column!r}", value, sorted(values))
            for name in allowed:
                if name not in classes:
                    raise UnknownNameError("class", name, classes)
            found.append((column, value, allowed))
    return found


def _calls(tissue: str, called: AnnData, samples, threshold: float) -> pd.DataFrame:
    """The rows of `Inference.cells` of one tissue."""
    best = called.obs["sims_label"].astype(str).to_numpy()
    confidence = called.obs["sims_confidence"].to_numpy()
    return pd.DataFrame(
        {
            "tissue": tissue,
            "cell": called.obs_names,
            "sample": samples,
            "label": np.where(confidence >= threshold, best, UNKNOWN),
            "confidence": confidence,
            "best_label": best,
            "second_label": called.obs["sims_second_label"].astype(str).to_numpy(),
        }
    ).fillna({"sample": "(no sample)"})


def _composition(cells: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Share of each class in each sample, classes that are not found there included."""
    rows = []
    for (tissue, sample), own in cells.groupby(["tissue", "sample"], sort=False):
        counts = own["label"].value_counts().reindex([*classes, UNKNOWN], fill_value=0)
        rows += [
            {"tissue": tissue, "sample": sample, "class": name, "n_cells": count} | _percent(count, len(own))
            for name, count in counts.items()
        ]
    return pd.DataFrame(rows)


def _confidence(cells: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """How sure the model is in each sample, against the primary test set."""
    primary, culture = cells[cells["tissue"] == PRIMARY], cells[cells["tissue"] == CULTURE]
    parts = [(PRIMARY, TEST_SET, primary), (CULTURE, ALL, culture)]
    if culture["sample"].nunique() > 1:
        parts += [(CULTURE, sample, own) for sample, own in culture.groupby("sample", sort=True)]
    rows = []
    for tissue, sample, own in parts:
        values, baseline = own["confidence"], primary["confidence"]
        row = {"tissue": tissue, "sample": sample, "n_cells": len(own), "mean_confidence": values.mean()}
        row |= {"median_confidence": values.median(), "confidence_shift": values.mean() - baseline.mean()}
        low, high = (0.0, 0.0) if tissue == PRIMARY else _welch(values, baseline)
        row |= {"confidence_shift_low": low, "confidence_shift_high": high}
        row |= _percent((own["label"] == UNKNOWN).sum(), len(own), "unknown_percent")
        rows.append(row | {"threshold": threshold})
    return pd.DataFrame(rows)


def _welch(first: pd.Series, second: pd.Series) -> tuple[float, float]:
    return tuple(ttest_ind(first, second, equal_var=False).confidence_interval(LEVEL))


def _percent(count: int, total: int, name: str = "percent") -> dict[str, float]:
    """A percentage with its interval, as columns: ``name``, ``name_low``, ``name_high``."""
    low, high = share_interval(int(count), int(total))
    share = count / total if total else np.nan
    return {name: 100 * share, f"{name}_low": 100 * low, f"{name}_high": 100 * high}


def _check(model: SIMSClassifier, cells: AnnData, gene_set: Sequence[str], seed: int) -> pd.DataFrame:
    return check_gene_set(explain(model, cells), cells, gene_set, seed=seed)


def _stress_table(checks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All cells and each class, one tissue after the other."""
    if not checks:
        return pd.DataFrame(columns=["tissue", "class"])
    return pd.concat(checks, names=["tissue"]).reset_index()


def _against(calls: pd.DataFrame, culture: AnnData, expected: list[tuple]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many cells are called as expected, and the calls that are not."""
    rows, contradictions = [], [calls.iloc[:0].assign(column="", value="")]
    for column, value, allowed in expected:
        own = calls[(label_text(culture.obs[column]) == value).to_numpy()]
        known = own[own["label"] != UNKNOWN]
        right = known["label"].isin(allowed)
        row = {"column": column, "value": value, "allowed": ", ".join(allowed), "n_cells": len(own)}
        row |= {"n_unknown": len(own) - len(known), "n_consistent": int(right.sum())}
        rows.append(row | _percent(row["n_consistent"], len(known), "consistent_percent"))
        contradictions.append(known[~right].assign(column=column, value=value))
    columns = ["column", "value", "allowed", "n_cells", "n_unknown", "n_consistent"]
    columns += [f"consistent_percent{ending}" for ending in ("", "_low", "_high")]
    contradictions = pd.concat(contradictions).sort_values("confidence", ascending=False, kind="stable")
    return pd.DataFrame(rows, columns=columns), contradictions.reset_index(drop=True)
