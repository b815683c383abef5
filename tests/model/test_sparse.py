"""Masks against pytorch-tabnet's attention transformer on all genes; the first layer against dense products."""

import copy

import pytest
import torch
from pytorch_tabnet.sparsemax import Sparsemax
from pytorch_tabnet.tab_network import AttentiveTransformer

from sims_kit.model.sparse import Mask, first_layer, masked_first_layer, moments, sparsemax, step_mask

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
    "mixed-widths": lambda rows, genes: (
        torch.logspace(-4, 1, rows)[torch.randperm(rows), None] * torch.randn(rows, genes)
    ),
}


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 15), (5, 16), (5, 17), (9, 33), (130, 700), (20, 2001)])
@pytest.mark.parametrize("kind", LOGITS)
def test_search_is_sparsemax(kind, shape):
    """The pairs found carry the masks that a sort over all genes gives, whatever the logits; so does `sparsemax`."""
    logits = LOGITS[kind](*shape)
    mask = _masks_of(logits)
    expected, before = Sparsemax(dim=-1)(logits.clone()), logits.clone()
    torch.testing.assert_close(mask.to_dense(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparsemax(logits), expected, rtol=0, atol=1e-12)
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


@pytest.mark.parametrize("n_genes", [512, 1024, 4096])
def test_blocks_that_hide_nothing(n_genes):
    """Every gene lies above the threshold of the blocks' maxima, though many lie below that of all genes."""
    blocks = (torch.arange(n_genes) // (n_genes // 8)).expand(5, -1)  # blocks are of every n / 8-th gene
    logits = -0.77 / n_genes * blocks
    mask = _masks_of(logits)
    torch.testing.assert_close(mask.to_dense(), Sparsemax(dim=-1)(logits.clone()), rtol=0, atol=1e-12)
    assert (mask.weights > 0).all() and len(mask.weights) < logits.numel()


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
@pytest.mark.parametrize("n_cells, training", [(21, True), (8, True), (150, False), (1, False)])
def test_equals_attention_transformer(past, n_cells, training):
    """Weights, gradients (through earlier masks too) and running statistics are the oracle's, with ragged ghosts."""
    n_genes, gamma = 500, 1.4
    earlier, attention = torch.randn(len(past), n_cells, n_genes), torch.randn(n_cells, 6)
    upstream, found = torch.randn(n_cells, n_genes), []
    attend = _attend(6, n_genes, training=training)
    for ours in (True, False):
        layer, at = copy.deepcopy(attend), attention.clone().requires_grad_()
        logits = (3 * earlier).requires_grad_()
        masks = Sparsemax(dim=-1)(logits * 1.0)
        if ours:
            before = [
                _pairs(mask) if kind == "pairs" else Mask(mask, None, None, mask.shape)
                for kind, mask in zip(past, masks, strict=True)
            ]
            mask = step_mask(at, layer, before, gamma, ALL).to_dense()
        else:
            mask = layer(torch.prod(gamma - masks, dim=0), at)
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


def test_mask_on_pairs_and_on_all_genes():
    """Both forms of a mask answer alike, and store no gene of weight zero when they are sparse."""
    pairs = _pairs(Sparsemax(dim=-1)(torch.randn(7, 30)))
    pairs.weights[3] = 0.0
    on_all = Mask(pairs.to_dense(), None, None, pairs.shape)
    cells, genes = torch.randint(7, (50,)), torch.randint(30, (50,))
    cells[:2], genes[:2] = torch.tensor([0, 6]), torch.tensor([0, 29])  # the corners
    for mask in (pairs, on_all):
        torch.testing.assert_close(mask.at(cells, genes), on_all.weights[cells, genes], rtol=0, atol=0)
        torch.testing.assert_close(mask.to_dense(), on_all.weights, rtol=0, atol=0)
        torch.testing.assert_close(mask.to_sparse().to_dense(), on_all.weights, rtol=0, atol=0)
        assert (mask.to_sparse().values() > 0).all()  # what counts the genes that are looked at must not see others
        torch.testing.assert_close(mask.sum_of(mask.weights.square()), on_all.weights.square().sum(1))


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("n_cells, training", [(21, True), (150, False)], ids=["train", "eval"])
def test_masks_among_expressed_genes(past, temperature, n_cells, training):
    """Masks, gradients and statistics are those of sparsemax over each cell's own genes, taken one cell at a time."""
    n_genes, gamma, attention = 300, 1.4, torch.randn(n_cells, 6)
    cells = torch.rand(n_cells, n_genes) < torch.rand(n_cells, 1) / 4
    cells[[0, 7, -1]] = False  # some without a gene, the first and the last among them
    earlier, upstream = 3 * torch.randn(past, n_cells, n_genes), torch.randn(n_cells, n_genes)
    attend, found = _attend(6, n_genes, training=training), []
    for ours in (True, False):
        layer, at = copy.deepcopy(attend), attention.clone().requires_grad_()
        masks = Sparsemax(dim=-1)(earlier.clone().requires_grad_() * 1.0)
        if ours:
            before = [_pairs(mask) for mask in masks]
            mask = step_mask(at, layer, before, gamma, 0, cells.nonzero(as_tuple=True), temperature)
            assert (mask.cells.diff() >= 0).all() and (mask.weights > 0).all()
            mask = mask.to_dense()
        else:
            logits = layer.bn(layer.fc(at)) * torch.prod(gamma - masks, dim=0) / temperature
            rows = [
                torch.zeros(n_genes).index_put(
                    (own.nonzero()[:, 0],), Sparsemax(dim=-1)(row[own][None])[0] if own.any() else row[:0]
                )
                for row, own in zip(logits, cells, strict=True)
            ]
            mask = torch.stack(rows)
        (mask * upstream).sum().backward()
        found.append([mask, at.grad, *(parameter.grad for parameter in layer.parameters()), *layer.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_no_cell_expresses_a_gene():
    """A batch of empty cells has empty masks and no gradient, not an error."""
    none, attention = torch.empty(0, dtype=torch.int64), torch.randn(4, 3, requires_grad=True)
    mask = step_mask(attention, _attend(3, 50), [], 1.3, 0, (none, none))
    assert not mask.to_dense().any()
    mask.to_dense().sum().backward()
    assert not attention.grad.any()


def _cells(n_cells=9, n_genes=40):
    """Some cells without a count, first and last among them, and genes that no cell has."""
    cells = torch.poisson(torch.rand(n_cells, n_genes)).log1p()
    cells[[0, n_cells // 2, -1]] = 0
    cells[:, [0, -1]] = 0
    return cells


@pytest.mark.parametrize("value_type, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
def test_moments(make, value_type, tolerance):
    """Mean and variance of each gene: never seen, the same in every cell, and nearly the same at a high level."""
    cells = _cells(61, 60)
    cells[:, 1:40] = torch.linspace(1, 9, 39)  # rounding would make some of their variances negative
    cells[:, 40] = 9 + 1e-2 * torch.randn(61)
    given = make(cells.to(value_type))
    mean, variance = moments(given, given.to_dense())
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
    return out, *torch.autograd.grad(out, given, upstream, materialize_grads=True)


@pytest.mark.parametrize("used", ["both", "table", "layer"])
@pytest.mark.parametrize("forms", ["pairs", "all", "pairs pairs", "pairs all", "all pairs pairs"])
def test_gradients_meet_in_the_first_layer(forms, used):
    """Masks on pairs and on all genes, one or several, and cells without a gene: values and gradients of all inputs."""
    csr, upstream, forms = _cells().to_sparse_csr(), torch.randn(9, 6), forms.split()
    inputs = [*_normalisation(), *torch.rand(len(forms), 9, 40)]
    inside = torch.rand(9, 40) < 0.1
    inside[4] = False

    def plain(scale, shift, weight, *masks):
        normal = csr.to_dense() * scale + shift
        masked = sum((mask * inside * normal) @ weight.T for mask in masks)
        return {"both": masked + normal @ weight.T, "table": masked, "layer": normal @ weight.T}[used]

    def ours(scale, shift, weight, *masks):
        dense = csr.to_dense()
        out, table = first_layer(csr, dense, scale, shift, weight)
        masks = [
            Mask(mask[inside], *inside.nonzero(as_tuple=True), inside.shape)
            if form == "pairs"
            else Mask(mask * inside, None, None, inside.shape)
            for form, mask in zip(forms, masks, strict=True)
        ]
        masked = sum(masked_first_layer(mask, dense, scale, shift, table, None, sparse=True) for mask in masks)
        return {"both": masked + out, "table": masked, "layer": out}[used]

    for one, other in zip(_gradients(ours, upstream, *inputs), _gradients(plain, upstream, *inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_are_refused():
    """The backward pass for sparse cells cannot be differentiated, and says so rather than giving a wrong result."""
    cells = torch.rand(4, 6).to_sparse_csr()
    weight = torch.rand(3, 6, requires_grad=True)
    out, _ = first_layer(cells, cells.to_dense(), torch.ones(6), torch.zeros(6), weight)
    (gradient,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.1, 1.0, 50.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (7, 63), (5, 3000)])
def test_sparsemax(shape, scale):
    """Values and gradients are the oracle's, from one-hot to uniform masks and for a single row."""
    logits, upstream = scale * torch.randn(shape), torch.randn(shape)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mask, expected = sparsemax(ours), Sparsemax(dim=-1)(theirs * 1.0)
    mask.backward(upstream), expected.backward(upstream)
    torch.testing.assert_close(mask, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
