"""Masks over expressed genes, the fixed scale of the input, and the additive path."""

import pytest
import torch

from sims_kit.errors import SettingError
from sims_kit.model import TabNet, sparsemax
from sims_kit.model.sparse import expressed, expressed_mask
from sims_kit.model.network import FixedScale

SETTINGS = dict(mask_temperature=5.0, rescale_masked=True, fixed_scale=True, additive=True, n_steps=2)


@pytest.fixture
def cells():
    """Twelve cells x 50 genes, a third of the values zero; the last cell is empty."""
    torch.manual_seed(0)
    values = torch.rand(12, 50) * (torch.rand(12, 50) > 0.3)
    values[-1] = 0
    return values


def _network(cells, **changes):
    torch.manual_seed(1)
    network = TabNet(50, 3, **SETTINGS | changes)
    network.measure_input([cells])
    return network


def test_masks_are_sparsemax_among_expressed_genes(cells):
    """The weights are those of sparsemax on each cell's expressed genes alone; cells without genes have none."""
    attend = _network(cells).encoder.att_transformers[0].eval()
    attention = torch.randn(12, 8)
    mask = expressed_mask(attention, attend, [], 1.3, expressed(cells.to_sparse_csr()), 5.0)
    logits, dense = attend.bn(attend.fc(attention)) / 5.0, mask.to_dense()
    for cell in range(11):
        own = cells[cell] > 0
        torch.testing.assert_close(dense[cell, own], sparsemax(logits[cell, own]))
        assert not dense[cell, ~own].any()
    assert not dense[-1].any() and (mask.weights > 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_dense_and_sparse_cells_agree(cells, training):
    """Logits and gradients do not depend on how cells come, and an empty cell has finite ones."""
    results = []
    for form in (torch.Tensor.to_dense, torch.Tensor.to_sparse_csr):
        network = _network(cells).train(training)
        torch.nn.init.normal_(network.additive_weight)
        logits = network(form(cells)).logits
        logits.square().sum().backward()
        results.append([logits.detach(), *(weight.grad for weight in network.parameters() if weight.grad is not None)])
    for dense, sparse in zip(*results, strict=True):
        assert torch.isfinite(dense).all()
        torch.testing.assert_close(dense, sparse, rtol=1e-3, atol=1e-5)


def test_higher_temperature_passes_more_genes(cells):
    """Masks widen with the temperature."""
    widths = [len(_network(cells, mask_temperature=t).steps(cells)[0].mask.weights) for t in (0.1, 1.0, 10.0)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_additive_path_is_a_sum_over_genes(cells):
    """What the masked genes add is mask x normalised value x weight, by gene, over the sum of squares of the mask."""
    network = _network(cells, n_steps=1).eval()
    torch.nn.init.normal_(network.additive_weight)
    (step,) = network.steps(cells)
    mask, scale = step.mask.to_dense()[:-1], network.encoder.initial_bn
    shares = mask * (cells[:-1] * scale.scale + scale.shift) / mask.square().sum(1, keepdim=True)
    torch.testing.assert_close(step.evidence[:-1], shares @ network.additive_weight)
    assert not step.evidence[-1].any()


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


def test_refreshing_statistics_leaves_the_scale(cells):
    """The input's scale stays as it was measured before training."""
    network = _network(cells, gene_dropout=0.5)
    before = {name: value.clone() for name, value in network.encoder.initial_bn.state_dict().items()}
    network.refresh_statistics([cells])
    torch.testing.assert_close(dict(network.encoder.initial_bn.state_dict()), before)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_impossible_temperature(temperature):
    """A temperature that is not above zero is refused."""
    with pytest.raises(SettingError, match="mask_temperature"):
        TabNet(5, 2, mask_temperature=temperature)
