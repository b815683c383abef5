"""Masks against pytorch-tabnet's attention transformer on all genes, moments; the first layer is in `test_network`."""

import copy

import pytest
import torch
from pytorch_tabnet.sparsemax import Sparsemax
from pytorch_tabnet.tab_network import AttentiveTransformer

from sims_kit.model.sparse import Mask, first_layer, moments, sparsemax, step_mask

ALL = 10**6  # wider than any mask: pairs are never refused

pytestmark = pytest.mark.usefixtures("double_precision")


def _attend(n_a, n_genes, *, virtual_batch_size=8, training=True):
    """An attention transformer whose normalisation is not at its start."""
    attend = AttentiveTransformer(n_a, n_genes, group_matrix=None, virtual_batch_size=virtual_batch_size)
    norm = attend.bn.bn
    norm.weight.data.uniform_(0.5, 1.5), norm.bias.data.normal_(0, 0.1)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 1.5)
    return attend.train(training)


def _masks_of(logits, widest=ALL):
    """`step_mask` of any logits: evaluation with unit statistics, where each cell attends to its own row alone."""
    attend = AttentiveTransformer(len(logits), logits.shape[1], group_matrix=None).eval()
    attend.bn.bn.eps = 0.0
    attend.fc.weight.data = logits.T.contiguous()
    return step_mask(torch.eye(len(logits), dtype=logits.dtype), attend.to(logits.dtype), [], 1.3, widest)


