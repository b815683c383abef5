"""Figures: the numbers on the Axes, not their pixels; and names that can be read."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import sparse
from sklearn import metrics as sk

from sims_kit import plotting
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError

LONG_NAMES = [
    "CD8+/CD45RA+ Naive Cytotoxic",
    "CD4+/CD25 T Reg",
    "CD19+ B",
    "CD4+/CD45RA+/CD25- Naive T",
    *(f"L{2 + number % 5}/{3 + number % 3} IT CTX subclass {number}" for number in range(38)),
]


@pytest.fixture
def history():
    """Five epochs; accuracy is best at 2, equalled at 4; loss is best at 3."""
    return pd.DataFrame(
        {
            "train_loss": [2.0, 1.0, 0.5, 0.4, 0.3],
            "val_loss": [2.1, 1.2, 0.9, 0.8, 1.0],
            "val_accuracy_micro": [0.1, 0.5, 0.9, 0.8, 0.9],
            "val_median_f1": [0.0, 0.4, np.nan, 0.7, 0.8],
        },
        index=pd.RangeIndex(5, name="epoch"),
    )


def tick_names(axis):
    """The names along an axis."""
    return [label.get_text() for label in axis.get_ticklabels()]


def bar_widths(ax):
    """The lengths of horizontal bars, from the top."""
    return [bar.get_width() for bar in ax.patches]


def texts(ax):
    """What is written into the Axes."""
    return {text.get_text() for text in ax.texts}


def vertical_line(ax):
    """Where the dotted line stands."""
    return [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]


def test_labels_are_counted_and_sorted():
    """Bars are the counts, the commonest first (at the top) and equally common labels by name; none is lost."""
    ax = plotting.label_distribution(["T", "B", "T", "NK", None, "T", "DC", "DC", np.nan])
    assert tick_names(ax.yaxis) == ["T", "(no label)", "DC", "B", "NK"]
    assert bar_widths(ax) == [3, 2, 2, 1, 1]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlim()[1] > 3.2  # the longest bar leaves room for its count
    assert {"3", "2", "1"} <= texts(ax)


def test_unused_categories_get_no_bar():
    """A pandas categorical with a category that no cell has draws only what is there."""
    ax = plotting.label_distribution(pd.Series(pd.Categorical(["T", "B"], categories=["B", "T", "unused"])))
    assert tick_names(ax.yaxis) == ["B", "T"]


def test_curves_are_the_history(history):
    """One panel per metric that was tracked, with its values; gaps are skipped, not drawn as zero."""
    axes = plotting.training_curves(history)
    assert [ax.get_title() for ax in axes] == ["loss", "accuracy (micro)", "median F1"]
    training, validation = axes[0].lines[:2]
    np.testing.assert_array_equal(training.get_ydata(), history["train_loss"])
    np.testing.assert_array_equal(validation.get_ydata(), history["val_loss"])
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), [0, 1, 3, 4])


def test_the_best_epoch_is_marked(history):
    """By default the first of the highest validation accuracies; a loss is best where lowest."""
    assert {tuple(vertical_line(ax)) for ax in plotting.training_curves(history)} == {(2,)}
    assert vertical_line(plotting.training_curves(history, monitor="val_loss")[0]) == [3]
    assert vertical_line(plotting.training_curves(history, monitor="val_median_f1")[0]) == [4]
    without = history[["train_loss", "val_loss"]]
    assert vertical_line(plotting.training_curves(without)[0]) == [3]
    assert vertical_line(plotting.training_curves(without[["train_loss"]])[0]) == []


def test_curves_name_what_was_not_tracked(history):
    """Unknown metrics and monitors are answered with those that exist; no epochs and too few axes are refused."""
    with pytest.raises(UnknownNameError, match="median_f1"):
        plotting.training_curves(history, metrics=["medianf1"])
    with pytest.raises(UnknownNameError, match="val_loss"):
        plotting.training_curves(history, monitor="valid_loss")
    with pytest.raises(DataError, match="no epochs"):
        plotting.training_curves(history.iloc[:0])
    with pytest.raises(SettingError, match="1 axes for 3 panels"):
        plotting.training_curves(history, axes=[plt.figure().subplots()])


def test_confusion_matrix_agrees_with_scikit_learn():
    """Rows are the true classes and sum to 1; counts are scikit-learn's; only predicted classes come last."""
    rng = np.random.default_rng(0)
    y_true = rng.choice(["T", "B", "NK"], 60)
    y_pred = np.where(rng.random(60) < 0.6, y_true, rng.choice(["B", "Any", "Unknown"], 60))
    expected = sk.confusion_matrix(y_true, y_pred, labels=["B", "NK", "T", "Any", "Unknown"])[:3]
    ax = plotting.confusion_matrix(y_true, y_pred)
    shares = ax.images[0].get_array()
    assert tick_names(ax.yaxis) == ["B", "NK", "T"]
    assert tick_names(ax.xaxis) == ["B", "NK", "T", "Any", "Unknown"]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares, expected / expected.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(
        plotting.confusion_matrix(y_true, y_pred, normalise=False).images[0].get_array(), expected
    )
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in ax.texts}
    assert written == {tuple(where): expected[tuple(where)] for where in np.argwhere(expected).tolist()}


