"""What the tests of figures share."""

import matplotlib
import pytest
from matplotlib import pyplot as plt

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test drew."""
    yield
    plt.close("all")
