"""TabNet against pytorch-tabnet's without its genes x genes identity, in float64; its additions; ensembles."""

import copy
from functools import cache

import pytest
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch.nn.functional import cross_entropy

from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import Ensemble, FixedScale, TabNet, mean_logits

CASES = {  # cells, genes, how the attention came about, settings
    "defaults": (64, 200, "trained", {}),
    "untrained": (40, 200, "untrained", {}),
    "narrow": (40, 2000, "narrow", {}),
    "uniform": (30, 200, "uniform", {}),
    "broad": (40, 2000, "broad", dict(n_d=16, n_a=16, n_steps=2)),
    "broad-narrow": (40, 600, "broad-narrow", {}),
    "narrow-broad-narrow": (40, 600, "narrow-broad-narrow", dict(gamma=1.5)),
    "ragged-ghost-batches": (301, 120, "trained", dict(virtual_batch_size=128)),
    "many-ghost-batches": (53, 300, "narrow", dict(virtual_batch_size=16)),
    "many-steps": (40, 200, "trained", dict(n_d=16, n_a=4, n_steps=5, gamma=1.7, n_shared=1, n_independent=1)),
    "shared-only": (32, 200, "trained", dict(n_shared=3, n_independent=0)),
    "own-layers": (32, 200, "narrow", dict(n_shared=1, n_independent=3, n_d=3, n_a=20)),
    "no-reuse": (40, 200, "narrow", dict(gamma=1.0)),
    "one-step": (16, 30, "trained", dict(n_steps=1, gamma=1.0)),
    **{f"{n_genes}-genes": (24, n_genes, "trained", {}) for n_genes in (1, 2, 15, 16, 17, 33)},
}
FORMS = {"dense": torch.Tensor.to_dense, "csr": torch.Tensor.to_sparse_csr}
PATHS = {  # how the cells come, and up to which share of the genes masks are computed on pairs
    "pairs": (torch.Tensor.to_sparse_csr, 1),
    "pairs-of-dense-cells": (torch.Tensor.to_dense, 1),
    "all-genes": (torch.Tensor.to_sparse_csr, -1),
    "its-own-choice-of-dense-cells": (torch.Tensor.to_dense, 1 / 16),
}
ATTENTION = {  # initial weights of the attention's batch normalisation, step by step; the last goes on
    "uniform": [0.0],
    "broad": [0.01],
    "broad-narrow": [0.01, 3.0],
    "narrow-broad-narrow": [3.0, 0.01, 3.0],
}
DEFAULT = dict(mask_temperature=5.0, rescale_masked=True, fixed_scale=True, additive=True, n_steps=2)
N_CLASSES = 4

forms = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
narrows = pytest.mark.parametrize("narrow", [1, -1], ids=["pairs", "all-genes"])


class NoMatrix:
    """Stands where the oracle keeps its genes x genes identity: a product with it is the other factor."""

    @classmethod
    def __torch_function__(cls, function, types, factors, options=None):
        """The first factor."""
        assert function is torch.matmul
        return factors[0]


@pytest.fixture(autouse=True)
def double(double_precision):
    """Everything in float64: the oracle makes its masks in the default type."""


def make_oracle(n_genes, **settings):
    """pytorch-tabnet's network; its identity would take 3 GB at 20,000 genes."""
    oracle = TabNetNoEmbeddings(n_genes, N_CLASSES, group_attention_matrix=torch.empty(n_genes, 0), **settings)
    oracle.encoder.group_attention_matrix = NoMatrix()
    return oracle


@cache
def _case(name):
    """The oracle of a case, and its cells: one is all zero, one gene is never seen and one is the same in all."""
    n_cells, n_genes, attention, settings = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = make_oracle(n_genes, **settings)
        cells = torch.poisson(torch.rand(n_cells, n_genes)).log1p()
    if n_genes > 2:
        cells[:, 0], cells[:, 1] = 0, 2.5
    cells[0] = 0
    if attention in ATTENTION:
        for step, part in enumerate(oracle.encoder.att_transformers):
            torch.nn.init.constant_(part.bn.bn.weight, ATTENTION[attention][min(step, len(ATTENTION[attention]) - 1)])
    elif attention != "untrained":
        optimizer = torch.optim.Adam(oracle.parameters(), lr={"trained": 0.02, "narrow": 0.2}[attention])
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(oracle(cells)[0], torch.arange(n_cells) % N_CLASSES).backward()
            optimizer.step()
    return oracle, cells


