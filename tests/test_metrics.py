"""Metrics agree with scikit-learn, batch by batch and for arrays of labels."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.functional.classification import binary_calibration_error

from sims_kit.errors import LabelError, UnknownNameError
from sims_kit.metrics import LABEL_METRICS, metric_collection, per_class, score

TWO = ["T", "B"]


def oracle(y_true, y_pred):
    """The metrics by scikit-learn's functions and, for what it lacks, one class against the rest."""
    present = np.unique(y_true)
    sensitivity = sk.recall_score(y_true, y_pred, labels=present, average=None, zero_division=0)
    specificity = np.array([sk.recall_score(y_true != name, y_pred != name, zero_division=0) for name in present])
    with warnings.catch_warnings(action="ignore"):  # predicted classes that never occur; a single class
        return {
            "accuracy_micro": sk.accuracy_score(y_true, y_pred),
            "accuracy_macro": sk.balanced_accuracy_score(y_true, y_pred),
            "accuracy_weighted": sk.recall_score(y_true, y_pred, average="weighted", zero_division=0),
            "balanced_accuracy": np.mean((sensitivity + specificity) / 2),
            "precision_macro": sk.precision_score(y_true, y_pred, average="macro", zero_division=0),
            "recall_macro": sensitivity.mean(),
            "specificity_macro": specificity.mean(),
            "f1_micro": sk.f1_score(y_true, y_pred, average="micro"),
            "f1_macro": sk.f1_score(y_true, y_pred, average="macro", zero_division=0),
            "f1_weighted": sk.f1_score(y_true, y_pred, average="weighted", zero_division=0),
            "median_f1": np.median(sk.f1_score(y_true, y_pred, labels=present, average=None, zero_division=0)),
            "cohen_kappa": np.nan_to_num(sk.cohen_kappa_score(y_true, y_pred)),
            "mcc": sk.matthews_corrcoef(y_true, y_pred),
        }


def draw(seed, n_cells, true_classes, predicted_classes):
    """Labels of which about two thirds are predicted right where the class can be predicted at all."""
    rng = np.random.default_rng(seed)
    y_true = rng.choice(true_classes, n_cells)
    guess = rng.choice(predicted_classes, n_cells)
    keep = (rng.random(n_cells) < 0.66) & np.isin(y_true, predicted_classes)
    return y_true, np.where(keep, y_true, guess)


CASES = {
    "all classes in both": draw(0, 500, list("ABCDEFG"), list("ABCDEFG")),
    "a class is predicted but never true": draw(1, 300, list("ABCD"), list("ABCDE")),
    "a class is true but never predicted": draw(2, 300, list("ABCDE"), list("ABC")),
    "rejected cells": draw(3, 300, ["T", "B", "NK"], ["T", "B", "NK", "Unknown"]),
    "two classes, all wrong": (["T", "B", "T"], ["B", "T", "B"]),
    "one true class": (["T", "T", "T"], ["T", "B", "NK"]),
    "one class, all wrong": (["T", "T"], ["B", "B"]),
    "nothing shared": (["T", "B"], ["Unknown", "Unknown"]),
    "integers": draw(5, 200, [0, 1, 2, 10], [0, 1, 2, 10]),
    "42 classes, few cells": draw(6, 90, list(range(42)), list(range(45))),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_agree_with_scikit_learn(case):
    """Every metric, of all classes and of each, equals scikit-learn's, whichever classes are absent from one side."""
    y_true, y_pred = (np.asarray(labels).astype(str) for labels in CASES[case])
    expected, values = oracle(y_true, y_pred), score(*CASES[case])
    assert list(values.index) == sorted(expected) == list(LABEL_METRICS) and values.notna().all()
    pd.testing.assert_series_equal(values, pd.Series(expected).sort_index(), check_names=False, rtol=0, atol=2e-6)
    table, names = per_class(*CASES[case]), np.union1d(y_true, y_pred)
    parts = sk.precision_recall_fscore_support(y_true, y_pred, labels=names, zero_division=0)
    assert list(table.index) == list(names) and table.index.name == "class"
    np.testing.assert_allclose(table[["precision", "recall", "f1", "support"]].T, parts, atol=1e-6)
    specificity = [sk.recall_score(y_true != name, y_pred != name, zero_division=0) for name in names]
    np.testing.assert_allclose(table["specificity"], specificity, atol=1e-6)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 20])
