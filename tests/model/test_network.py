"""TabNet against pytorch-tabnet's without its genes x genes identity, in float64; its additions; several networks."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from pytorch_tabnet.sparsemax import Sparsemax
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from sklearn.feature_selection import f_classif
from torch.nn.functional import cross_entropy

from sims_kit.errors import SettingError
from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import FixedScale, TabNet, sparsemax, top_genes
from sims_kit.model.novelty import class_sums

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
ATTENTION = {  # initial weights of the attention's batch normalisation, step by step; the last goes on
    "uniform": [0.0],
    "broad": [0.01],
    "broad-narrow": [0.01, 3.0],
    "narrow-broad-narrow": [3.0, 0.01, 3.0],
}
DEFAULT = dict(mask_temperature=5.0, rescale_masked=True, fixed_scale=True, additive=True, n_steps=2)
N_CLASSES = 4

modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def double_precision():
    """Everything in float64, as the oracle's masks are of the default type; the same random numbers in each test."""
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(torch.float32)


def make_oracle(n_genes, **settings):
    """pytorch-tabnet's network; its genes x genes identity is sparse, or it would take 3 GB at 20,000 genes."""
    identity = torch.sparse_coo_tensor(torch.arange(n_genes).expand(2, n_genes), torch.ones(n_genes))
    return TabNetNoEmbeddings(n_genes, N_CLASSES, group_attention_matrix=identity, **settings)


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
    state = {name: part[None] if part.dim() == 2 else part for name, part in oracle.state_dict().items()}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert missing == ["genes"] and all(name.startswith("initial_bn.") for name in unexpected)  # the oracle's is unused
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
    assert_same(output.logits[:, 0], logits, "logits")
    assert_same(output.mask_entropy[0], -negative_entropy, "mask entropy")
    expected = dict(_gradients(oracle, logits, -negative_entropy, labels))
    for name, gradient in _gradients(ours, output.logits[:, 0], output.mask_entropy[0], labels):
        assert_same(gradient[0] if gradient.dim() == 3 else gradient, expected[name], name)
    assert_same_statistics(ours, oracle)
    steps, masks = ((), ()) if ours.training else (ours.steps(given), oracle.forward_masks(cells)[1].values())
    for step, mask in zip(steps, masks, strict=True):
        whole = torch.zeros_like(mask)
        whole[:, step.genes] = step.mask[:, 0]
        assert_same(whole, mask, "masks")
    if not given.is_sparse_csr and not ours.training:
        inputs = [cells.clone().requires_grad_() for _ in range(2)]
        both = (network(one)[0].square().mean() for network, one in zip((ours, oracle), inputs, strict=True))
        gradients = (torch.autograd.grad(loss, one)[0] for loss, one in zip(both, inputs, strict=True))
        assert_same(*gradients, "gradient of the cells")


def assert_same_statistics(ours, oracle):
    """The running statistics of all normalisations agree."""
    statistics = dict(oracle.named_buffers())
    for name, buffer in ours.named_buffers():
        if name != "genes":
            assert_same(buffer, statistics[name], name)


@pytest.mark.parametrize("make", [torch.Tensor.to_dense, torch.Tensor.to_sparse_csr], ids=["dense", "csr"])
@pytest.mark.parametrize("mode", ["train", "eval", "one-cell"])
def test_equals_pytorch_tabnet(twins, mode, make):
    """Logits, both losses, every gradient, statistics and masks agree to 1e-9, however cells come; also for one."""
    ours, oracle, cells = twins
    cells = cells[-1:] if mode == "one-cell" else cells
    assert_equal_step(ours.train(mode == "train"), oracle.train(mode == "train"), cells, make(cells))


def test_transcriptome_width():
    """The same at 20,000 genes, in training and evaluation, where no tensor is as large as genes x genes."""
    oracle = make_oracle(20_000, n_steps=2, virtual_batch_size=32)  # with 3 steps roundings grow beyond 1e-9
    cells = torch.poisson(0.1 * torch.rand(65, 20_000)).log1p()
    ours = _twin(oracle, 20_000, n_steps=2, virtual_batch_size=32)
    assert max(tensor.numel() for tensor in ours.state_dict().values()) < 40 * 20_000
    assert_equal_step(ours, oracle, cells, cells.to_sparse_csr())
    assert_equal_step(ours.eval(), oracle.eval(), cells, cells.to_sparse_csr())


