"""Contributions: what genes add to the logits."""

import pytest
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch.nn.functional import one_hot

from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import Ensemble, after_first_layer

N_GENES, N_CLASSES = 60, 4
KINDS = {
    "thesis": {},
    "default": dict(
        n_d=16, n_a=16, n_steps=1, n_shared=1, n_independent=0, mask_temperature=3.0, rescale_masked=True,
        fixed_scale=True, additive=True,
    ),
    "two steps, broad": dict(n_steps=2, mask_start=0.01, additive=True),
    "ensemble": dict(n_models=3, n_steps=1, mask_temperature=3.0, fixed_scale=True, additive=True),
}  # fmt: skip


def make(kind: str):
    """A network of that kind with weights that are not its first ones, cells, and the weights of the logits."""
    torch.manual_seed(0)
    network = Ensemble(N_GENES, N_CLASSES, **{"n_models": 1} | KINDS[kind]).double()
    cells = torch.poisson(torch.full((30, N_GENES), 0.7, dtype=torch.float64)).log1p()
    network.measure_input([cells])
    for member in network.members:
        if member.additive_weight is not None:
            torch.nn.init.normal_(member.additive_weight, std=0.1)
    with torch.no_grad():
        for _ in range(20):
            network.train()(cells)
    return network.eval(), cells, torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64).repeat(30, 1)


def added(network, cells, towards):
    """The contributions."""
    return explain_batch(network, cells, towards).contributions


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_steps(kind):
    """Masks of the steps, each weighted by what it adds to the decision, brought to sum one: of networks the mean."""
    network, cells, _ = make(kind)
    found, expected = explain_batch(network, cells), 0
    for member in network.members:
        steps = [
            (step.mask.to_dense(), step.decision.sum(1) + step.evidence.abs().sum(1)) for step in member.steps(cells)
        ]
        masks = sum(mask * strength[:, None] for mask, strength in steps)
        expected = expected + masks / masks.sum(1, keepdim=True) / len(network.members)
    torch.testing.assert_close(found.masks.to_dense(), expected)
    assert (found.masks.col_indices() == found.contributions.col_indices()).all()
    if kind == "thesis":
        oracle = TabNetNoEmbeddings(N_GENES, N_CLASSES, group_attention_matrix=torch.eye(N_GENES).double())
        oracle.double().eval()
        oracle.load_state_dict(network.members[0].state_dict(), strict=False)
        masks, _ = oracle.forward_masks(cells)
        torch.testing.assert_close(found.masks.to_dense().float(), masks / masks.sum(1, keepdim=True))
        torch.testing.assert_close(found.logits, oracle(cells)[0])


def test_within_inference_mode():
    """In a callback of Lightning, which turns gradients off, contributions are the same."""
    network, cells, towards = make("default")
    expected = added(network, cells, towards).to_dense()
    with torch.inference_mode():
        torch.testing.assert_close(added(network, cells.clone(), towards.clone()).to_dense(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_they_sum_to_what_the_cell_adds(kind):
    """All genes together: the logits less those of masked values of zero, up to the integral's remainder."""
    network, cells, towards = make(kind)
    found, expected = added(network, cells, towards).to_dense().sum(1), 0
    with torch.no_grad():
        for member in network.members:
            more = member(cells).logits - _logits_of_nothing(member, len(cells))
            expected = expected + (more * towards).sum(1) / len(network.members)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * expected.abs().max().item())


def _logits_of_nothing(network, n_cells):
    """The logits when every step's first layer reads zeros."""
    encoder, total = network.encoder, 0
    for transform in encoder.feat_transformers:
        width = encoder.initial_splitter.shared.glu_layers[0].fc.out_features
        zeros = network.final_mapping.weight.new_zeros(n_cells, width)
        total = total + torch.relu(after_first_layer(transform, zeros)[:, : encoder.n_d])
    logits = network.final_mapping(total)
    return logits if network.additive_bias is None else logits + network.additive_bias


def test_a_linear_network_gives_value_times_weight():
    """Where only the additive path counts, contributions are masked values times weights; other genes are left out."""
    ensemble, cells, towards = make("default")
    (network,) = ensemble.members
    torch.nn.init.zeros_(network.final_mapping.weight)
    (step,) = network.steps(cells)
    mask, norm = step.mask.to_dense(), network.encoder.initial_bn
    values = mask * (cells * norm.scale + norm.shift) / mask.square().sum(1, keepdim=True)
    expected = values * (network.additive_weight @ towards.T).T
    for form in (cells, cells.to_sparse_csr()):
        found = added(ensemble, form, towards).to_dense()
        torch.testing.assert_close(found, expected)
        assert not found[mask == 0].any()


@pytest.mark.parametrize("adjustment", [None, 2], ids=["as it is", "adjusted"])
def test_by_default_the_predicted_class_against_the_mean(adjustment):
    """Without `towards`, what speaks for the class that is predicted with the adjustment of each network's logits."""
    network, cells, _ = make("ensemble")
    adjustment = torch.zeros(4) if adjustment is None else 50.0 * one_hot(torch.tensor(adjustment), 4)
    found = explain_batch(network, cells, adjustment=adjustment)
    expected = sum((output.logits + adjustment).softmax(1) for output in network(cells)) / 3
    torch.testing.assert_close(found.logits.softmax(1), expected)
    assert adjustment.any() == (expected.argmax(1) == 2).all()
    towards = one_hot(expected.argmax(1), N_CLASSES).double() - 1 / N_CLASSES
    torch.testing.assert_close(found.contributions.to_dense(), added(network, cells, towards).to_dense())
    torch.testing.assert_close(added(network, cells, -towards).to_dense(), -found.contributions.to_dense())
