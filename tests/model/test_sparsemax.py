"""Sparsemax against pytorch-tabnet's, which sorts."""

import pytest
import torch
from pytorch_tabnet.sparsemax import Sparsemax as Oracle

from sims_kit.model.sparse import sparsemax


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (7, 63), (5, 3000)])
def test_equals_oracle(shape, scale):
    """Values and gradients are the oracle's, from one-hot to uniform masks and for a single row."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mask, expected = sparsemax(ours), Oracle(dim=-1)(theirs * 1.0)
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(mask, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_ties_and_order():
    """Equal logits share equally, and rows are independent of each other."""
    logits = torch.tensor([[1.0, 1.0, -9.0], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(sparsemax(logits), torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_an_error(bad):
    """NaN or infinite logits raise at once instead of spreading."""
    logits = torch.zeros(2, 100)
    logits[1, 3] = bad
    with pytest.raises(FloatingPointError, match="diverged"):
        sparsemax(logits)


def test_input_is_left_alone():
    """The logits are not written to."""
    logits = torch.randn(3, 9)
    before = logits.clone()
    sparsemax(logits)
    assert torch.equal(logits, before)
