"""A model on easy cells, fitted once for the tests of evidence."""

import pytest

import sims_kit as sk


@pytest.fixture(scope="session")
def easy_cells(make_cells):
    """Easy cells with known marker genes."""
    return make_cells(n_cells=150)


@pytest.fixture(scope="session")
def model(easy_cells, tmp_path_factory):
    """A model fitted on them."""
    quiet = dict(enable_progress_bar=False, logger=False, verbose=False)
    return sk.fit(easy_cells, "cell_type", max_epochs=10, default_root_dir=tmp_path_factory.mktemp("fit"), **quiet)