def test_counts_are_written_only_where_they_can_be_read():
    """Fifteen classes have numbers, sixteen have not."""
    names = [f"type {number:02d}" for number in range(16)]
    assert len(plotting.confusion_matrix(names[:15], names[:15]).texts) == 15
    assert not plotting.confusion_matrix(names, names).texts


def test_top_genes_are_divided_by_the_largest():
    """The heaviest genes, falling, the first as 1; genes of weight 0 are not drawn."""
    genes = pd.DataFrame({"weight": [0.1, 0.5, 0.0, 0.4]}, index=["A", "B", "C", "D"])
    ax = plotting.top_genes(genes)
    assert tick_names(ax.yaxis) == ["B", "D", "A"]
    np.testing.assert_allclose(bar_widths(ax), [1, 0.8, 0.2])
    assert tick_names(plotting.top_genes(genes, n=2).yaxis) == ["B", "D"]


@pytest.fixture
def masks():
    """Six cells x four genes; gene C is never used."""
    return sparse.csr_matrix(
        [[0.9, 0.1, 0, 0], [0.2, 0, 0, 0.8], [1, 0, 0, 0], [0, 0.3, 0, 0.7], [0.6, 0.4, 0, 0], [0, 0, 0, 1]]
    )


def test_explain_matrix_sorts_genes_by_their_sum(masks):
    """Columns are the used genes from the largest sum to the smallest, cells in their order."""
    ax = plotting.explain_matrix(masks, list("ABCD"))
    assert tick_names(ax.xaxis) == ["A", "D", "B"]
    assert tick_names(ax.yaxis) == ["6 cells"]
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(drawn[::100], masks.toarray()[:, [0, 3, 1]])
    assert plotting.explain_matrix(masks, list("ABCD"), n_genes=1).images[0].get_array().shape[1] == 1


def test_explain_matrix_gives_each_label_the_same_height(masks):
    """Bands of 300 rows for two labels; each row is a cell of that label and every cell is drawn."""
    labels = ["T", "B", "T", "T", "T", "T"]
    ax = plotting.explain_matrix(masks, list("ABCD"), labels=labels)
    assert tick_names(ax.yaxis) == ["B (1)", "T (5)"]
    drawn, dense = np.asarray(ax.images[0].get_array()), masks.toarray()[:, [0, 3, 1]]
    np.testing.assert_array_equal(drawn[:300], np.tile(dense[1], (300, 1)))
    np.testing.assert_array_equal(drawn[300::60], dense[[0, 2, 3, 4, 5]])


def test_explain_matrix_stays_small():
    """Of 20,000 cells and 300 genes an image of 600 x 50 is made, with rare labels in it."""
    cells = sparse.random(20_000, 300, density=0.02, format="csr", random_state=0)
    labels = np.where(np.arange(20_000) == 12_345, "rare", "common")
    ax = plotting.explain_matrix(cells, [f"G{gene}" for gene in range(300)], labels=labels)
    assert ax.images[0].get_array().shape == (600, 50)
    assert tick_names(ax.yaxis) == ["common (19,999)", "rare (1)"]