def _twin(oracle, n_genes, **settings):
    ours = TabNet(n_genes, N_CLASSES, **settings)
    missing, unexpected = ours.load_state_dict(oracle.state_dict(), strict=False)
    assert not missing and all(name.startswith("initial_bn.") for name in unexpected)  # never used by the oracle
    return ours


@pytest.fixture(params=CASES)
def twins(request):
    """Our network and the oracle with the same weights, and cells."""
    oracle, cells = (copy.deepcopy(part) for part in _case(request.param))
    return _twin(oracle, cells.shape[1], **CASES[request.param][3]), oracle, cells


def assert_same(ours, theirs, what):
    """Two tensors agree to 1e-9 of the largest number in them."""
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= 1e-9 * size + 1e-12, f"{what}: {error:.1e} apart, its numbers reach {size:.1e}"


def _gradients(network, logits, entropy, labels):
    """Of both losses, each alone: the entropy's are small beside the other's."""
    parameters = dict(network.named_parameters())
    for loss, of in ((cross_entropy(logits, labels), "label loss"), (entropy, "entropy")):
        gradients = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            yield f"{of}, {name}", torch.zeros_like(parameter) if gradient is None else gradient


def assert_equal_step(ours, oracle, cells, given):
    """Logits, both losses, every gradient and the running statistics of one batch agree; in evaluation also masks."""
    labels = torch.arange(len(cells)) % N_CLASSES
    output, (logits, negative_entropy) = ours(given), oracle(cells)
    assert_same(output.logits, logits, "logits")
    assert_same(output.mask_entropy, -negative_entropy, "mask entropy")
    expected = dict(_gradients(oracle, logits, -negative_entropy, labels))
    for name, gradient in _gradients(ours, *output, labels):
        assert_same(gradient, expected[name], name)
    statistics = dict(oracle.named_buffers())
    for name, buffer in ours.named_buffers():
        assert_same(buffer, statistics[name], name)
    steps, masks = ((), ()) if ours.training else (ours.steps(given), oracle.forward_masks(cells)[1].values())
    for (found, *_), mask in zip(steps, masks, strict=True):
        assert_same(found.to_dense(), mask, "masks")
        assert_same(found.to_sparse().to_dense(), mask, "sparse masks")
        assert (found.to_sparse().values() > 0).all()  # what counts the genes that are looked at sees no others


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", ["train", "eval", "one-cell"])
def test_equals_pytorch_tabnet(twins, mode, path):
    """Logits, both losses, every gradient, statistics and masks agree to 1e-9, whatever the path; also for one cell."""
    ours, oracle, cells = twins
    make, ours.narrow = PATHS[path]
    cells = cells[-1:] if mode == "one-cell" else cells
    assert_equal_step(ours.train(mode == "train"), oracle.train(mode == "train"), cells, make(cells))


@narrows
@pytest.mark.parametrize("name", ["defaults", "narrow", "broad-narrow"])
def test_gradient_of_dense_cells(name, narrow):
    """In evaluation, dense cells get the oracle's gradient."""
    oracle, cells = _case(name)
    ours, gradients = _twin(oracle, cells.shape[1], **CASES[name][3]), []
    ours.narrow = narrow
    for network in (ours.eval(), copy.deepcopy(oracle).eval()):
        given = cells.clone().requires_grad_()
        gradients.append(torch.autograd.grad(network(given)[0].square().mean(), given)[0])
    assert_same(*gradients, "cells")


def test_transcriptome_width():
    """The same at 20,000 genes, in training and evaluation, where no tensor is as large as genes x genes."""
    oracle = make_oracle(20_000, n_steps=2, virtual_batch_size=32)  # with 3 steps roundings grow beyond 1e-9
    cells = torch.poisson(0.1 * torch.rand(65, 20_000)).log1p()
    ours = _twin(oracle, 20_000, n_steps=2, virtual_batch_size=32)
    assert max(tensor.numel() for tensor in ours.state_dict().values()) < 40 * 20_000
    assert_equal_step(ours, oracle, cells, cells.to_sparse_csr())
    assert_equal_step(ours.eval(), oracle.eval(), cells, cells.to_sparse_csr())
    assert all(step.mask.genes is not None for step in ours.steps(cells))