@pytest.mark.parametrize("name", ["defaults", "narrow", "broad-narrow", "additive"])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
@modes
def test_single_precision(name, training, half):
    """In float32, also under autocast, logits stay within 1e-3 of float64's, gradients within 1 % of the largest."""
    oracle, cells = _case("defaults" if name == "additive" else name)
    exact = _default(cells) if name == "additive" else _twin(oracle, cells.shape[1], **CASES[name][3])
    exact.train(training)
    single, labels = copy.deepcopy(exact).float(), torch.arange(len(cells)) % N_CLASSES
    with torch.autocast("cpu", half, enabled=half is not None):
        logits, found = exact(cells).logits[:, 0], single(cells.float().to_sparse_csr()).logits[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logits, rtol=0, atol=1e-3)
    cross_entropy(logits, labels).backward(), cross_entropy(found, labels).backward()
    largest = max(parameter.grad.abs().max() for parameter in exact.parameters())
    for parameter, other in zip(exact.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(other.grad.double(), parameter.grad, rtol=0, atol=1e-2 * largest.item())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["cells", "encoder.att_transformers.1.fc.weight", "encoder.initial_bn.weight"])
@modes
def test_not_finite_is_an_error(bad, place, training):
    """NaN or infinite cells or weights are one clear error."""
    broken, cells = TabNet(200, 3).train(training), torch.poisson(torch.rand(20, 200)).log1p()
    (cells if place == "cells" else dict(broken.named_parameters())[place].data).view(-1)[-1] = bad
    with pytest.raises(FloatingPointError, match="diverged"):
        broken(cells)


@pytest.mark.parametrize("n_cells, virtual_batch_size", [(1, 128), (5, 2), (7, 3)])
def test_ghost_batch_of_one_cell(n_cells, virtual_batch_size):
    """In training a ghost batch of one cell is refused by name, and a batch of none always."""
    network = TabNet(6, 2, virtual_batch_size=virtual_batch_size)
    with pytest.raises(SettingError, match="one cell"):
        network(torch.rand(n_cells, 6))
    assert network.eval()(torch.rand(n_cells, 6)).logits.shape == (n_cells, 1, 2)
    with pytest.raises(SettingError, match="no cells"):
        network(torch.rand(0, 6))


def _one_step(network, cells):
    """Logits, entropies, gradients and statistics of a training batch, from the same seed."""
    network = copy.deepcopy(network)
    torch.manual_seed(1)
    output, labels = network(cells), torch.arange(len(cells)) % N_CLASSES
    losses = [cross_entropy(logits, labels) for logits in output.logits.unbind(1)]
    (sum(losses) + output.mask_entropy.sum()).backward()
    gradients = {f"d {name}": value.grad for name, value in network.named_parameters() if value.grad is not None}
    return output._asdict() | gradients | dict(network.named_buffers())


def test_refreshed_statistics():
    """`refresh_statistics` gives each normalisation the mean of its batches' statistics, as the oracle's layers do."""
    oracle, cells = (copy.deepcopy(part) for part in _case("many-ghost-batches"))
    ours, batches = _twin(oracle, cells.shape[1], virtual_batch_size=16, gene_dropout=0.5), [cells[:20], cells[20:]]
    ours.refresh_statistics([(batch.to_sparse_csr(), None) for batch in batches])
    torch.optim.swa_utils.update_bn(batches, oracle)
    assert_same_statistics(ours, oracle)
    assert ours.gene_dropout == 0.5 and ours.encoder.att_transformers[0].bn.bn.momentum == 0.02


def test_gene_dropout():
    """A share of the genes is hidden in training, drawn for each cell and network, and none in evaluation."""
    network = TabNet(1000, 3, n_models=2, gene_dropout=0.25, input_momentum=1.0)
    seen = network.encoder.initial_bn.running_mean  # of each network's genes, the share of cells where it is seen
    network.train()(torch.ones(8, 1000))
    assert seen.mean() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(8 * seen, (8 * seen).round())
    assert seen.std() == pytest.approx((0.75 * 0.25 / 8) ** 0.5, rel=0.1)
    assert abs(np.corrcoef(seen.view(2, 1000))[0, 1]) < 0.15
    logits = network.eval()(torch.ones(8, 1000)).logits
    assert (logits == logits[0]).all()


@pytest.fixture
def cells():
    """Twelve cells x 50 genes, a third of the values zero; the last cell is empty."""
    values = torch.rand(12, 50) * (torch.rand(12, 50) > 0.3)
    values[-1] = 0
    return values


def _default(cells, **changes):
    torch.manual_seed(1)
    network = TabNet(cells.shape[1], N_CLASSES, **DEFAULT | changes)
    network.measure(*class_sums([(cells, torch.arange(len(cells)) % N_CLASSES)], N_CLASSES, cells.shape[1], "cpu"))
    torch.nn.init.normal_(network.additive_weight)
    return network


