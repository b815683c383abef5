"""Contributions: what genes add to the logits."""

import pytest
import torch

from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import after_first_layer, make_network, members

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


def make(kind: str, dtype=torch.float64):
    """A network of that kind with weights that are not its first ones, cells, and the weights of the logits."""
    torch.manual_seed(0)
    network = make_network(N_GENES, N_CLASSES, **KINDS[kind]).to(dtype)
    cells = torch.poisson(torch.full((30, N_GENES), 0.7, dtype=dtype)).log1p()
    network.measure_input([cells])
    for member in members(network):
        if member.additive_weight is not None:
            torch.nn.init.normal_(member.additive_weight, std=0.1)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(cells)
    towards = torch.zeros(30, N_CLASSES, dtype=dtype)
    towards[:, 0], towards[:, 1] = 1, -1
    return network.eval(), cells, towards


def added(network, cells, towards):
    """The contributions."""
    return explain_batch(network, cells, towards).contributions


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_network(kind):
    """The masks and logits are `network.explain`'s, each network's brought to sum one."""
    network, cells, _ = make(kind)
    masks, logits = network.explain(cells)
    masks = masks.to_dense() / masks.to_dense().sum(1, keepdim=True)
    found = explain_batch(network, cells)
    torch.testing.assert_close(found.masks.to_dense(), masks)
    torch.testing.assert_close(found.logits, logits)
    assert (found.masks.col_indices() == found.contributions.col_indices()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_they_sum_to_what_the_cell_adds(kind):
    """All genes together: the logits less those of masked values of zero, up to the integral's remainder."""
    network, cells, towards = make(kind)
    found = added(network, cells, towards).to_dense().sum(1)
    all_members = members(network)
    with torch.no_grad():
        whole = sum((member(cells).logits * towards).sum(1) for member in all_members)
        nothing = sum((_logits_of_nothing(member, len(cells)) * towards).sum(1) for member in all_members)
    expected = (whole - nothing) / len(all_members)
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
    """Where only the additive path counts, contributions are masked values times weights."""
    network, cells, towards = make("default")
    torch.nn.init.zeros_(network.final_mapping.weight)
    (step,) = network.steps(cells)
    mask, norm = step.mask.to_dense(), network.encoder.initial_bn
    values = mask * (cells * norm.scale + norm.shift) / mask.square().sum(1, keepdim=True)
    expected = values * (network.additive_weight @ towards.T).T
    torch.testing.assert_close(added(network, cells, towards).to_dense(), expected)


def test_sparse_cells_give_the_same():
    """CSR or dense, the numbers agree; genes outside the masks are left out."""
    network, cells, towards = make("default")
    dense, sparse = (added(network, form, towards) for form in (cells, cells.to_sparse_csr()))
    torch.testing.assert_close(sparse.to_dense(), dense.to_dense())
    (step,) = network.steps(cells)
    assert not dense.to_dense()[step.mask.to_dense() == 0].any()


def test_by_default_the_predicted_class_against_the_mean():
    """Without `towards`, what speaks for the answer."""
    network, cells, _ = make("default")
    predicted = network(cells).logits.argmax(1)
    towards = torch.nn.functional.one_hot(predicted, N_CLASSES).double() - 1 / N_CLASSES
    torch.testing.assert_close(
        explain_batch(network, cells).contributions.to_dense(), added(network, cells, towards).to_dense()
    )


def test_swapped_classes_change_the_sign():
    """What speaks for one class against another speaks as much against it the other way round."""
    network, cells, towards = make("default")
    torch.testing.assert_close(added(network, cells, -towards).to_dense(), -added(network, cells, towards).to_dense())


def test_adjustment_moves_the_predicted_class():
    """An adjustment is added to each network's logits; contributions are then towards the class predicted with it."""
    network, cells, _ = make("ensemble")
    adjustment = torch.tensor([0.0, 0.0, 50.0, 0.0], dtype=torch.float64)
    found = explain_batch(network, cells, adjustment=adjustment)
    expected = sum((member(cells).logits + adjustment).softmax(1) for member in network.members) / 3
    torch.testing.assert_close(found.logits.softmax(1), expected)
    towards = torch.nn.functional.one_hot(torch.full((30,), 2), N_CLASSES).double() - 1 / N_CLASSES
    torch.testing.assert_close(found.contributions.to_dense(), added(network, cells, towards).to_dense())