def test_collection_over_batches_agrees_with_score(n_classes):
    """Batches of uneven length, the last of one cell, give the score of all cells; nothing is left of before."""
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(129, n_classes, generator=generator) * 3
    target = torch.randint(n_classes, (129,), generator=generator)
    collection = metric_collection(n_classes, prefix="val_")
    collection.update(logits, target)
    collection.reset()
    for batch, labels in zip(logits.split(32), target.split(32), strict=True):
        collection.update(batch, labels)
    expected = score(target.numpy(), logits.argmax(1).numpy(), pd.DataFrame(logits.softmax(1)))
    tracked = {name.removeprefix("val_"): value for name, value in collection.compute().items()}
    assert all(value.is_floating_point() and value.isfinite() for value in tracked.values())
    assert tracked == pytest.approx(expected.to_dict(), abs=1e-6)
    assert len(collection) == 14 and len(collection.compute_groups) == 2  # labels are counted once for thirteen


def test_chosen_metrics():
    """Names, and objects of torchmetrics under the name of their class; the nearest names for one that is not known."""
    mine = MulticlassAUROC(3)
    collection = metric_collection(3, "val_", metrics=["median_f1", "calibration_error", mine])
    collection.update(torch.eye(3), torch.arange(3))
    expected = {"val_median_f1": 1, "val_calibration_error": 0, "val_MulticlassAUROC": 1}
    assert {name: float(value) for name, value in collection.compute().items()} == expected
    assert not mine.update_called  # training, validation and test cells each have their own
    with pytest.raises(UnknownNameError, match="median_f1"):
        metric_collection(3, metrics=["medianf1"])


def test_calibration_error_is_that_of_the_predicted_class():
    """Probabilities and logits, with the columns in any order, give the error of the most probable class."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = ["T", "B", "NK", "DC"]
    y_pred = np.asarray(classes)[probabilities.argmax(1)]
    unsure = probabilities.max(1) < 0.77  # too modest there, too sure above: gaps of both signs in one bin of ten
    y_true = np.where(unsure, y_pred, rng.choice([*classes, "never seen"], 400))
    sure, right = torch.tensor(probabilities.max(axis=1)), torch.tensor(y_true == y_pred)
    expected = binary_calibration_error(sure, right.long(), n_bins=15).item()
    tables = (pd.DataFrame(values, columns=classes) for values in (probabilities, logits))
    for table in (some[order] for some in tables for order in (classes, ["NK", "T", "DC", "B"])):
        for given in ([table], [table.to_numpy(), table.columns]):
            assert score(y_true, y_pred, *given)["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_series_are_taken_as_labels():
    """Unused categories are left out; the same cells in different order, which would score as wrong, are refused."""
    y_true, y_pred = CASES["rejected cells"]
    categorical = pd.Series(pd.Categorical(y_true, categories=["T", "B", "NK", "unused"]))
    pd.testing.assert_series_equal(score(categorical, pd.Series(y_pred)), score(y_true, y_pred))
    assert "unused" not in per_class(categorical, y_pred).index
    cells = pd.Series(["T", "B"], index=["cell1", "cell2"])
    with pytest.raises(LabelError, match="another order"):
        score(cells, cells[::-1])
    assert score(cells, pd.Series(["T", "B"]))["accuracy_micro"] == 1  # no cell names to compare: by position


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "y_true is empty"),
        ((["T", "B"], ["T"]), "y_true has 2 labels and y_pred 1"),
        ((["T", None, np.nan, ""], ["T"] * 4), "y_true has 3 of 4 cells without a label"),
        ((["T"], [["T", "B"]]), r"y_pred has shape \(1, 2\)"),
        ((TWO, TWO, pd.DataFrame(np.eye(2), columns=["T", "T"])), r"columns \['T', 'T'\]; expected finite values of 2"),
        ((TWO, TWO, pd.DataFrame(np.eye(3), columns=["T", "B", "NK"])), "3 rows and columns"),
        ((TWO, TWO, pd.DataFrame([[1.0, 0.0], [np.nan, 1.0]], columns=TWO)), "expected finite values"),
        ((TWO, TWO, np.eye(2)), "pass classes=model.classes"),
    ],
)
def test_unusable_input_is_named(arguments, message):
    """The error says which array, how many cells, and what was expected."""
    for function in (score, per_class) if len(arguments) == 2 else (score,):
        with pytest.raises(ValueError, match=message):
            function(*arguments)
