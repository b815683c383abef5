"""Cells where they meet the network, against the same on dense cells."""

import pytest
import torch

from sims_kit.model.sparse import first_layer, masked_first_layer, moments, unpacked
from sims_kit.model.sparse import Mask

pytestmark = pytest.mark.usefixtures("double_precision")


def _cells(n_cells=9, n_genes=40):
    """Some cells without a count, first and last among them, and genes that no cell has."""
    cells = torch.poisson(torch.rand(n_cells, n_genes)).log1p()
    cells[[0, n_cells // 2, -1]] = 0
    cells[:, [0, -1]] = 0
    return cells


def _mask(n_cells=9, n_genes=40):
    """The same mask on pairs, two to five genes per cell, and on all genes."""
    weights = torch.rand(n_cells, n_genes)
    weights[weights < weights.topk(5, dim=1).values[:, -1:]] = 0
    cells, genes = weights.nonzero(as_tuple=True)
    return Mask(weights[cells, genes], cells, genes, weights.shape), Mask(weights, None, None, weights.shape)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("value_type", [torch.float32, torch.float64])
def test_unpacked(index_type, value_type):
    """CSR cells come out dense whatever the type of indices and values; dense cells are handed back themselves."""
    cells = _cells().to(value_type)
    csr = cells.to_sparse_csr()
    pointers, genes = csr.crow_indices().to(index_type), csr.col_indices().to(index_type)
    dense = unpacked(torch.sparse_csr_tensor(pointers, genes, csr.values(), csr.shape))
    assert dense.dtype == value_type and torch.equal(dense, cells)
    assert unpacked(cells) is cells


def test_unpacked_after_fuller_cells():
    """What an earlier, larger batch left behind is gone, also where the next has no counts at all."""
    unpacked(torch.ones(12, 50).to_sparse_csr())
    for cells in (_cells(), torch.zeros(3, 7), _cells(2, 90)):
        assert torch.equal(unpacked(cells.to_sparse_csr()), cells)


@pytest.mark.parametrize("value_type, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_moments(make, value_type, tolerance):
    """Mean and variance of each gene: never seen, the same in every cell, and nearly the same at a high level."""
    cells = _cells(61, 60)
    cells[:, 1:40] = torch.linspace(1, 9, 39)  # rounding would make some of their variances negative
    cells[:, 40] = 9 + 1e-2 * torch.randn(61)
    given = make(cells.to(value_type))
    mean, variance = moments(given, unpacked(given))
    exact = cells.to(value_type).double()
    assert mean.dtype == variance.dtype == value_type and (variance >= 0).all()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(variance.double(), exact.var(0, correction=0), rtol=10 * tolerance, atol=1e-12)


def _normalisation(n_genes=40, width=6):
    """What each gene is multiplied by and added, and a weight."""
    return torch.rand(n_genes) + 0.5, torch.randn(n_genes), torch.randn(width, n_genes)


def _gradients(layer, upstream, *given):
    """Value and gradients of a layer."""
    given = [part.clone().requires_grad_() for part in given]
    out = layer(*given)
    return out, *torch.autograd.grad(out, given, upstream)


def test_first_layer():
    """Values and gradients are those of normalising and multiplying; dense cells get a gradient too."""
    cells, upstream, parts = _cells(), torch.randn(9, 6), _normalisation()
    csr = cells.to_sparse_csr()
    out, of_cells, *expected = _gradients(
        lambda cells, scale, shift, weight: (cells * scale + shift) @ weight.T, upstream, cells, *parts
    )
    found = _gradients(lambda *parts: first_layer(csr, unpacked(csr), *parts)[0], upstream, *parts)
    torch.testing.assert_close(found, (out, *expected))
    found = _gradients(lambda cells, *parts: first_layer(cells, cells, *parts)[0], upstream, cells, *parts)
    torch.testing.assert_close(found, (out, of_cells, *expected))


@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_first_layers_gradient_by_differences(make):
    """The gradients are what small changes of normalisation and weight measure."""
    cells = make(_cells(5, 12))
    parts = [part.requires_grad_() for part in _normalisation(12, 3)]
    assert torch.autograd.gradcheck(lambda *parts: first_layer(cells, unpacked(cells), *parts)[0].square(), parts)


@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_masked_first_layer(make):
    """Values and all gradients, on pairs and on all genes, are those of normalising, masking and multiplying."""
    cells, upstream, (pairs, on_all), parts = _cells(), torch.randn(9, 6), _mask(), _normalisation()

    def plain(weights, scale, shift, weight):
        return (weights * (cells * scale + shift)) @ weight.T

    out, of_weights, *expected = _gradients(plain, upstream, on_all.weights, *parts)
    for mask in (pairs, on_all):

        def ours(weights, *parts, mask=mask):
            return masked_first_layer(mask._replace(weights=weights), unpacked(make(cells)), *parts[:2], parts[2].T)

        where = ... if mask.cells is None else (mask.cells, mask.genes)
        found = _gradients(ours, upstream, mask.weights, *parts)
        torch.testing.assert_close(found, (out, of_weights[where], *expected))


@pytest.mark.parametrize("form", [0, 1], ids=["pairs", "all-genes"])
def test_masked_first_layers_gradient_by_differences(form):
    """Its gradients are what small changes of mask, normalisation and weight measure."""
    cells, mask = _cells(5, 12).to_sparse_csr(), _mask(5, 12)[form]
    inputs = mask.weights, *_normalisation(12, 3)

    def layer(weights, *others):
        return masked_first_layer(mask._replace(weights=weights), unpacked(cells), *others[:2], others[2].T)

    assert torch.autograd.gradcheck(layer, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("used", ["both", "table", "layer"])
@pytest.mark.parametrize("forms", [(0,), (0, 0), (1,), (0, 1), (1, 0, 0)], ids=str)
def test_gradients_meet_in_the_first_layer(forms, used):
    """Masks on pairs and on all genes, one or several, give the weight the gradient that plain products give."""
    cells, upstream, parts = _cells(), torch.randn(9, 6), _normalisation()
    masks, csr = [_mask() for _ in forms], cells.to_sparse_csr()

    def plain(scale, shift, weight):
        normal = cells * scale + shift
        masked = sum((on_all.weights * normal) @ weight.T for _, on_all in masks)
        return masked * (used != "layer") + normal @ weight.T * (used != "table")

    def ours(scale, shift, weight):
        dense = unpacked(csr)
        out, table = first_layer(csr, dense, scale, shift, weight)
        masked = [
            masked_first_layer(mask[form], dense, scale, shift, table, sparse=True)
            for form, mask in zip(forms, masks, strict=True)
        ]
        return {"both": out + sum(masked), "table": sum(masked), "layer": out}[used]

    for one, other in zip(_gradients(ours, upstream, *parts), _gradients(plain, upstream, *parts), strict=True):
        torch.testing.assert_close(one, other)


def test_cells_without_a_gene():
    """A cell whose mask has no pair gives zeros and disturbs no other."""
    mask = Mask(torch.ones(2), torch.tensor([1, 3]), torch.tensor([0, 2]), (5, 3))
    out = masked_first_layer(mask, torch.ones(5, 3), torch.ones(3), torch.zeros(3), torch.eye(3))
    expected = torch.zeros(5, 3)
    expected[1, 0] = expected[3, 2] = 1
    assert torch.equal(out, expected)


def test_second_derivatives_are_refused():
    """The backward pass for sparse cells cannot be differentiated, and says so rather than giving a wrong result."""
    cells = torch.rand(4, 6).to_sparse_csr()
    weight = torch.rand(3, 6, requires_grad=True)
    out, _ = first_layer(cells, unpacked(cells), torch.ones(6), torch.zeros(6), weight)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(out.square().sum(), weight, create_graph=True)
