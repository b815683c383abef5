"""TabNet against pytorch-tabnet's, in float64."""

import pytest
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch.nn.functional import cross_entropy

from sims_kit.errors import SettingError
from sims_kit.model.tabnet import TabNet

SHAPES = {
    "defaults": (64, 50, 4, {}),
    "ragged-ghost-batches": (300, 120, 3, dict(virtual_batch_size=128)),
    "wide": (32, 800, 19, dict(n_d=16, n_a=16, n_steps=2)),
    "many-steps": (40, 200, 7, dict(n_d=16, n_a=4, n_steps=5, gamma=1.7, n_shared=1, n_independent=1)),
    "one-step": (16, 30, 2, dict(n_steps=1, gamma=1.0)),
}


@pytest.fixture(autouse=True)
def double_precision():
    """Everything in float64; the oracle makes its masks in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=SHAPES, ids=SHAPES.keys())
def twins(request):
    """Our network and the oracle with the same weights, after a few training steps of the oracle, and cells."""
    n_cells, n_genes, n_classes, settings = SHAPES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        oracle = TabNetNoEmbeddings(n_genes, n_classes, **settings)
        cells = torch.poisson(torch.rand(n_cells, n_genes)).log1p()
        cells[0] = 0  # a cell without a single count
        cells[:, 0] = 0  # a gene that is never seen
        labels = torch.arange(n_cells) % n_classes
    optimizer = torch.optim.Adam(oracle.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(oracle(cells)[0], labels).backward()
        optimizer.step()
    ours = TabNet(n_genes, n_classes, **settings)
    missing, unexpected = ours.load_state_dict(oracle.state_dict(), strict=False)
    assert not missing and all(name.startswith("initial_bn.") for name in unexpected)  # never used by the oracle
    return ours, oracle, cells, labels


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_losses_gradients_and_statistics(twins, training):
    """Logits, both losses, every gradient and the running statistics agree to 1e-10."""
    ours, oracle, cells, labels = twins
    ours.train(training), oracle.train(training)
    output = ours(cells)
    expected_logits, negative_entropy = oracle(cells)
    torch.testing.assert_close(output.logits, expected_logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.mask_entropy, -negative_entropy, rtol=0, atol=1e-10)
    ours.zero_grad(), oracle.zero_grad()
    (cross_entropy(output.logits, labels) + 1e-3 * output.mask_entropy).backward()
    (cross_entropy(expected_logits, labels) - 1e-3 * negative_entropy).backward()
    theirs = dict(oracle.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=0, atol=1e-10, msg=name)
    statistics = dict(oracle.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("n_cells", [1, None], ids=["one-cell", "all-cells"])
def test_masks(twins, n_cells):
    """Masks of each step and their aggregation agree to 1e-10, also for a last batch of one cell."""
    ours, oracle, cells, _ = (part.eval() if isinstance(part, torch.nn.Module) else part for part in twins)
    cells = cells[-1:] if n_cells == 1 else cells
    expected, expected_steps = oracle.forward_masks(cells)
    aggregated, logits = ours.explain(cells)
    torch.testing.assert_close(aggregated, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, oracle(cells)[0], rtol=0, atol=1e-10)
    for step, mask in zip(ours.steps(cells), expected_steps.values(), strict=True):
        torch.testing.assert_close(step.mask, mask, rtol=0, atol=1e-10)


def test_sparse_cells_give_the_same(twins):
    """A CSR batch gives what the dense one gives."""
    ours, _, cells, _ = twins
    ours.eval()
    torch.testing.assert_close(ours(cells.to_sparse_csr()).logits, ours(cells).logits, rtol=0, atol=0)


@pytest.mark.parametrize("n_cells, virtual_batch_size", [(1, 128), (5, 2), (7, 3)])
def test_ghost_batch_of_one_cell(n_cells, virtual_batch_size):
    """In training a ghost batch of one cell is refused by name, where the oracle fails inside torch."""
    network = TabNet(6, 2, virtual_batch_size=virtual_batch_size)
    with pytest.raises(SettingError, match="one cell"):
        network(torch.rand(n_cells, 6))
    oracle = TabNetNoEmbeddings(6, 2, virtual_batch_size=virtual_batch_size)
    oracle.encoder.initial_bn.eval()  # the input's batch norm sees the whole batch
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        oracle(torch.rand(n_cells, 6))
    assert network.eval()(torch.rand(n_cells, 6)).logits.shape == (n_cells, 2)


def test_broad_start():
    """`mask_start` near zero makes the first masks broad, and rescaling keeps the masked input's size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cells = torch.rand(64, 1000)
        narrow, broad = TabNet(1000, 3), TabNet(1000, 3, mask_start=0.01, rescale_masked=True)
        width = [(next(net.steps(cells)).mask > 0).sum(1).float().mean() for net in (narrow, broad)]
    assert width[0] < 20 and width[1] > 100


def test_gene_dropout():
    """A share of the genes is hidden in training, drawn for each cell, and none in evaluation."""
    network = TabNet(2000, 3, gene_dropout=0.25)
    seen = []
    network.encoder.initial_bn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.train()(torch.ones(8, 2000)), network.eval()(torch.ones(8, 2000))
    assert seen[0].mean() == pytest.approx(0.75, abs=0.02) and seen[0].unique().tolist() == [0, 1]
    assert not torch.equal(seen[0][0], seen[0][1]) and (seen[1] == 1).all()


@pytest.mark.parametrize(
    "setting", [dict(gene_dropout=1.0), dict(n_steps=0), dict(gamma=0.5), dict(n_shared=0), dict(n_d=0)]
)
def test_impossible_settings(setting):
    """Sizes and gamma out of range are named."""
    with pytest.raises(SettingError, match=next(iter(setting))):
        TabNet(5, 2, **setting)


def test_nothing_is_genes_times_genes():
    """No tensor of the network grows with the square of the genes."""
    network = TabNet(5000, 3)
    assert max(tensor.numel() for tensor in network.state_dict().values()) < 40 * 5000