def test_class_genes_divide_columns_by_their_maximum():
    """Genes are chosen by the norm of the weights as given, and the largest value of each column is 1."""
    classes = pd.DataFrame(
        {"even but tiny": [0.01, 0.01], "unused": [0.0, 0.0], "of T": [0.1, 0.4], "of B": [0.9, 0.0]},
        index=["B", "T"],
    )
    ax = plotting.class_genes(classes, n=2)
    assert tick_names(ax.xaxis) == ["of B", "of T"]
    assert tick_names(ax.yaxis) == ["B", "T"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0.25], [0, 1]])
    assert tick_names(plotting.class_genes(classes).xaxis) == ["of B", "of T", "even but tiny"]


def test_gene_figures_refuse_what_they_cannot_draw(masks):
    """A missing column, no weight at all, no genes asked for and lists of another length are named."""
    with pytest.raises(UnknownNameError, match=r"no column of the gene table 'weight'.*'weights'"):
        plotting.top_genes(pd.DataFrame({"weights": [1.0]}))
    with pytest.raises(DataError, match="No gene has a weight above 0"):
        plotting.top_genes(pd.DataFrame({"weight": [0.0, 0.0]}))
    with pytest.raises(SettingError, match="0 genes asked for"):
        plotting.top_genes(pd.DataFrame({"weight": [1.0]}), n=0)
    with pytest.raises(DataError, match="3 names for 4 columns"):
        plotting.explain_matrix(masks, list("ABC"))
    with pytest.raises(LabelError, match="cells: 6, labels: 2"):
        plotting.explain_matrix(masks, list("ABCD"), labels=["T", "B"])
    with pytest.raises(DataError, match="No gene has a weight above 0"):
        plotting.explain_matrix(masks[:0], list("ABCD"))
    with pytest.raises(DataError, match="No gene has a weight above 0"):
        plotting.class_genes(pd.DataFrame(index=["T", "B"]))


def test_confidence_shows_quantiles_and_the_share_below():
    """Classes from the surest down; the point is the median, the text the share below the threshold."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["B", "T"], [50, 150])
    confidences = np.where(labels == "T", rng.uniform(0.6, 1, 200), rng.uniform(0.2, 0.9, 200))
    ax = plotting.confidence(confidences, labels, threshold=0.5)
    assert tick_names(ax.yaxis) == ["T", "B"]
    points = next(line for line in ax.lines if line.get_marker() == "o")
    by_hand = [np.median(confidences[labels == name]) for name in ("T", "B")]
    np.testing.assert_allclose(points.get_xdata(), by_hand)
    thin, thick = ([path.vertices[:, 0] for path in lines.get_paths()] for lines in ax.collections)
    np.testing.assert_allclose(thin[1], np.quantile(confidences[labels == "B"], [0.05, 0.95]))
    np.testing.assert_allclose(thick[1], np.quantile(confidences[labels == "B"], [0.25, 0.75]))
    assert texts(ax) == {"below 0.5", "0% of 150", f"{np.mean(confidences[:50] < 0.5):.0%} of 50"}


@pytest.mark.parametrize("correct", [[True, True, False, True], [True] * 4, [False] * 4])
def test_confidence_draws_right_and_wrong_apart(correct):
    """Medians of the right and of the wrong cells of each class; a class without either has none."""
    correct, labels = np.array(correct), np.array(["T", "T", "T", "B"])
    confidences = np.array([0.9, 0.8, 0.4, 0.6])
    ax = plotting.confidence(confidences, labels, correct)
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines if line.get_marker() == "o"}
    for name, part in (("right", correct), ("wrong", ~correct)):
        expected = pd.Series(confidences[part]).groupby(labels[part]).median().reindex(["T", "B"])
        np.testing.assert_allclose(drawn[name], expected)


@pytest.mark.parametrize(
    ("confidences", "labels", "settings", "error", "message"),
    [
        ([], [], {}, LabelError, "labels is empty"),
        ([0.5], ["T", "B"], {}, LabelError, "confidences: 1, labels: 2"),
        ([0.5, 0.5], ["T", "B"], {"correct": [True]}, LabelError, "correct: 1"),
        ([0.5, np.nan], ["T", "B"], {}, DataError, "1 of 2 confidences"),
        ([0.5, 3.2], ["T", "B"], {}, DataError, "pass probabilities"),
        ([0.5, 0.6], ["T", "B"], {"threshold": 50}, SettingError, "threshold is 50"),
    ],
)
def test_confidence_refuses_what_is_no_probability(confidences, labels, settings, error, message):
    """Lengths, values and threshold outside of their range are named."""
    with pytest.raises(error, match=message):
        plotting.confidence(confidences, labels, **settings)


def test_labels_of_another_length_are_refused():
    """No cells, or two label lists of different length, are an error that gives the lengths."""
    with pytest.raises(LabelError, match="labels is empty"):
        plotting.label_distribution([])
    with pytest.raises(LabelError, match="y_true: 1, y_pred: 2"):
        plotting.confusion_matrix(["T"], ["T", "B"])


def every_figure(n_classes):
    """Each figure with `n_classes` long names, by its function's name; the keyword is passed on."""
    labels = np.repeat(LONG_NAMES[:n_classes], np.arange(1, n_classes + 1) ** 2)
    genes = [f"ENSG{gene:011d}" for gene in range(60)]
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(60) / 5, len(labels))
    by_class = pd.DataFrame(weights, columns=genes).groupby(labels).mean()
    predicted = rng.permutation(labels)
    return {
        "label_distribution": lambda **to: plotting.label_distribution(labels, **to),
        "confusion_matrix": lambda **to: plotting.confusion_matrix(labels, predicted, **to),
        "top_genes": lambda **to: plotting.top_genes(by_class.mean().rename("weight").to_frame(), **to),
        "explain_matrix": lambda **to: plotting.explain_matrix(weights, genes, labels=labels, **to),
        "class_genes": lambda **to: plotting.class_genes(by_class, **to),
        "confidence": lambda **to: plotting.confidence(weights.max(1), labels, labels == predicted, **to),
    }


