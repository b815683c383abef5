"""Several networks as one."""

import pytest
import torch

from sims_kit.errors import SettingError
from sims_kit.model import SIMSClassifier
from sims_kit.model.network import Ensemble

SETTINGS = dict(mask_temperature=5.0, fixed_scale=True, rescale_masked=True, n_steps=1)


@pytest.fixture
def ensemble():
    """Three small networks on 30 genes."""
    torch.manual_seed(0)
    return Ensemble(30, 4, n_models=3, **SETTINGS)


def test_answers_are_the_mean_of_probabilities(ensemble):
    """Probabilities are averaged, not logits."""
    cells = torch.rand(6, 30)
    ensemble.eval()
    expected = sum(member(cells).logits.softmax(1) for member in ensemble.members) / 3
    torch.testing.assert_close(ensemble(cells).logits.softmax(1), expected)


def test_explanations_are_averaged(ensemble):
    """Each member has one vote: rows sum to one, and hold every gene that a member looked at."""
    cells = torch.rand(6, 30).to_sparse_csr()
    ensemble.eval()
    masks, logits = ensemble.explain(cells)
    parts = [member.explain(cells)[0].to_dense() for member in ensemble.members]
    torch.testing.assert_close(masks.to_dense(), sum(part / part.sum(1, keepdim=True) for part in parts) / 3)
    torch.testing.assert_close(logits, ensemble(cells).logits)


def test_members_share_the_scale_alone(ensemble):
    """One pass measures the genes for all; weights differ."""
    ensemble.measure_input([torch.rand(9, 30)])
    first, second, _ = ensemble.members
    torch.testing.assert_close(first.encoder.initial_bn.state_dict(), second.encoder.initial_bn.state_dict())
    assert not torch.equal(first.final_mapping.weight, second.final_mapping.weight)


def test_each_member_learns_from_its_own_errors():
    """A member's gradients are those it would have alone."""
    cells, labels = torch.rand(8, 20), torch.arange(8) % 3
    model = SIMSClassifier(20, 3, recipe="default", network={"n_models": 2, "gene_dropout": 0.0})
    model._track = lambda *arguments: None
    model.training_step(type("Batch", (), {"cells": cells, "labels": labels}), 0).backward()
    member = model.network.members[1]
    together = member.final_mapping.weight.grad.clone()
    member.zero_grad()
    model._loss(member(cells).logits, labels).backward()
    torch.testing.assert_close(member.final_mapping.weight.grad, together)


def test_no_members():
    """An ensemble of nothing is refused."""
    with pytest.raises(SettingError, match="n_models"):
        Ensemble(5, 2, n_models=0)
