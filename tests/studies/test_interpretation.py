"""Interpretation: curves on dense values, gene sets against drawn ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import sims_kit as sk
from sims_kit import studies
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import DataError, GeneError, UnknownNameError
from sims_kit.studies import interpretation
from sims_kit.studies.interpretation import CELL_RANKINGS


@pytest.fixture(scope="module")
def given(cells, model):
    """Scores that know the markers of each cell's class, and their reverse."""
    values = log_normalised(cells, model.genes)
    is_marker = cells.var["marker_of"].to_numpy()[None, :] == cells.obs["cell_type"].to_numpy()[:, None]
    scores = values.copy()
    scores.data = is_marker[np.repeat(np.arange(300), np.diff(values.indptr)), values.indices]
    scores.data = scores.data + 0.01 * np.random.default_rng(0).random(values.nnz)  # no two alike
    return {"truth": scores, "reverse": -scores}


def test_top_genes_are_set_to_zero(model, cells, given):
    """The curves, computed on dense values; with no gene, and with all, they meet the whole and the empty cell."""
    values = log_normalised(cells, model.genes)
    dense, scores = values.toarray(), given["truth"].toarray()
    scores[dense == 0] = -np.inf
    top = np.argsort(-scores, axis=1)[:, :5]
    deleted, inserted = dense.copy(), np.zeros_like(dense)
    np.put_along_axis(deleted, top, 0, axis=1)
    np.put_along_axis(inserted, top, np.take_along_axis(dense, top, axis=1), axis=1)
    parts = {("deletion", 0): dense, ("deletion", 5): deleted, ("insertion", 5): inserted}
    parts |= {("insertion", 0): np.zeros_like(dense), ("insertion", np.diff(values.indptr).max()): dense}
    found = studies.faithfulness(model, cells, given, numbers=[0, 5, 1000]).set_index(["method", "curve", "n_genes"])
    with torch.no_grad():
        whole = model.eval().probabilities(torch.from_numpy(dense)).argmax(dim=1)
        for place, part in parts.items():
            expected = model.probabilities(torch.from_numpy(part))
            row = found.loc[("truth", *place)]
            assert row["probability"] == pytest.approx(expected.gather(1, whole[:, None]).mean().item(), abs=1e-4)
            assert row["unchanged"] == pytest.approx((expected.argmax(dim=1) == whole).float().mean().item(), abs=0.01)


def test_what_is_known_beats_chance_and_chance_its_reverse(model, cells, given):
    """Deleting markers, or what SIMS says it used, changes the prediction sooner."""
    numbers = dict(numbers=[10])
    table = pd.concat([studies.faithfulness(model, cells, part, **numbers) for part in (given, CELL_RANKINGS)])
    at_10 = table[table["n_genes"] == 10].pivot(index="method", columns="curve", values="probability")
    deletion, insertion = at_10["deletion"], at_10["insertion"]
    for better, worse in (("truth", "random"), ("random", "reverse"), ("SIMS contributions", "random")):
        assert deletion[better] < deletion[worse] - 0.02 and insertion[better] > insertion[worse] + 0.02
    again = studies.faithfulness(model, cells, "random", **numbers)
    pd.testing.assert_frame_equal(again, table[table["method"] == "random"].reset_index(drop=True))


def test_matched_scores_stay_among_genes_of_similar_value():
    """Each score stays in its block of twenty genes by value; the last block takes what is left."""
    values = sp.csr_matrix(np.random.default_rng(0).permutation(90) + np.array([[1.0], [100.0]]))
    explanation = sk.explanation.Explanation(*[values] * 2, *[None] * 7)
    found = interpretation._scores_per_cell("random matched by expression", values, explanation, 0).toarray()
    for row, shuffled in zip(values.toarray(), found, strict=True):
        for block in np.split(np.argsort(row), [20, 40, 60]):
            np.testing.assert_array_equal(np.sort(shuffled[block]), row[block])
        assert (shuffled != row).mean() > 0.8


MANY = [f"GENE{i:03d}" for i in range(400)]


@pytest.fixture(scope="module")
def noisy_cells():
    """Counts of genes whose means differ by four orders of magnitude, in shuffled order."""
    random = np.random.default_rng(0)
    means = random.permutation(np.geomspace(0.01, 100, len(MANY)))
    counts = sp.csr_matrix(random.poisson(means, (90, len(MANY))).astype(np.float32))
    obs = pd.DataFrame({"cell_type": np.repeat(["a", "b", "c"], 30)}, [f"cell_{i}" for i in range(90)])
    return AnnData(counts, obs, pd.DataFrame(index=MANY))