LOGITS = {
    "random": lambda rows, genes: torch.randn(rows, genes),
    "one-hot": lambda rows, genes: 50 * torch.randn(rows, genes),
    "broad": lambda rows, genes: 1e-2 * torch.randn(rows, genes),
    "heavy-tailed": lambda rows, genes: torch.randn(rows, genes) / torch.randn(rows, genes),
    "tied": lambda rows, genes: (2 * torch.randn(rows, genes)).round() / 4,
    "constant": lambda rows, genes: torch.full((rows, genes), 0.7),
    "all-zero": lambda rows, genes: torch.zeros(rows, genes),
    "far-from-zero": lambda rows, genes: torch.randn(rows, genes) - 300,
    "huge": lambda rows, genes: 1e20 * torch.randn(rows, genes),
    "ascending": lambda rows, genes: torch.linspace(0, 3, genes).expand(rows, genes),
    "in-one-block": lambda rows, genes: torch.randn(rows, genes) + 2.0 * (torch.arange(genes) % 97 == 0),
    # every gene lies above the threshold of the blocks' maxima, though many lie below that of all genes
    "hidden by no block": lambda rows, genes: (-0.77 / genes * (torch.arange(genes) * 8 // genes)).expand(rows, -1),
    "mixed-widths": lambda rows, genes: (
        torch.logspace(-4, 1, rows)[torch.randperm(rows), None] * torch.randn(rows, genes)
    ),
}


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 2), (5, 15), (5, 16), (5, 17), (9, 33), (130, 700), (20, 2001), (5, 4096)]
)
@pytest.mark.parametrize("kind", LOGITS)
def test_search_is_sparsemax(kind, shape):
    """The pairs found carry the masks that a sort over all genes gives, whatever the logits; so does `sparsemax`."""
    logits, upstream = LOGITS[kind](*shape), torch.randn(shape)
    mask, before = _masks_of(logits), logits.clone()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = sparsemax(ours), Sparsemax(dim=-1)(theirs * 1.0)
    found.backward(upstream), expected.backward(upstream)
    for one, other in ((mask.to_dense(), expected), (found, expected), (ours.grad, theirs.grad)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert torch.equal(logits, before)
    assert (mask.cells.diff() >= 0).all() and mask.shape == shape
    assert len(torch.unique(mask.cells * shape[1] + mask.genes)) == len(mask.weights)  # no pair twice


@pytest.mark.parametrize("wide", [40, 200, 900, 3000])
def test_cells_wider_than_those_measured(wide):
    """A few cells whose masks are far broader than the others' get all of their genes, in the right order."""
    logits = 20 * torch.randn(60, 3000)
    logits[[7, 23, 59]] = 0.0
    logits[[7, 23, 59], :wide] = 5.0
    mask = _masks_of(logits, widest=100)
    assert (mask.cells.diff() >= 0).all()
    torch.testing.assert_close(mask.to_dense(), Sparsemax(dim=-1)(logits.clone()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e30])
def test_large_logits_in_single_precision(size):
    """Large but finite logits give masks that sum to one, on the gene that the oracle chooses."""
    logits = size * torch.randn(40, 500).float() + size
    mask, expected = _masks_of(logits).to_dense(), Sparsemax(dim=-1)(logits.clone())
    torch.testing.assert_close(mask.sum(1), torch.ones(40, dtype=torch.float32))
    assert (mask.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("widest", [9.0, 11.0])
def test_on_all_genes_when_wide(widest):
    """Masks of ten genes are computed on pairs up to the width asked for, else on all genes, to the same numbers."""
    logits = torch.zeros(20, 200)
    logits[:, :10] = 9.0
    mask = _masks_of(logits, widest)
    assert (mask.genes is None) == (widest < 10)
    torch.testing.assert_close(mask.to_dense(), (logits > 0) / 10.0)


@pytest.mark.parametrize("past", [[], ["pairs"], ["all"], ["pairs", "all"], ["all", "pairs", "pairs"]], ids="-".join)
@pytest.mark.parametrize("temperature", [None, 0.3, 30.0])
@pytest.mark.parametrize("n_cells, training", [(21, True), (8, True), (150, False), (1, False)])
def test_equals_attention_transformer(past, n_cells, training, temperature):
    """Weights, gradients (through earlier masks too) and running statistics are the oracle's, with ragged ghosts.

    With a temperature, masks are among the genes that a cell expresses: sparsemax of these, one cell at a time.
    """
    n_genes, gamma, earlier = 500, 1.4, torch.randn(len(past), n_cells, 500)
    attention, upstream, found = torch.randn(n_cells, 6), torch.randn(n_cells, n_genes), []
    attend, cells = _attend(6, n_genes, training=training), torch.rand(n_cells, n_genes) < torch.rand(n_cells, 1) / 4
    cells[[0, n_cells // 2, -1]] = False  # some without a gene, the first and the last among them
    among = () if temperature is None else (cells.nonzero(as_tuple=True), temperature)
    for ours in (True, False):
        layer, at = copy.deepcopy(attend), attention.clone().requires_grad_()
        logits = (3 * earlier).requires_grad_()
        masks = Sparsemax(dim=-1)(logits * 1.0)
        if ours:
            whole = [Mask(mask, None, None, mask.shape) for mask in masks]
            before = [_pairs(one.weights) if kind == "pairs" else one for kind, one in zip(past, whole, strict=True)]
            mask = step_mask(at, layer, before, gamma, ALL, *among)
            assert (mask.cells.diff() >= 0).all() and (temperature is None or (mask.weights > 0).all())
            mask = mask.to_dense()
        elif temperature is None:
            mask = layer(torch.prod(gamma - masks, dim=0), at)
        else:
            rows = layer.bn(layer.fc(at)) * torch.prod(gamma - masks, dim=0) / temperature
            mask = 0 * rows
            for cell in cells.any(1).nonzero()[:, 0]:
                mask[cell, cells[cell]] = Sparsemax(dim=-1)(rows[cell, cells[cell]][None])[0]
        (mask * upstream).sum().backward()
        gradients = [at.grad, *(parameter.grad for parameter in layer.parameters())]
        found.append([mask, *gradients, *layer.buffers(), *([logits.grad] if past else [])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def _pairs(dense):
    """A dense mask as pairs, those of a cell in no order."""
    cells, genes = (dense > 0).nonzero(as_tuple=True)
    order = (cells + torch.rand(len(cells)) * 0.9).argsort()
    cells, genes = cells[order], genes[order]
    return Mask(dense[cells, genes], cells, genes, dense.shape)


def test_no_cell_expresses_a_gene():
    """A batch of empty cells has empty masks and no gradient, not an error."""
    none, attention = torch.empty(0, dtype=torch.int64), torch.randn(4, 3, requires_grad=True)
    mask = step_mask(attention, _attend(3, 50), [], 1.3, 0, (none, none))
    assert not mask.to_dense().any()
    mask.to_dense().sum().backward()
    assert not attention.grad.any()


@pytest.mark.parametrize("value_type, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_moments(make, value_type, tolerance):
    """Mean and variance of each gene: never seen, the same in every cell, and nearly the same at a high level."""
    cells = torch.poisson(torch.rand(61, 60)).log1p()
    cells[:, [0, -1]] = 0
    cells[:, 1:40] = torch.linspace(1, 9, 39)  # rounding would make some of their variances negative
    cells[:, 40] = 9 + 1e-2 * torch.randn(61)
    given = make(cells.to(value_type))
    mean, variance = moments(given, given.to_dense())
    exact = cells.to(value_type).double()
    assert mean.dtype == variance.dtype == value_type and (variance >= 0).all()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(variance.double(), exact.var(0, correction=0), rtol=10 * tolerance, atol=1e-12)


def test_second_derivatives_are_refused():
    """The backward pass for sparse cells cannot be differentiated, and says so rather than giving a wrong result."""
    cells = torch.rand(4, 6).to_sparse_csr()
    weight = torch.rand(3, 6, requires_grad=True)
    out, _ = first_layer(cells, cells.to_dense(), torch.ones(6), torch.zeros(6), weight)
    (gradient,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
