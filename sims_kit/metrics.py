"""How good an annotation is, in numbers: the same metrics during training and for arrays of labels.

Every metric is a torchmetrics object. `metric_collection` bundles them for a model that learns batch by
batch; `score` and `per_class` feed the same objects with labels, so the two cannot disagree.

**Which classes an average runs over.** A macro average counts each class once, however few cells it has. A
class can be predicted without occurring in the true labels ("Unknown" always is), so it matters which classes
take part:

- ``accuracy_macro``, ``recall_macro``, ``specificity_macro``, ``balanced_accuracy``, ``median_f1``: the
  classes that occur in the true labels.
- ``precision_macro``, ``f1_macro``, ``cohen_kappa``, ``mcc``: the classes that occur in either, as in
  scikit-learn. A rejected cell therefore lowers them: "Unknown" is a class of precision and F1 zero.
- ``accuracy_micro``, ``accuracy_weighted``, ``f1_micro``, ``f1_weighted``: each cell counts once.

**Equal by definition**, since a cell has one true label and one prediction: ``accuracy_micro`` (which is also
micro precision and micro recall, thesis table 0.1), ``accuracy_weighted`` (recall weighted by the cells of
each class) and ``f1_micro``; likewise ``accuracy_macro`` and ``recall_macro``. All names are kept because
studies report them all.

Ratios of 0 / 0 count as 0, so no value is NaN.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCohenKappa,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassSpecificity,
    MulticlassStatScores,
)

from sims_kit._calibration_error import CalibrationError
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError
from sims_kit.text import label_text

CALIBRATION_BINS = 15  # of equal width; the number most of the calibration literature reports
CELLS_AT_ONCE = 1024  # torch's deterministic mode makes torchmetrics count with a cells x classes² table


class _OverPresentClasses(MulticlassStatScores):
    """A score per class, averaged over the classes that occur in the target.

    The state is torchmetrics' own (true and false positives and negatives per class), which lets all metrics
    of this kind share one update in a `MetricCollection` and sums correctly over processes.

    Parameters
    ----------
    n_classes
        Number of classes; predictions and targets are integers below it, predictions may also be scores
        (cells x classes).
    """

    higher_is_better = True

    def __init__(self, n_classes: int):
        super().__init__(n_classes, average=None, validate_args=False)  # checks cost more than counting

    def compute(self) -> Tensor:
        """The value over all updates so far, a scalar."""
        return self._average(self._per_class()[self.tp + self.fn > 0])

    def _average(self, values: Tensor) -> Tensor:
        return values.mean()


class MacroRecall(_OverPresentClasses):
    """Recall (sensitivity), averaged over the classes of the target (scikit-learn's balanced accuracy)."""

    def _per_class(self) -> Tensor:
        return _ratio(self.tp, self.tp + self.fn)


class MacroSpecificity(_OverPresentClasses):
    """Specificity (true negatives among all negatives), averaged over the classes of the target."""

    def _per_class(self) -> Tensor:
        return _ratio(self.tn, self.tn + self.fp)


class BalancedAccuracy(_OverPresentClasses):
    """(sensitivity + specificity) / 2 per class, averaged over the classes that occur in the target.

    Thesis equation 0.3. scikit-learn's ``balanced_accuracy_score`` is another quantity, the mean sensitivity
    alone: that is `MacroRecall`.
    """

    def _per_class(self) -> Tensor:
        return (_ratio(self.tp, self.tp + self.fn) + _ratio(self.tn, self.tn + self.fp)) / 2


class MedianF1(_OverPresentClasses):
    """Median of the F1 scores of the classes that occur in the target.

    Thesis section 0.3.2, and the measure of the benchmark by Abdelaal et al. (Genome Biology 2019): half of
    the classes are annotated at least this well. An even number of classes gives the mean of the middle two.
    """

    def _per_class(self) -> Tensor:
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def _average(self, values: Tensor) -> Tensor:
        return values.quantile(0.5)  # torch.median would take the lower of the middle two


class _CohenKappa(MulticlassCohenKappa):
    """torchmetrics' kappa; 0 instead of NaN where chance alone already agrees everywhere (a single class)."""

    def compute(self) -> Tensor:
        return super().compute().nan_to_num(nan=0.0)


class _MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    """torchmetrics' coefficient, always a float: it gives an integer 0 where the quantity is undefined."""

    def compute(self) -> Tensor:
        return super().compute().float()


def metric_collection(n_classes: int, prefix: str = "", metrics: Sequence | None = None) -> MetricCollection:
    """The metrics tracked in training, to be updated batch by batch.

    Call ``collection.update(scores, target)`` after each batch and ``collection.compute()`` at the end of the
    epoch; ``collection(scores, target)`` also computes every metric for the batch, many times slower.

    Parameters
    ----------
    n_classes
        Number of classes, at least 1.
    prefix
        Put before each name, such as ``"val_"``.

    Returns
    -------
    MetricCollection
        Fourteen metrics (see the top of this module for their meaning). ``update`` takes scores (float, cells
        x classes: logits or probabilities) and targets (int64, one per cell, 0 to ``n_classes - 1``). Metrics
        with the same counts share them, so a batch costs four updates, not fourteen. Values outside of [0, 1]
        mark a batch as logits, to which calibration applies a softmax (torchmetrics' rule, decided per
        batch): pass probabilities to leave no doubt.

    Raises
    ------
    SettingError
        If `n_classes` is not a positive integer.
    """
    if not isinstance(n_classes, (int, np.integer)) or n_classes < 1:
        raise SettingError(f"n_classes is {n_classes!r}; expected the number of classes, 1 or more.")
    n_classes = int(n_classes)
    calibration = {"calibration_error": CalibrationError(CALIBRATION_BINS)}
    groups = [*_label_metrics(n_classes), calibration]
    if metrics is None:
        return _collection(groups, prefix)
    known = {name: metric for group in groups for name, metric in group.items()}
    for name in metrics:
        if isinstance(name, str) and name not in known:
            raise UnknownNameError("metric", name, known)
    named = {m if isinstance(m, str) else type(m).__name__: known[m] if isinstance(m, str) else m.clone() for m in metrics}
    return MetricCollection(named, prefix=prefix or None)


def score(
    y_true: Sequence,
    y_pred: Sequence,
    probabilities: np.ndarray | pd.DataFrame | None = None,
    classes: Sequence | None = None,
) -> pd.Series:
    """The metrics of `metric_collection`, for arrays of labels.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell, in the same order; compared in the form in which models write them,
        so that 3.0 is "3" and "B cell " is "B cell". Predictions may contain labels that never occur in `y_true`,
        such as ``"Unknown"``, and the other way round.
    probabilities
        Cells x classes, probabilities or logits; adds ``calibration_error`` (15 bins, mean absolute
        difference of confidence and accuracy). It judges the most probable class, whatever `y_pred` says; a
        cell whose true label is not among the classes counts as wrong.
    classes
        The class of each column of `probabilities`; not needed when that is a DataFrame.

    Returns
    -------
    pandas.Series
        One value per metric, between 0 and 1 (``cohen_kappa`` and ``mcc``: from -1), never NaN.

    Raises
    ------
    LabelError
        If there are no cells, labels are missing, or the lengths or the order of the cells differ.
    SettingError
        If `classes` is missing or does not fit the columns of `probabilities`.
    DataError
        If `probabilities` is not cells x classes or not finite.
    """
    truth, prediction, names = _codes(y_true, y_pred)
    values = _computed(_collection(_label_metrics(len(names))), prediction, truth)
    if probabilities is not None:
        probabilities, classes = _checked_probabilities(probabilities, classes, n_cells=len(truth))
        column = torch.from_numpy(pd.Index(classes).get_indexer(names))  # -1, never right: not among classes
        calibration = CalibrationError(CALIBRATION_BINS)
        calibration.update(torch.tensor(probabilities), column[truth])
        values["calibration_error"] = calibration.compute()
    return pd.Series({name: float(value) for name, value in values.items()}, name="score")


def per_class(y_true: Sequence, y_pred: Sequence) -> pd.DataFrame:
    """Precision, recall, specificity and F1 of each class, and the number of its cells.

    Parameters
    ----------
    y_true, y_pred
        As in `score`.

    Returns
    -------
    pandas.DataFrame
        One row per class that occurs in either array, sorted by name; columns ``precision``, ``recall``,
        ``specificity``, ``f1`` (0 to 1) and ``support`` (cells with that true label).

    Raises
    ------
    LabelError
        As in `score`.
    """
    truth, prediction, names = _codes(y_true, y_pred)
    options = dict(num_classes=len(names), average=None, validate_args=False)
    metrics = {
        "precision": MulticlassPrecision(**options),
        "recall": MulticlassRecall(**options),
        "specificity": MulticlassSpecificity(**options),
        "f1": MulticlassF1Score(**options),
    }
    values = _computed(_collection([metrics]), prediction, truth)
    columns = {name: values[name].numpy() for name in metrics}
    columns["support"] = truth.bincount(minlength=len(names)).numpy()
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def _label_metrics(n_classes: int) -> list[dict[str, Metric]]:
    """The metrics that need no probabilities, in groups that share their counts."""
    options = dict(num_classes=n_classes, validate_args=False)
    # At least three: for two classes torchmetrics has rules of its own where the coefficient is undefined.
    at_least_three = dict(num_classes=max(3, n_classes), validate_args=False)
    return [
        {
            "accuracy_micro": MulticlassAccuracy(average="micro", **options),
            "f1_micro": MulticlassF1Score(average="micro", **options),
        },
        {
            "accuracy_macro": MacroRecall(n_classes),
            "accuracy_weighted": MulticlassAccuracy(average="weighted", **options),
            "balanced_accuracy": BalancedAccuracy(n_classes),
            "precision_macro": MulticlassPrecision(average="macro", **options),
            "recall_macro": MacroRecall(n_classes),
            "specificity_macro": MacroSpecificity(n_classes),
            "f1_macro": MulticlassF1Score(average="macro", **options),
            "f1_weighted": MulticlassF1Score(average="weighted", **options),
            "median_f1": MedianF1(n_classes),
        },
        {"cohen_kappa": _CohenKappa(**at_least_three), "mcc": _MatthewsCorrCoef(**at_least_three)},
    ]


def _collection(groups: list[dict[str, Metric]], prefix: str = "") -> MetricCollection:
    metrics = {name: metric for group in groups for name, metric in group.items()}
    return MetricCollection(metrics, prefix=prefix or None, compute_groups=[list(group) for group in groups])


def _computed(metrics: MetricCollection, prediction: Tensor, truth: Tensor) -> dict[str, Tensor]:
    for piece, target in zip(prediction.split(CELLS_AT_ONCE), truth.split(CELLS_AT_ONCE), strict=True):
        metrics.update(piece, target)
    return metrics.compute()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1)  # a part is 0 where the whole is