@pytest.mark.parametrize("name", ["defaults", "narrow", "broad-narrow"])
@modes
def test_single_precision(name, training):
    """In float32 logits stay within 1e-3 of float64's, and gradients within 1 % of the largest."""
    oracle, cells = _case(name)
    exact = _twin(oracle, cells.shape[1], **CASES[name][3]).train(training)
    single, labels = copy.deepcopy(exact).float(), torch.arange(len(cells)) % N_CLASSES
    logits, found = exact(cells).logits, single(cells.float().to_sparse_csr()).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logits, rtol=0, atol=1e-3)
    cross_entropy(logits, labels).backward(), cross_entropy(found, labels).backward()
    largest = max(parameter.grad.abs().max() for parameter in exact.parameters())
    for parameter, other in zip(exact.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(other.grad.double(), parameter.grad, rtol=0, atol=1e-2 * largest.item())


@narrows
@pytest.mark.parametrize("settings", [{}, DEFAULT], ids=["thesis", "default"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@forms
def test_mixed_precision(narrow, settings, dtype, make):
    """Under autocast a step computes in 32 bits and equals one without."""
    network, cells = TabNet(500, 3, **settings).float(), make(torch.poisson(torch.rand(40, 500)).float())
    network.narrow = narrow
    exact = copy.deepcopy(network)(cells)
    with torch.autocast("cpu", dtype):
        found = network(cells)
        loss = found.logits.square().mean() + found.mask_entropy
    loss.backward()
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


@narrows
@forms
def test_deterministic_algorithms(narrow, make):
    """A step, refreshed statistics and an explanation run under torch's deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    try:
        for settings in ({}, DEFAULT):
            ensemble, cells = Ensemble(200, 3, n_models=1, **settings), make(torch.poisson(torch.rand(20, 200)))
            ensemble.members[0].narrow = narrow
            (output,) = ensemble(cells)
            (output.logits.square().mean() + output.mask_entropy).backward()
            ensemble.refresh_statistics([cells])
            explain_batch(ensemble.eval(), cells)
    finally:
        torch.use_deterministic_algorithms(False)


@narrows
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["cells", "encoder.att_transformers.1.fc.weight", "encoder.initial_bn.weight"])
@forms
@modes
def test_not_finite_is_an_error(narrow, bad, place, training, make):
    """NaN or infinite cells or weights are one clear error on every path."""
    broken, cells = TabNet(200, 3).train(training), torch.poisson(torch.rand(20, 200)).log1p()
    broken.narrow = narrow
    (cells if place == "cells" else dict(broken.named_parameters())[place].data).view(-1)[-1] = bad
    with pytest.raises(FloatingPointError, match="diverged"):
        broken(make(cells))


@pytest.mark.parametrize("n_cells, virtual_batch_size", [(1, 128), (5, 2), (7, 3)])
def test_ghost_batch_of_one_cell(n_cells, virtual_batch_size):
    """In training a ghost batch of one cell is refused by name, and a batch of none always."""
    network = TabNet(6, 2, virtual_batch_size=virtual_batch_size)
    with pytest.raises(SettingError, match="one cell"):
        network(torch.rand(n_cells, 6))
    assert network.eval()(torch.rand(n_cells, 6)).logits.shape == (n_cells, 2)
    with pytest.raises(SettingError, match="no cells"):
        network(torch.rand(0, 6))


def _one_step(network, cells, narrow=1):
    """Logits, entropy, gradients and statistics of a training batch, from the same seed."""
    network = copy.deepcopy(network)
    network.narrow = narrow
    torch.manual_seed(1)
    output = network(cells)
    (output.logits.square().mean() + output.mask_entropy).backward()
    gradients = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return output._asdict() | gradients | dict(network.named_buffers())


@pytest.mark.parametrize(
    "settings",
    [dict(rescale_masked=True), dict(gene_dropout=0.3), dict(mask_start=0.01, rescale_masked=True, gene_dropout=0.1)],
    ids="-".join,
)
@modes
def test_additions_are_the_same_on_both_paths(settings, training):
    """What the oracle lacks gives the same on pairs as on all genes."""
    network = TabNet(400, N_CLASSES, virtual_batch_size=16, **settings).train(training)
    cells = torch.poisson(torch.rand(37, 400)).log1p().to_sparse_csr()
    expected = _one_step(network, cells, -1)
    for name, found in _one_step(network, cells, 1).items():
        assert_same(found, expected[name], name)


@narrows
def test_refreshed_statistics(narrow):
    """`refresh_statistics` gives each normalisation the mean of its batches' statistics, as the oracle's layers do."""
    oracle, cells = (copy.deepcopy(part) for part in _case("many-ghost-batches"))
    ensemble, batches = Ensemble(cells.shape[1], N_CLASSES, n_models=1), [cells[:20], cells[20:]]
    ours = ensemble.members[0] = _twin(oracle, cells.shape[1], **CASES["many-ghost-batches"][3], gene_dropout=0.5)
    ours.narrow = narrow
    ensemble.refresh_statistics([(batch.to_sparse_csr(), None) for batch in batches])
    torch.optim.swa_utils.update_bn(batches, oracle)
    statistics = dict(oracle.named_buffers())
    for name, buffer in ours.named_buffers():
        assert_same(buffer, statistics[name], name)
    assert ours.gene_dropout == 0.5 and ours.encoder.att_transformers[0].bn.bn.momentum == 0.02


@forms
def test_gene_dropout(make):
    """A share of the genes is hidden in training, drawn for each cell, and none in evaluation."""
    network = TabNet(2000, 3, gene_dropout=0.25, input_momentum=1.0)
    seen = network.encoder.initial_bn.running_mean  # of each gene, the share of cells where it is seen
    network.train()(make(torch.ones(8, 2000)))
    assert seen.mean() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(8 * seen, (8 * seen).round())
    assert seen.std() == pytest.approx((0.75 * 0.25 / 8) ** 0.5, rel=0.1)
    logits = network.eval()(make(torch.ones(8, 2000))).logits
    assert (logits == logits[0]).all()


@pytest.mark.parametrize("settings", [dict(n_steps=0), dict(gamma=0.5), dict(n_models=3), dict(depth=1)], ids=str)
def test_impossible_settings(settings):
    """Settings out of range or of something else are named."""
    with pytest.raises((SettingError, UnknownNameError), match=next(iter(settings))):
        TabNet(5, 2, **settings)


@pytest.fixture
def cells():
    """Twelve cells x 50 genes, a third of the values zero; the last cell is empty."""
    values = torch.rand(12, 50) * (torch.rand(12, 50) > 0.3)
    values[-1] = 0
    return values


def _ensemble(cells, n_models=1, **changes):
    torch.manual_seed(1)
    ensemble = Ensemble(50, 3, n_models=n_models, **DEFAULT | changes)
    ensemble.measure_input([cells])
    for member in ensemble.members:
        torch.nn.init.normal_(member.additive_weight)
    return ensemble


@modes
def test_dense_and_sparse_cells_agree(cells, training):
    """Logits and gradients do not depend on how cells come, and an empty cell has finite ones."""
    network = _ensemble(cells).members[0].train(training)
    sparse = _one_step(network, cells.to_sparse_csr())
    for name, dense in _one_step(network, cells).items():
        assert torch.isfinite(dense).all()
        torch.testing.assert_close(sparse[name], dense)


@pytest.mark.parametrize("name, values", [("mask_temperature", (0.1, 1.0, 10.0)), ("mask_start", (3.0, 0.1))])
def test_wider_masks(cells, name, values):
    """Masks widen with the temperature, and begin broad when the attention's normalisation starts near zero."""
    networks = [_ensemble(cells, **{"mask_temperature": 1.0, name: value}).members[0] for value in values]
    widths = [len(network.steps(cells)[0].mask.weights) for network in networks]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_fixed_scale(cells):
    """It centres, brings the mean square to one, does not blow up rare genes, and is the same over any batches."""
    cells[:, 0] = 0
    cells[0, 0] = 1e-4
    whole, parts = FixedScale(50), FixedScale(50)
    whole.measure([cells])
    parts.measure([(cells[:5].to_sparse_csr(), None), (cells[5:].to_sparse_csr(), None)])
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())
    out = cells * whole.scale + whole.shift
    torch.testing.assert_close(out.mean(0), torch.zeros(50), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert out[:, 0].abs().max() < 0.01


def test_ensemble(cells):
    """Members share the scale alone, probabilities are their mean, and each learns from its own errors."""
    ensemble, labels = _ensemble(cells, 2).eval(), torch.arange(12) % 3
    first, second = ensemble.members
    torch.testing.assert_close(first.encoder.initial_bn.state_dict(), second.encoder.initial_bn.state_dict())
    assert not torch.equal(first.final_mapping.weight, second.final_mapping.weight)
    logits = [output.logits for output in ensemble(cells)]
    torch.testing.assert_close(mean_logits(logits).softmax(1), sum(part.softmax(1) for part in logits) / 2)
    sum(cross_entropy(part, labels) for part in logits).backward()
    together = second.final_mapping.weight.grad.clone()
    second.zero_grad()
    cross_entropy(second(cells).logits, labels).backward()
    torch.testing.assert_close(second.final_mapping.weight.grad, together)
