"""Figures: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.legend import Legend
from sklearn import metrics as sk

from sims_kit import plotting
from sims_kit.plotting.style import GREY


def said(texts):
    """What is written in texts or a legend."""
    texts = texts.get_texts() if isinstance(texts, Legend) else texts
    return [text.get_text() for text in texts if text.get_text()]


def names(axis):
    """The names along an axis."""
    return said(axis.get_ticklabels())


def test_labels_are_counted_and_sorted():
    """Bars are the counts, the most common at the top and equally common labels by name; none is lost."""
    ax = plotting.label_distribution(["T", "B", "T", "NK", None, "T", "DC", "DC", np.nan])
    assert names(ax.yaxis) == ["T", "(no label)", "DC", "B", "NK"]
    assert [bar.get_width() for bar in ax.patches] == [3, 2, 2, 1, 1] and said(ax.texts) == ["3", "2", "2", "1", "1"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and ax.get_xlim()[1] > 3.2  # room for the longest bar's count
    unused = pd.Series(pd.Categorical(["T", "B"], categories=["B", "T", "unused"]))
    assert names(plotting.label_distribution(unused).yaxis) == ["B", "T"]


def test_unknown_is_grey():
    """`Unknown` has a grey name, and a grey bar or box, in every figure."""
    labels = ["T", "T", "T", "Unknown"]
    bars, boxes = plotting.label_distribution(labels), plotting.confidence([0.9, 0.8, 0.7, 0.1], labels)
    for ax in (bars, boxes, plotting.confusion_matrix(labels, labels)):
        written = {label.get_text(): label.get_color() for label in ax.get_yticklabels()}
        assert [name for name, colour in written.items() if colour == GREY] == ["Unknown"]
    assert all(colors.same_color(box.patches[-1].get_facecolor(), GREY) for box in (bars, boxes))


def test_curves_are_the_history(tables):
    """One panel per tracked metric with its values; gaps are skipped; the best epoch of `monitor` is marked."""
    history, losses = tables.history, tables.history[["train_loss", "val_loss"]]
    axes = plotting.training_curves(history)
    assert [ax.get_title() for ax in axes] == ["loss", "accuracy (micro)", "median F1"]
    np.testing.assert_array_equal([line.get_ydata() for line in axes[0].lines[:2]], losses.T)
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), [0, 1, 3, 4])
    for monitor, best in [(None, []), ("val_loss", [3]), ("val_median_f1", [4]), ("val_accuracy_micro", [2])]:
        lines = plotting.training_curves(history, monitor=monitor)[0].lines
        assert [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"] == best


def test_confusion_matrix_agrees_with_scikit_learn():
    """Rows are the true classes and sum to 1; counts are scikit-learn's; classes only predicted come last."""
    rng = np.random.default_rng(0)
    y_true = rng.choice(["T", "B", "NK"], 60)
    y_pred = np.where(rng.random(60) < 0.6, y_true, rng.choice(["B", "Any", "Unknown"], 60))
    expected = sk.confusion_matrix(y_true, y_pred, labels=["B", "NK", "T", "Any", "Unknown"])[:3]
    ax = plotting.confusion_matrix(y_true, y_pred)
    assert names(ax.yaxis) == ["B", "NK", "T"] and names(ax.xaxis) == ["B", "NK", "T", "Any", "Unknown"]
    np.testing.assert_allclose(ax.collections[0].get_array(), expected / expected.sum(axis=1, keepdims=True))
    assert said(ax.texts) == [str(count) for count in expected.ravel() if count]
    many = [f"type {number:02d}" for number in range(16)]  # sixteen numbers in a row could not be read
    assert [len(said(plotting.confusion_matrix(some, some).texts)) for some in (many[:15], many)] == [15, 0]


def test_genes_of_a_model_and_of_one_cell(tables):
    """The largest, falling: weights with the first as 1, contributions of either sign, with the expression beside."""
    ax = plotting.top_genes(tables.genes)
    assert names(ax.yaxis) == ["B", "D", "A"] and names(plotting.top_genes(tables.genes, n=2).yaxis) == ["B", "D"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [1, 0.8, 0.2])
    ax = plotting.cell_genes(tables.genes, n=3)
    assert names(ax.yaxis) == ["D", "A", "B"] and [bar.get_width() for bar in ax.patches] == [-3.0, 2.0, 0.5]
    against, first, second = (bar.get_facecolor() for bar in ax.patches)
    assert first == second != against and said(ax.texts) == ["4.0", "1.0", "2.0", "expression"]


def test_confidence_shows_quantiles_and_the_share_below():
    """Classes fall by their median; boxes are the middle half; the text is the share below the threshold."""
    labels = np.repeat(["B", "T"], [50, 150])
    confidences = np.random.default_rng(0).uniform(0.3, 1, 200) / np.where(labels == "T", 1, 2)
    ax = plotting.confidence(confidences, labels, threshold=0.5)
    assert names(ax.yaxis) == ["T", "B"]
    for box, name in zip(ax.patches, ("T", "B"), strict=True):
        quarters = np.quantile(confidences[labels == name], [0.25, 0.75])
        np.testing.assert_allclose(np.unique(box.get_path().vertices[:4, 0]), quarters)
    below = [f"{np.mean(confidences[labels == name] < 0.5):.0%}" for name in ("T", "B")]
    assert said(ax.texts) == [f"{below[0]} of 150", f"{below[1]} of 50", "below 0.5"]