def _codes(y_true: Sequence, y_pred: Sequence) -> tuple[Tensor, Tensor, list[str]]:
    """True and predicted labels as positions in the sorted names of both."""
    indexes = [labels.index for labels in (y_true, y_pred) if isinstance(labels, pd.Series)]
    if len(indexes) == 2 and not indexes[0].equals(indexes[1]) and set(indexes[0]) == set(indexes[1]):
        raise LabelError(
            "y_true and y_pred hold the same cells in another order (their indexes differ). "
            "Align them, for example y_pred.loc[y_true.index]."
        )
    truth, prediction = _strings(y_true, "y_true"), _strings(y_pred, "y_pred")
    if len(truth) != len(prediction):
        raise LabelError(
            f"y_true has {len(truth)} labels and y_pred {len(prediction)}; both need one per cell, in the same order."
        )
    codes, names = pd.factorize(np.concatenate([truth, prediction]), sort=True)
    codes = torch.from_numpy(codes)
    return codes[: len(truth)], codes[len(truth) :], names.tolist()


def _strings(labels: Sequence, argument: str) -> np.ndarray:
    """Labels as text; refuses what is empty, missing or not one per cell."""
    values = labels if isinstance(labels, pd.Series | np.ndarray) else np.asarray(labels, dtype=object)
    if values.ndim != 1:
        raise LabelError(
            f"{argument} has shape {values.shape}; expected one label per cell. "
            "Of probabilities (cells x classes) take the most probable class first."
        )
    if not len(values):
        raise LabelError(f"{argument} is empty; expected one label per cell. Was every cell filtered out?")
    text = label_text(values)
    if missing := text.isna().sum():
        raise LabelError(
            f"{argument} has {missing} of {len(values)} cells without a label; a score needs one for each. "
            "Leave these cells out of both arrays first."
        )
    return text.to_numpy()


def _checked_probabilities(
    probabilities: np.ndarray | pd.DataFrame, classes: Sequence | None, n_cells: int
) -> tuple[np.ndarray, list[str]]:
    """Probabilities as a float array (cells x classes), and the names of its columns."""
    columns = label_text(probabilities.columns).tolist() if isinstance(probabilities, pd.DataFrame) else None
    classes = None if classes is None else label_text(list(classes)).tolist()
    if classes is None or (columns is not None and set(columns) == set(classes)):
        classes = columns
    if classes is None:
        raise SettingError(
            "probabilities came without the names of its columns. "
            "Pass classes=model.classes, or a DataFrame with one column per class."
        )
    values = np.asarray(probabilities, dtype=np.float32)
    if values.ndim != 2 or len(values) != n_cells:
        raise DataError(f"probabilities has shape {values.shape}; expected {n_cells} rows as y_true has.")
    if len(set(classes)) != len(classes) or len(classes) != values.shape[1]:
        raise SettingError(
            f"classes has {len(classes)} names ({len(set(classes))} different) for the {values.shape[1]} "
            "columns of probabilities; expected one name per column, in their order."
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise DataError(f"probabilities is not finite in {bad} of {n_cells} cells; check their expression.")
    return values, classes
