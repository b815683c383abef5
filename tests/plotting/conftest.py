"""Tables that the tests of figures draw."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import sparse

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew."""
    yield
    plt.close("all")


@pytest.fixture
def tables():
    """One small table for every kind of figure."""
    t = SimpleNamespace()
    # five epochs; accuracy is best at 2, equalled at 4; loss is best at 3
    t.history = pd.DataFrame({"train_loss": [2.0, 1.0, 0.5, 0.4, 0.3], "val_loss": [2.1, 1.2, 0.9, 0.8, 1.0]})
    t.history["val_accuracy_micro"], t.history["val_median_f1"] = [0.1, 0.5, 0.9, 0.8, 0.9], [0, 0.4, np.nan, 0.7, 0.8]
    # six cells x four genes; the third gene is never used
    rows = [[0.9, 0.1, 0, 0], [0.2, 0, 0, 0.8], [1, 0, 0, 0], [0, 0.3, 0, 0.7], [0.6, 0.4, 0, 0], [0, 0, 0, 1]]
    t.masks = sparse.csr_matrix(rows)
    # four genes of one cell, of either sign
    t.genes = pd.DataFrame({"weight": [0.1, 0.5, 0.0, 0.4], "contribution": [2.0, 0.5, -0.1, -3.0]}, index=list("ABCD"))
    t.genes["expression"] = [1.04, 2.0, 3.0, 4.0]
    return t
