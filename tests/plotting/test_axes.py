"""What all figures keep: names that can be read, given Axes, errors that name the trouble, examples that run."""

import doctest
import itertools
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import sims_kit
from sims_kit import plotting
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError

LONG_NAMES = ["CD8+/CD45RA+ Naive Cytotoxic", "CD4+/CD25 T Reg", "CD19+ B", "CD4+/CD45RA+/CD25- Naive T"]
LONG_NAMES += [f"L{2 + number % 5}/{3 + number % 3} IT CTX subclass {number}" for number in range(38)]


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
        "confidence": lambda **to: plotting.confidence(weights.max(1), labels, **to),
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


@pytest.mark.parametrize("n_classes", [1, 10, 42])
@pytest.mark.parametrize("figure", every_figure(1))
def test_no_name_covers_another_or_leaves_the_figure(figure, n_classes):
    """On a figure of their own, names as long as "CD8+/CD45RA+ Naive Cytotoxic" are apart and inside, at full size."""
    ax = every_figure(n_classes)[figure]()
    boxes, page = written(ax), ax.figure.bbox
    for text, box in boxes.items():
        assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1, text.get_text()
    for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(other_box), f"{one.get_text()!r} and {other.get_text()!r}"
    assert min(label.get_fontsize() for label in ax.get_yticklabels()) == 9


def test_axes_in_axes_out(tables):
    """Every figure of one panel is drawn on the Axes it is given and on no other."""
    settings, given = dict(matplotlib.rcParams), plt.figure().subplots()
    assert plotting.cell_genes(tables.genes, ax=given) is given
    assert all(draw(ax=given) is given for draw in every_figure(10).values())
    assert len(plt.get_fignums()) == 1 and dict(matplotlib.rcParams) == settings  # the reader's own


REFUSED = {  # what is drawn, and the error
    "no labels": (lambda t: plotting.label_distribution([]), LabelError, "There are no labels"),
    "no metric": (lambda t: plotting.training_curves(t.history, metrics=["f1"]), UnknownNameError, "median_f1"),
    "zeros": (lambda t: plotting.top_genes(t.genes.assign(weight=0.0)), DataError, "No gene has a weight or"),
    "0 genes": (lambda t: plotting.top_genes(t.genes, n=0), SettingError, "0 genes asked for"),
    "3.2": (lambda t: plotting.confidence([0.5, 3.2], ["T", "B"]), DataError, "from 0.5 to 3.2"),
    "50": (lambda t: plotting.confidence([0.5], ["T"], threshold=50), DataError, "threshold=50"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused(case, tables):
    """The error names the column, the number or the length, and what is expected."""
    draw, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        draw(tables)


@pytest.mark.parametrize("name", ["classifier", "explanation"])
def test_examples_run(name):
    """The examples of the docstrings do what they say."""
    module = sys.modules[f"sims_kit.plotting.{name}"]
    tried = doctest.testmod(module, extraglobs={"sk": sims_kit, "np": np, "pd": pd})
    assert tried.attempted and not tried.failed
