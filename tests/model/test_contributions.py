"""Contributions: what genes add to the logits."""

import pytest
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch.nn.functional import logsigmoid, one_hot

from sims_kit.model import contributions
from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import TabNet, after_first_layer
from sims_kit.model.novelty import Novelty, class_sums

N_GENES, N_CLASSES = 60, 4
KINDS = {
    "thesis": {},
    "default": dict(
        n_d=16, n_a=16, n_steps=1, n_shared=1, n_independent=0, mask_temperature=3.0, rescale_masked=True,
        fixed_scale=True, additive=True,
    ),
    "two steps, broad": dict(n_steps=2, mask_start=0.01, additive=True),
    "three networks": dict(n_models=3, n_steps=1, mask_temperature=3.0, fixed_scale=True, additive=True),
}  # fmt: skip


def make(kind: str):
    """A network of that kind with weights that are not its first ones, cells, and the weights of the logits."""
    torch.manual_seed(0)
    network = TabNet(N_GENES, N_CLASSES, **KINDS[kind]).double()
    cells = torch.poisson(torch.full((30, N_GENES), 0.7, dtype=torch.float64)).log1p()
    network.measure(*class_sums([(cells, torch.arange(30) % N_CLASSES)], N_CLASSES, N_GENES, "cpu"))
    if network.additive_weight is not None:
        torch.nn.init.normal_(network.additive_weight, std=0.1)
    with torch.no_grad():
        for _ in range(20):
            network.train()(cells)
    return network.eval(), cells, torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64).repeat(30, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_steps(kind):
    """Masks of the steps, each weighted by what it adds to the decision, brought to sum one: of networks the mean."""
    network, cells, _ = make(kind)
    found, masks = explain_batch(network, cells), 0
    for step in network.steps(cells):
        masks = masks + step.mask * (step.decision.sum(2) + step.evidence.abs().sum(2))[:, :, None]
    torch.testing.assert_close(found.masks.to_dense(), (masks / masks.sum(2, keepdim=True)).mean(1))
    assert (found.masks.col_indices() == found.contributions.col_indices()).all()
    if kind == "thesis":
        oracle = TabNetNoEmbeddings(N_GENES, N_CLASSES, group_attention_matrix=torch.eye(N_GENES).double())
        oracle.double().eval()
        state = {name: part[0] if part.dim() == 3 else part for name, part in network.state_dict().items()}
        oracle.load_state_dict(state, strict=False)
        masks, _ = oracle.forward_masks(cells)
        torch.testing.assert_close(found.masks.to_dense().float(), masks / masks.sum(1, keepdim=True))
        torch.testing.assert_close(found.logits, oracle(cells)[0])


@pytest.mark.parametrize("nodes, remainder", [(contributions.NODES, 0.03), (500, 0.003)])
@pytest.mark.parametrize("kind", KINDS)
def test_they_sum_to_what_the_cell_adds(monkeypatch, kind, nodes, remainder):
    """All genes together: the logits less those of masked values of zero, up to the integral's remainder."""
    monkeypatch.setattr(contributions, "NODES", nodes)
    network, cells, towards = make(kind)
    found = explain_batch(network, cells, towards).contributions.to_dense().sum(1)
    with torch.no_grad():
        more = network(cells).logits - _logits_of_nothing(network, len(cells))
        expected = (more.mean(1) * towards).sum(1)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=remainder * expected.abs().max().item())


def _logits_of_nothing(network, n_cells):
    """The logits when every step's first layer reads zeros."""
    encoder, total = network.encoder, 0
    for transform in encoder.feat_transformers:
        n_models, width, _ = encoder.initial_splitter.shared.glu_layers[0].fc.weight.shape
        zeros = network.final_mapping.weight.new_zeros(n_cells, n_models, width)
        total = total + torch.relu(after_first_layer(transform, zeros)[..., : network.recipe.n_d])
    logits = network.final_mapping(total)
    return logits if network.additive_bias is None else logits + network.additive_bias


def test_a_linear_network_gives_value_times_weight():
    """Where only the additive path counts, contributions are masked values times weights; other genes are left out."""
    network, cells, towards = make("default")
    torch.nn.init.zeros_(network.final_mapping.weight)
    (step,) = network.steps(cells)
    mask, norm = step.mask[:, 0], network.encoder.initial_bn
    values = mask * (cells * norm.scale + norm.shift) / mask.square().sum(1, keepdim=True)
    found = explain_batch(network, cells, towards).contributions.to_dense()
    torch.testing.assert_close(found, values * (network.additive_weight[0] @ towards.T).T)
    assert not found[mask == 0].any()


def test_linear_classifiers_add_their_share():
    """Each gene's change from its mean times weight and slope; together, what all changes add to the answer."""
    network, cells, towards = make("default")
    linear = Novelty(N_GENES, N_CLASSES).double()
    linear.planes.normal_().mul_(torch.arange(N_GENES) % 3 == 0), linear.offsets.normal_(), linear.means.uniform_()
    mean = linear.means.mean(0)
    cells[0], cells[1] = 0, mean + 1e-6  # nothing, and changes so small that the slope is that of a point
    for form in (cells, cells.to_sparse_csr()):
        found = explain_batch(network, form, towards, 0.0, linear, 0.25)
        own = found.contributions.to_dense() - 0.75 * explain_batch(network, cells, towards).contributions.to_dense()
        start, end = mean * cells.sign(), cells
        more = logsigmoid(linear.margins(end)) - logsigmoid(linear.margins(start))
        torch.testing.assert_close(own.sum(1), 0.25 * (more * towards).sum(1), rtol=1e-6, atol=1e-9)
        slopes = 0.25 * towards * more / (linear.margins(end) - linear.margins(start))
        torch.testing.assert_close(own[2:], (slopes @ linear.planes * (end - start))[2:])
        torch.testing.assert_close(found.logits, linear.joined(explain_batch(network, cells).logits, cells, 0.25))
        torch.testing.assert_close(found.masks.to_dense(), explain_batch(network, cells).masks.to_dense())


@pytest.mark.parametrize("adjustment", [None, 2], ids=["as it is", "adjusted"])
def test_by_default_the_predicted_class_against_the_mean(adjustment):
    """Without `towards`, what speaks for the class that is predicted with the adjustment of each network's logits."""
    network, cells, _ = make("three networks")
    adjustment = torch.zeros(4) if adjustment is None else 50.0 * one_hot(torch.tensor(adjustment), 4)
    found = explain_batch(network, cells, adjustment=adjustment)
    expected = (network(cells).logits + adjustment).softmax(2).mean(1)
    torch.testing.assert_close(found.logits.softmax(1), expected)
    assert adjustment.any() == (expected.argmax(1) == 2).all()
    towards = one_hot(expected.argmax(1), N_CLASSES).double() - 1 / N_CLASSES
    same, opposed = (explain_batch(network, cells, way).contributions.to_dense() for way in (towards, -towards))
    torch.testing.assert_close(found.contributions.to_dense(), same)
    torch.testing.assert_close(opposed, -same)