@pytest.fixture(scope="module")
def explained(noisy_cells):
    """A factory of explanations: contributions rise with expression alone, but for planted genes in class b."""

    def make(planted=(), factor=20.0):
        random = np.random.default_rng(1)
        passed = random.random(noisy_cells.shape) < np.log1p(noisy_cells.X.toarray().mean(axis=0)) / 10
        sizes = passed * random.gamma(2.0, 1.0, noisy_cells.shape)
        labels = noisy_cells.obs["cell_type"].to_numpy(str)
        rows, columns = np.flatnonzero(labels == "b"), noisy_cells.var_names.get_indexer(list(planted))
        sizes[np.ix_(rows, columns)] = factor * random.random((len(rows), len(columns)))
        added = sp.csr_matrix(sizes * random.choice([-1, 1], sizes.shape))
        names = (noisy_cells.obs_names, noisy_cells.var_names)
        return sk.explanation.Explanation(abs(added), added, None, None, None, *names, labels, labels)

    return make


def test_chances_are_those_of_drawn_sets(noisy_cells, explained):
    """Mean, interval and p-value of ten thousand sets that are drawn from the bins of expression."""
    noise, members = explained(), np.arange(0, 400, 20)
    row = studies.check_gene_set(noise, noisy_cells, noisy_cells.var_names[members]).loc["overall"]
    means = log_normalised(noisy_cells, MANY).mean(axis=0).A1
    sizes, random = np.asarray(abs(noise.contributions).sum(axis=0)).ravel(), np.random.default_rng(0)
    first, drawn = np.isin(range(400), np.argsort(-sizes)[:40]), np.zeros(10_000)
    for genes in np.array_split(np.argsort(means, kind="stable"), 20):
        if needed := np.isin(genes, members).sum():
            drawn += [first[random.choice(genes, needed, replace=False)].sum() for _ in drawn]
    assert row["expected"] == pytest.approx(drawn.mean() / 20, rel=0.02)
    assert row["p"] == pytest.approx((drawn >= first[members].sum()).mean(), abs=0.02)
    np.testing.assert_allclose(row[["low", "high"]].to_list(), np.quantile(drawn, [0.025, 0.975]) / 20, atol=0.051)


def test_a_planted_set_is_found_in_its_class(noisy_cells, explained):
    """Numbers are those counted on dense matrices, and only the class with planted genes stands out."""
    explanation, planted = explained(MANY[:10]), [*MANY[:10], "PGK1", MANY[0]]
    table = studies.check_gene_set(explanation, noisy_cells, planted)
    sizes = abs(explanation.contributions.toarray())
    for label, row in table.iterrows():
        own = sizes[np.isin(explanation.labels, list("abc") if label == "overall" else [label])]
        assert row["n_cells"] == len(own)
        assert row["contribution"] == pytest.approx(own[:, :10].sum() / own.sum())
        assert row["share"] == pytest.approx((np.argsort(-own.mean(axis=0))[:40] < 10).mean() * 4)
        assert row["low"] <= row["expected"] <= row["high"]
    assert (table["p"] < 0.05).to_dict() == {"overall": True, "a": False, "b": True, "c": False}
    everything = studies.check_gene_set(explanation, noisy_cells, MANY)
    assert np.allclose(everything["p"], 1) and np.allclose(everything["share"], everything["expected"])


@pytest.mark.parametrize(
    "methods, error, words",
    [
        (lambda given: {"x": given["truth"][:10]}, DataError, "300 x 60"),
        (lambda given: ["SIMS mask"], UnknownNameError, "SIMS masks"),
    ],
)
def test_mistakes_are_told(model, cells, given, methods, error, words):
    """Unknown methods, and scores that do not fit, are named."""
    with pytest.raises(error, match=words):
        studies.faithfulness(model, cells, methods(given))


def test_mistakes_in_gene_sets_are_told(noisy_cells, explained):
    """Sets in other names and other cells are refused; genes that are not used are no finding."""
    noise = explained()
    with pytest.raises(GeneError, match=r"'ENSG00000102144'\) is among the model's \('GENE000'"):
        studies.check_gene_set(noise, noisy_cells, ["ENSG00000102144"])
    for wrong in (noisy_cells[:80], noisy_cells[::-1]):
        with pytest.raises(DataError, match="pass the AnnData that was explained"):
            studies.check_gene_set(noise, wrong)
    unused = studies.check_gene_set(replace(noise, contributions=noise.contributions * 0), noisy_cells, MANY[:3])
    assert (unused["p"] == 1).all() and not unused[["contribution", "share"]].any(axis=None)