@modes
def test_steps_of_the_default(cells, training):
    """Masks are among expressed genes and widened by a temperature, and what is read does not depend on their width."""
    network, logits = _default(cells, n_models=2).train(training), []
    for attend in network.encoder.att_transformers:
        attend.register_forward_hook(lambda layer, given, out: logits.append(out.detach()))
    scale, prior = network.encoder.initial_bn, torch.ones(12, 2, 50)
    for number, step in enumerate(network.steps(cells)):
        wanted = torch.zeros(12, 2, 50)
        for cell, of in np.ndindex(11, 2):  # the last cell is empty
            seen = cells[cell] > 0
            wanted[cell, of, seen] = Sparsemax(-1)((logits[number] * prior)[cell, of, seen][None] / 5.0)[0]
        assert_same(step.mask, wanted, "masks")
        prior = prior * (1.3 - wanted)
        values = wanted * (cells * scale.scale + scale.shift)[:, None]
        assert_same(step.values[:-1], (values / wanted.square().sum(-1, keepdim=True))[:-1], "values")
        assert_same(step.evidence, torch.einsum("bmg,mgc->bmc", step.values, network.additive_weight), "evidence")


def test_fixed_scale(cells):
    """It centres, brings the mean square to one, does not blow up rare genes, and is the same over any batches."""
    cells[:, 0] = 0
    cells[0, 0] = 1e-4
    batches, labels = (cells[:5].to_sparse_csr(), cells[5:]), torch.arange(12) % 3
    whole, parts = FixedScale(50), FixedScale(50)
    whole.measure(cells.sum(0), cells.square().sum(0), torch.tensor(12.0))
    sums, squares, n_cells = class_sums(zip(batches, labels.split([5, 7]), strict=True), 3, 50, "cpu")
    parts.measure(sums.sum(0), squares, n_cells.sum())
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())
    out = whole(cells)
    torch.testing.assert_close(out.mean(0), torch.zeros(50), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert out[:, 0].abs().max() < 0.01


@modes
@pytest.mark.parametrize("settings", [{}, DEFAULT, dict(n_shared=1, n_independent=1, n_d=3)], ids=str)
def test_networks_side_by_side_equal_each_alone(settings, training):
    """Logits, entropies, gradients and statistics are those of each alone; none learns from others' errors."""
    cells, sizes = torch.poisson(torch.rand(37, 200)).log1p(), dict(virtual_batch_size=16) | settings
    cells[-1] = 0
    both, alone = (TabNet(200, N_CLASSES, n_models=n, **sizes).train(training) for n in (3, 1))
    assert not torch.equal(*both.final_mapping.weight[:2])  # they start apart
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    together = _one_step(both, cells)
    for number in range(3):
        alone.load_state_dict({name: _of(number, name, part) for name, part in both.state_dict().items()})
        for name, part in _one_step(alone, cells.to_sparse_csr()).items():
            found = together[name][:, [number]] if name == "logits" else _of(number, name, together[name])
            assert_same(found, part, name)


def _of(number, name, part):
    """The part of one of three networks; the gene scale and counts are of all of them."""
    if part.dim() == 0 or name == "genes" or name.endswith((".scale", ".shift")):
        return part
    return part[number::3] if name == "mask_entropy" else part.chunk(3)[number]


@pytest.fixture
def marked():
    """Sums, squares and cells of three classes of 400 cells x 60 genes of one variance; squares of all t statistics."""
    labels = torch.arange(400) % 10 % 3  # not as many in each
    values = torch.randn(400, 60) + 2 * torch.rand(3, 60)[labels]
    values = (values / values.std(0, correction=0)).numpy()
    squared = np.stack([f_classif(values, labels == of)[0] for of in range(3)])
    return class_sums([(torch.from_numpy(values), labels)], 3, 60, "cpu"), squared


@pytest.mark.parametrize("n", [1, 3, 20, 59, 60, 100])
def test_top_genes(marked, n):
    """Classes name their best genes in turns, those of a turn by size, until there are enough; positions ascend."""
    sums, squared = marked
    ranked, chosen = (-squared).argsort(axis=1), []
    for turn in ranked.T:
        chosen += sorted(set(turn) - set(chosen), key=lambda gene: -squared[:, gene].max())
    assert top_genes(*sums, n).tolist() == sorted(chosen[:n])
    assert n != 20 or all(len(set(own[:7]) & set(chosen[:n])) >= 6 for own in ranked)


def test_top_genes_of_odd_cells(marked):
    """A tie goes to the first genes; markers come before genes that hardly vary; a class without cells names none."""
    sums, squares, n_cells = marked[0]
    absent = torch.cat([sums, 0 * sums[:1]]), squares, torch.cat([n_cells, 0 * n_cells[:1]])
    assert torch.equal(top_genes(*absent, 12), top_genes(*marked[0], 12))
    same = class_sums([(torch.ones(6, 1).expand(6, 9) * torch.arange(6)[:, None], torch.arange(6) % 2)], 2, 9, "cpu")
    assert top_genes(*same, 4).tolist() == [0, 1, 2, 3]
    labels = torch.arange(200) % 2
    values = torch.stack([1e-4 * labels, torch.zeros(200), torch.full((200,), 3.0), labels + torch.randn(200)], 1)
    sums = class_sums([(values, labels)], 2, 4, "cpu")
    assert top_genes(*sums, 1).tolist() == [3] and top_genes(*sums, 2).tolist() == [0, 3]


@modes
def test_other_genes_are_not_read(cells, training):
    """A network of eight of the genes is one that was given these alone, and its masks are found at their places."""
    network = _default(cells, n_models=2, genes_per_class=2).train(training)
    few = TabNet(8, N_CLASSES, n_models=2, **DEFAULT).train(training)
    few.load_state_dict(network.state_dict() | {"genes": torch.arange(8)})
    assert len(network.genes) == 8 and not torch.equal(network.genes, torch.arange(8))
    changed = torch.rand(12, 50)
    changed[:, network.genes] = cells[:, network.genes]
    expected = _one_step(few, cells[:, network.genes])
    for name, part in _one_step(network, changed.to_sparse_csr()).items():
        assert name == "genes" or torch.equal(part, expected[name])
    found, wanted = explain_batch(network.eval(), changed), explain_batch(few.eval(), cells[:, network.genes])
    for part, of_few in zip(found, wanted, strict=True):
        assert part.is_sparse_csr == of_few.is_sparse_csr
        placed = torch.zeros(12, 50).index_copy(1, network.genes, of_few.to_dense()) if part.is_sparse_csr else of_few
        torch.testing.assert_close(part.to_dense(), placed, rtol=0, atol=0)


LOGITS = {  # of a normal number for each cell and gene
    "random": lambda normal: normal,
    "one-hot": lambda normal: 50 * normal,
    "broad": lambda normal: 1e-2 * normal,
    "heavy-tailed": lambda normal: normal / torch.randn_like(normal),
    "tied": lambda normal: (2 * normal).round() / 4,
    "constant": lambda normal: torch.full_like(normal, 0.7),
    "far-from-zero": lambda normal: normal - 300,
    "huge": lambda normal: 1e20 * normal,
    "ascending": lambda normal: torch.linspace(0, torch.pi, normal.shape[1]).expand_as(normal),
    "mixed-widths": lambda normal: torch.logspace(-4, 1, len(normal))[torch.randperm(len(normal)), None] * normal,
    **{f"{wide}-genes": lambda normal, wide=wide: _wide(20 * normal, wide) for wide in (40, 127, 128, 129, 900)},
}


def _wide(logits, wide):
    """Narrow masks, but for a few rows with masks of so many genes."""
    logits[::7] = 0
    logits[::7, torch.randperm(logits.shape[1])[:wide]] = 5
    return logits


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 15), (9, 33), (99, 700), (9, 1024), (9, 1025), (20, 2001)])
@pytest.mark.parametrize("kind", LOGITS)
def test_sparsemax(kind, shape):
    """Masks and gradients are those of the oracle, whatever the logits; with a choice, among the chosen of each row."""
    logits, upstream, rows = LOGITS[kind](torch.randn(shape)), torch.randn(shape), torch.linspace(0, 1, shape[0])
    before, allowed = logits.clone(), torch.rand(shape) < rows[:, None] ** 2  # the first row has none
    for among in (None, allowed):
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        found = sparsemax(ours, among)
        if among is None:
            expected = Sparsemax(dim=-1)(theirs * 1.0)
        else:
            expected = 0 * theirs
            for row in among.any(1).nonzero()[:, 0]:
                expected[row, among[row]] = Sparsemax(dim=-1)(theirs[row, among[row]][None])[0]
        (found * upstream).sum().backward(), (expected * upstream).sum().backward()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    assert torch.equal(logits, before) and not found[0].any()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e30])
@pytest.mark.parametrize("n_genes", [500, 5000])
def test_large_logits_in_single_precision(size, n_genes):
    """Large logits give masks that sum to one, on the oracle's gene; NaN and infinity are errors where they count."""
    logits = size * torch.randn(40, n_genes).float() + size
    mask, expected = sparsemax(logits), Sparsemax(dim=-1)(logits.clone())
    torch.testing.assert_close(mask.sum(1), torch.ones(40, dtype=torch.float32))
    assert (mask.argmax(1) == expected.argmax(1)).all()
    for logits[1, 2] in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="diverged"):
            sparsemax(logits)
        assert torch.isfinite(sparsemax(logits, torch.isfinite(logits))).all()