def written(ax):
    """Every text that is seen on the figure of `ax`, with its box in pixels."""
    ax.figure.canvas.draw()
    found = []
    for one in ax.figure.axes:
        found += [*one.texts, one.xaxis.label, one.yaxis.label]
        for axis in (one.xaxis, one.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [label for tick in ticks for label in (tick.label1, tick.label2)]
    return {text: text.get_window_extent() for text in found if text.get_text() and text.get_visible()}


FIGURES = ["label_distribution", "confusion_matrix", "top_genes", "explain_matrix", "class_genes", "confidence"]


@pytest.mark.parametrize("n_classes", [1, 2, 10, 42])
@pytest.mark.parametrize("figure", FIGURES)
def test_no_name_covers_another_or_leaves_the_figure(figure, n_classes):
    """On a figure of their own, names as long as "CD8+/CD45RA+ Naive Cytotoxic" are apart and inside, at full size."""
    ax = every_figure(n_classes)[figure]()
    boxes, page = written(ax), ax.figure.bbox
    for text, box in boxes.items():
        assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1, text.get_text()
    for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), f"{one.get_text()!r} and {other.get_text()!r}"
    assert min(label.get_fontsize() for label in ax.get_yticklabels()) == 9


@pytest.mark.parametrize("figure", FIGURES)
def test_axes_in_axes_out(figure):
    """A figure is drawn on the Axes it is given and on no other; 10 names still fit on half a page."""
    page, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    assert every_figure(10)[figure](ax=right) is right
    assert plt.get_fignums() == [page.number]
    assert not left.has_data() and right.has_data()
    boxes = [box for text, box in written(right).items() if text in right.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_figures_do_not_change_matplotlib(history):
    """The reader's own matplotlib settings are as before."""
    before = dict(matplotlib.rcParams)
    for draw in every_figure(3).values():
        draw()
    plotting.training_curves(history)
    assert dict(matplotlib.rcParams) == before


def test_figures_need_no_torch():
    """The module can be loaded without torch or scanpy, which take seconds."""
    code = (
        "import sys, types; package = types.ModuleType('sims_kit'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['sims_kit'] = package; import sims_kit.plotting; "
        "sys.exit(' '.join({'torch', 'scanpy', 'anndata'} & set(sys.modules)) or 0)"
    )
    folder = plotting.__file__.rpartition("plotting")[0]
    loaded = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
