"""Numbers of the tests that compare with an oracle."""

import pytest
import torch


@pytest.fixture
def double_precision():
    """Everything in float64, and the same random numbers in each test."""
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(torch.float32)
