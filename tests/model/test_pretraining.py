"""Masked pretraining: what is hidden and asked for, the decoder, the start of a classifier, and its file."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sims_kit as sk
from sims_kit.errors import GeneError, SettingError, UnknownNameError
from sims_kit.model.pretraining import MaskedPretraining, mask_genes, reconstruct

QUIET = dict(verbose=False)
SMALL = {"n_models": 2, "n_d": 8, "n_a": 8}


@pytest.fixture
def batch():
    """Forty cells x thirty genes, CSR, a third of them expressed; the first cell has none, the second all."""
    values = sp.random(40, 30, density=0.3, format="lil", random_state=0, dtype=np.float32)
    values[0], values[1] = 0, 1
    values = values.tocsr()
    parts = (values.indptr.astype(np.int64), values.indices.astype(np.int64), values.data)
    return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), values.shape)


@pytest.fixture(scope="module")
def pretrained(make_cells):
    """An encoder pretrained on a few cells, whose labels are gone."""
    cells = make_cells(n_cells=200)
    del cells.obs["cell_type"]
    return sk.pretrain([cells[:90].copy(), cells[90:].copy()], recipe=SMALL, max_epochs=30, **QUIET)


def test_what_is_hidden_and_asked_for(batch):
    """Hidden genes are zero in the input and keep their value in the question; the others asked for are zeros."""
    torch.manual_seed(0)
    before, masked = batch.to_dense(), mask_genes(batch, 0.5)
    after = masked.cells.to_dense()
    asked, zeros = masked.values > 0, masked.values == 0
    torch.testing.assert_close(masked.values, before[masked.rows, masked.genes])
    assert not after[masked.rows, masked.genes].any()
    torch.testing.assert_close(after.index_put((masked.rows[asked], masked.genes[asked]), masked.values[asked]), before)
    of_cells = [torch.bincount(masked.rows[some], minlength=40) for some in (asked, zeros)]
    torch.testing.assert_close(of_cells[0][2:], of_cells[1][2:])  # as many of either
    assert of_cells[0][1] > 0 and of_cells[1][1] == 0  # a cell that expresses all genes has no other
    assert 0.4 < asked.sum() / (before > 0).sum() < 0.6
    of_zeros = torch.zeros(40).index_add_(0, masked.rows[zeros], masked.weights[zeros])
    drawn = of_cells[1] > 0
    torch.testing.assert_close(of_zeros[drawn], 0.5 * (before == 0).sum(1)[drawn].float())  # they stand for all zeros
    assert (masked.weights[asked] == 1).all()
    torch.testing.assert_close(batch.to_dense(), before)  # the cells are not changed


def test_unexpressed_genes_are_drawn_evenly(batch):
    """Every gene that a cell does not express is as likely as any other, and as many are drawn as was said."""
    torch.manual_seed(0)
    draws = [mask_genes(batch, 0.9, 2.5) for _ in range(300)]
    hidden = sum(int(((one.rows == 5) & (one.values > 0)).sum()) for one in draws)
    genes = torch.cat([one.genes[(one.rows == 5) & (one.values == 0)] for one in draws])
    counts = torch.bincount(genes, minlength=30)
    absent = batch.to_dense()[5] == 0
    assert len(genes) == pytest.approx(2.5 * hidden, rel=0.05)
    assert not counts[~absent].any()
    expected = len(genes) / absent.sum()
    assert ((counts[absent] - expected).square() / expected).sum() < 2 * absent.sum()  # chi square


@pytest.mark.parametrize("recipe", ["default", "thesis"])
def test_decoder_is_that_of_pytorch_tabnet(batch, recipe):
    """At the pairs asked for, the answer is that of pytorch-tabnet's decoder for all genes."""
    torch.manual_seed(0)
    model = MaskedPretraining(30, recipe=sk.RECIPES[recipe].changed(n_models=1, n_steps=2)).eval()
    (decoder,) = model.decoders
    torch.nn.init.normal_(decoder.reconstruction_layer.weight)
    masked = mask_genes(batch, 0.3)
    steps = [step.decision[:, 0] for step in model.network.steps(masked.cells)]
    torch.testing.assert_close(reconstruct(decoder, steps, masked), decoder(steps)[masked.rows, masked.genes])


def test_hidden_genes_are_found(pretrained):
    """After some epochs, hidden genes are reported better than by the mean of their gene, on cells held back."""
    assert pretrained.history["val_loss"].iloc[-1] < 0.9 * pretrained.history["val_loss"].iloc[0]
    assert pretrained.history["val_explained"].iloc[-1] > 0.05
    assert pretrained.provenance["cells"] == {"train": 180, "validation": 20, "test": 0}
    assert pretrained.is_fitted and not pretrained.training
    assert pretrained.network.encoder.initial_bn.shift.any()  # measured on the cells


def test_length(make_cells):
    """It takes a thousand steps, unless the recipe that was given says otherwise."""
    twelve = SMALL | {"training_steps": 12}
    recipes = twelve, sk.RECIPES["default"].changed(**twelve), SMALL
    models = [sk.pretrain(make_cells(), recipe=recipe, **QUIET) for recipe in recipes]
    assert [model.recipe.training_steps for model in models] == [12, 12, 1000]
    assert len(models[0].history) == len(models[1].history) < len(models[2].history)


