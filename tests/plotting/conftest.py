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
    # three methods on two tasks; one method has no score on the second
    t.methods = with_interval({"task": list("aaabbb"), "method": ["x", "y", "z"] * 2}, [0.9, 0.8, 0.95, 0.5, np.nan, 1])
    t.methods["unlabelled_percent"] = [0.0, 0.0, 37.7, 0.0, np.nan, 0.0]
    t.eight = pd.concat([t.methods.assign(sample=number) for number in range(8)])
    # two samples, three classes and Unknown
    shares = {"class": ["VIP", "SST", "L4", "Unknown"] * 2, "sample": list("aaaabbbb")}
    t.shares = with_interval(shares, [20, 70, 0, 10, 30, 0, 0, 70], "percent")
    t.shares["truth"] = [22, 68, 0, np.nan, 25, 5, 0, np.nan]
    return t


def with_interval(table, values, name="median_f1"):
    """The table with a score and an interval from 0.1 below to 0.04 above it."""
    values = np.array(values, dtype=float)
    return pd.DataFrame(table).assign(**{name: values, f"{name}_low": values - 0.1, f"{name}_high": values + 0.04})