def test_explained_variance_is_that_of_its_definition(batch):
    """`val_explained` compares the errors with those of each gene's mean over the training cells."""
    torch.manual_seed(0)
    model = MaskedPretraining(30, recipe=SMALL).eval()
    for decoder in model.decoders:
        torch.nn.init.normal_(decoder.reconstruction_layer.weight)
    dense = batch.to_dense().double()
    model.scale.measure(dense.sum(0), dense.square().sum(0), torch.tensor(40.0))
    logged = {}
    model.log = lambda name, value: logged.update({name: value.item()})
    model.on_validation_epoch_start()
    model.validation_step(type("Batch", (), {"cells": batch}), 0)
    model.on_validation_epoch_end()
    masked = mask_genes(batch, 0.2, 3.0, torch.Generator().manual_seed(0))
    said, means = torch.stack(model(masked)).detach().numpy(), batch.to_dense().numpy().mean(0)
    values, weights = masked.values.numpy() - means[masked.genes], masked.weights.numpy()
    scale = batch.to_dense().var(0, correction=0).mean().rsqrt().item()  # every gene varies
    error = np.average(((said - scale * values) ** 2).mean(0), weights=weights)
    assert logged["val_loss"] == pytest.approx(error, rel=1e-4)
    variance = np.average((scale * values) ** 2, weights=weights)
    assert logged["val_explained"] == pytest.approx(1 - error / variance, rel=1e-4)


@pytest.mark.parametrize("per_class, n_read", [(None, 60), (7, 21)])
def test_classifier_starts_from_it_gene_by_gene(make_cells, pretrained, tmp_path, per_class, n_read):
    """From its file or itself, each gene that is read takes its own weights; new ones start as without pretraining."""
    cells = make_cells(n_cells=60)[:, ::-1].copy()
    cells.var_names = [f"NEW{i}" if i % 9 == 0 else gene for i, gene in enumerate(cells.var_names)]
    still = SMALL | {"genes_per_class": per_class, "optimizer_params": {"lr": 0.0}}  # it learns nothing after its start
    path = sk.save_model(pretrained, tmp_path / "encoder.safetensors")
    from_file, from_it, usual = (
        sk.fit(cells, "cell_type", pretrained=one, recipe=still, max_epochs=1, **QUIET).network
        for one in (path, pretrained, None)
    )
    genes, theirs = usual.genes, dict(pretrained.network.named_parameters())
    new, known = (genes % 9 == 0).nonzero()[:, 0], genes % 9 > 0
    assert torch.equal(from_it.genes, genes) and len(genes) == n_read and 0 < len(new) < n_read
    for (name, own), (_, plain) in zip(from_it.named_parameters(), usual.named_parameters(), strict=True):
        torch.testing.assert_close(own, from_file.get_parameter(name), rtol=0, atol=0)
        if "encoder." not in name:
            torch.testing.assert_close(own, plain, rtol=0, atol=0)
        elif ".shared_layers.0." in name or ".att_" in name:
            axis = 2 if ".shared_layers.0." in name else 1
            parts = own, plain, theirs[name]  # (networks x genes,) or (networks, width, genes), either way round
            own, plain, their = (part.view(2, -1) if part.dim() == 1 else part for part in parts)
            wanted = plain.index_copy(axis, known.nonzero()[:, 0], their.index_select(axis, 59 - genes[known]))
            torch.testing.assert_close(own, wanted, rtol=0, atol=0)
            assert (own != plain).any() or ".bn." in name
        else:
            torch.testing.assert_close(own, theirs[name], rtol=0, atol=0)
    before = {name: value.clone() for name, value in theirs.items()}
    sk.fit(cells, "cell_type", pretrained=pretrained, recipe=SMALL, max_epochs=1, **QUIET)
    torch.testing.assert_close(theirs, before, rtol=0, atol=0)  # a copy was trained


def test_what_does_not_fit_is_refused(make_cells, pretrained):
    """Other settings of the network, other genes, other objects: said before training, with both values."""
    cells = make_cells(n_cells=60)
    with pytest.raises(SettingError, match=r"n_d 16 \(pretrained: 8\).*"):
        sk.fit(cells, "cell_type", pretrained=pretrained, recipe={**SMALL, "n_d": 16}, **QUIET)
    untrained = MaskedPretraining(4, genes=list("abcd"))
    refused = {"type SIMSClassifier": sk.SIMSClassifier(4, 2), r"Fit it with sims_kit\.pretrain": untrained}
    for says, wrong in refused.items():
        with pytest.raises(SettingError, match=says):
            sk.fit(cells, "cell_type", pretrained=wrong, **QUIET)
    other = cells.copy()
    other.var_names = [f"OTHER{i}" if i > 20 else gene for i, gene in enumerate(other.var_names)]
    with pytest.warns(UserWarning, match=r"21 of the 60 genes of these cells \(35%\)"):
        sk.generate_trainer(other, class_label="cell_type", pretrained=pretrained, recipe=SMALL, **QUIET)
    other.var_names = [f"OTHER{i}" if i > 2 else gene for i, gene in enumerate(other.var_names)]
    with pytest.raises(GeneError, match=r"3 of the 60 genes of these cells \(5%\).*OTHER"):
        sk.fit(other[:, ::-1].copy(), "cell_type", pretrained=pretrained, recipe=SMALL, **QUIET)


OUT_OF_RANGE = {"mask_share is 0": {"mask_share": 0}, "unexpressed is 0": {"unexpressed": 0}}
OUT_OF_RANGE |= {"mask_shar": {"mask_shar": 0.1}, "recipe=dict": {"model_params": {"n_d": 4}}}


@pytest.mark.parametrize("words, settings", [*OUT_OF_RANGE.items(), ("argument of pretrain 'test'", {"test": 0.1})])
def test_settings_out_of_range(make_cells, settings, words):
    """A setting that does not exist or is out of range is named."""
    with pytest.raises((SettingError, UnknownNameError), match=words):
        sk.pretrain(make_cells(), **settings, **QUIET)
