"""A set of genes against sets of equally expressed genes: calibrated on noise, found where planted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control, kstest

import sims_kit as sk
from sims_kit.datasets.simulate import SimulationSettings, simulate
from sims_kit.errors import DataError, GeneError, SettingError, UnknownNameError
from sims_kit.evidence import STRESS_GENES, check_gene_set
from sims_kit.explanation import Explanation, _overall, mean_by_class

N_CELLS, N_GENES = 90, 400
GENES = [f"GENE{i:03d}" for i in range(N_GENES)]


@pytest.fixture(scope="module")
def cells():
    """Counts of genes whose means differ by four orders of magnitude, in shuffled order."""
    random = np.random.default_rng(0)
    means = random.permutation(np.geomspace(0.01, 100, N_GENES))
    counts = sparse.csr_matrix(random.poisson(means, (N_CELLS, N_GENES)).astype(np.float32))
    obs = pd.DataFrame({"cell_type": np.repeat(["a", "b", "c"], N_CELLS // 3), "half": ["x", "y"] * (N_CELLS // 2)})
    return AnnData(counts, obs.set_index(obs.index.map("cell_{}".format)), pd.DataFrame(index=GENES))


def explanation_of(cells, planted=(), factor=20.0, seed=1):
    """Sparse masks that pass a gene the oftener the higher it is expressed; planted genes weigh more in class b."""
    random = np.random.default_rng(seed)
    passed = random.random(cells.shape) < np.log1p(cells.X.toarray().mean(axis=0)) / 10
    weights = passed * random.gamma(2.0, 1.0, cells.shape)
    rows = np.flatnonzero(cells.obs["cell_type"] == "b")
    columns = cells.var_names.get_indexer(list(planted))
    weights[np.ix_(rows, columns)] = factor * random.random((len(rows), len(columns)))
    masks = sparse.csr_matrix((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
    added = masks.copy()
    added.data = added.data * random.choice(np.float32([-1, 1]), len(added.data))
    labels, names = cells.obs["cell_type"].to_numpy(dtype=str), pd.Index(cells.var_names, name="gene")
    tables = [mean_by_class(part, labels, names) for part in (masks, added)]
    return Explanation(masks, added, *tables, _overall(masks, added, names), cells.obs_names, names, labels, labels)


@pytest.fixture(scope="module")
def noise(cells):
    """An explanation in which expression alone decides on weight."""
    return explanation_of(cells)


def test_stress_genes_are_those_of_the_simulation():
    """One list in the package, which has the named markers of the paper."""
    assert STRESS_GENES is SimulationSettings.stress_genes
    assert {"PGK1", "ARCN1", "GORASP2"} < set(STRESS_GENES)


def test_p_values_are_uniform_under_chance(cells, noise):
    """Random sets have p-values as uniform numbers have them, overall and in a class, for both measures."""
    random = np.random.default_rng(2)
    found = []
    for seed in range(200):
        check = check_gene_set(
            noise, cells, random.choice(GENES, 12, replace=False), n_permutations=199, alpha=0.5, seed=seed
        )
        found.append([*check.overall[["weight_p", "contribution_p"]], check.classes.loc["b", "weight_p"]])
    for p_values in np.array(found, dtype=float).T:
        assert kstest(p_values, "uniform").pvalue > 0.01
        assert 0.01 <= (p_values <= 0.05).mean() <= 0.1


def test_expression_is_matched(cells, noise):
    """Highly expressed genes hold much weight, as others like them do; without bins they would be found."""
    high = cells.var_names[np.argsort(-cells.X.toarray().mean(axis=0))[:60]]
    few = np.random.default_rng(3).choice(high, 15, replace=False)
    matched, not_matched = (check_gene_set(noise, cells, few, n_bins=n_bins) for n_bins in (20, 1))
    assert matched.overall["weight_p"] > 0.05 and 0.8 < matched.overall["weight_ratio"] < 1.2
    assert not_matched.overall["weight_p"] < 0.01 and not_matched.overall["weight_ratio"] > 2


def test_a_planted_set_is_found_in_its_class(cells):
    """Weight planted in class b is found there and not elsewhere, and the verdict says so."""
    planted = GENES[:10]
    check = check_gene_set(explanation_of(cells, planted), cells, [*planted, "PGK1", "PGK1"])
    p = check.classes[["weight_p_adjusted", "contribution_p_adjusted"]]
    assert (p.loc["b"] < 0.01).all() and (p.loc[["a", "c"]] > 0.05).all().all()
    assert check.missing == ("PGK1",)
    assert "In class b they hold" in check.verdict and check.verdict.endswith("look at it.")
    assert "class a" not in check.verdict and "10 genes of the set found among 400 hold" in check.verdict


def test_numbers_are_those_of_the_masks(cells):
    """Shares, cells, largest member and top genes, counted on dense matrices."""
    planted = GENES[:10]
    explanation = explanation_of(cells, planted)
    check = check_gene_set(explanation, cells, planted, top=30)
    masks, sizes = explanation.cells.toarray(), abs(explanation.contributions.toarray())
    rows = explanation.labels == "b"
    for found, chosen in ((check.overall, np.full(N_CELLS, True)), (check.classes.loc["b"], rows)):
        assert found["n_cells"] == chosen.sum()
        for measure, values in (("weight", masks[chosen]), ("contribution", sizes[chosen])):
            assert found[measure] == pytest.approx(values[:, :10].sum() / values.sum())
            first = np.argsort(-values.mean(axis=0))[:30]
            assert found[f"top_by_{measure}"] == (first < 10).sum()
            assert found[f"{measure}_low"] < found[f"{measure}_expected"] < found[f"{measure}_high"]
            assert found[f"{measure}_ratio"] == pytest.approx(found[measure] / found[f"{measure}_expected"])
        assert found["cells"] == pytest.approx((masks[chosen, :10] > 0).any(axis=1).mean())
        means = masks[chosen, :10].mean(axis=0)
        assert found["largest_weight"] == pytest.approx(means.max()) and found["largest_gene"] == GENES[means.argmax()]
    columns = ["weight_p", "contribution_p", "top_by_weight_p", "top_by_contribution_p"]
    adjusted = false_discovery_control(check.classes[columns].to_numpy().ravel()).reshape(3, 4)
    np.testing.assert_allclose(check.classes[[f"{column}_adjusted" for column in columns]], adjusted)
    order = explanation.genes.index
    assert check.genes["rank"].to_dict() == {gene: 1 + order.get_loc(gene) for gene in check.genes.index}
    pd.testing.assert_frame_equal(
        check.genes[["weight", "cells"]], explanation.genes.loc[check.genes.index, ["weight", "cells"]]
    )


def test_the_count_among_the_first_is_tested(cells):
    """Where a strong gene holds nearly all weight, many members right after it are found by their number."""
    masks = np.zeros((N_CELLS, len(GENES)), np.float32)
    masks[:, 399], masks[:, :10], masks[:, 20:390] = 0.98, 0.001, 1e-5
    explanation = explanation_of(cells, [])
    masks = sparse.csr_matrix(masks)
    explanation = replace(explanation, cells=masks, contributions=masks)
    check = check_gene_set(explanation, cells, GENES[:10], top=12, n_bins=1)
    assert (check.classes["top_by_weight"] == 10).all()
    assert (check.classes["top_by_weight_p_adjusted"] < 0.01).all()
    assert "10 and 10 among the first genes, 0.3 and 0.3 expected" in check.verdict


def test_drawn_sets_are_like_the_set(cells, noise):
    """The set of all genes has one permutation, itself; a single gene of a bin gives way to each in it."""
    everything = check_gene_set(noise, cells, GENES)
    assert everything.overall["weight_p"] == 1 and everything.overall["weight_ratio"] == pytest.approx(1)
    weights = noise.genes["weight"][GENES].to_numpy()
    counts = cells.X.toarray()
    order = np.argsort(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).mean(axis=0), kind="stable")
    bin_of_last = order[-20:]
    check = check_gene_set(noise, cells, [GENES[order[-1]]], n_permutations=4000)
    assert check.overall["weight_expected"] == pytest.approx(weights[bin_of_last].mean(), rel=0.03)
    expected = (weights[bin_of_last] >= weights[order[-1]]).mean()
    assert check.overall["weight_p"] == pytest.approx(expected, abs=0.03)


def test_verdict_when_nothing_is_found(cells, noise):
    """A set like any other: the numbers, and no sign."""
    check = check_gene_set(noise, cells, GENES[100:112])
    share, ratio = 100 * check.overall["weight"], check.overall["weight_ratio"]
    assert check.verdict.startswith(
        f"The 12 genes of the set found among 400 hold {share:.1f} % of the mask weight and "
    )
    assert f"{ratio:.1f} and " in check.verdict
    assert check.verdict.endswith("no sign that the model relies on them.")
    single = check_gene_set(noise, cells, GENES[100:101])
    assert single.verdict.startswith("The 1 gene of the set found among 400 holds")


def test_verdict_when_every_class_relies(cells):
    """Weight everywhere: the model relies on the set, and three classes are named at most."""
    everywhere = cells.copy()
    everywhere.obs["cell_type"] = "b"
    explanation = explanation_of(everywhere, GENES[:10], factor=40.0)
    everywhere.obs["many"] = np.arange(N_CELLS) % 5
    check = check_gene_set(explanation, everywhere, GENES[:10], groupby="many")
    assert ": the model relies on them. In class" in check.verdict
    assert check.verdict.endswith("; and 2 more classes stand out: look at them.")
    assert check.verdict.count("in class") + check.verdict.count("In class") == 3


def test_groups_and_seed(cells, noise):
    """Classes by a column; the same seed draws the same sets; a single class can pass alpha among many."""
    check = check_gene_set(noise, cells, GENES[:12], groupby="half", seed=5)
    assert list(check.classes.index) == ["x", "y"] and check.n_permutations == 1000
    pd.testing.assert_frame_equal(
        check.classes, check_gene_set(noise, cells, GENES[:12], groupby="half", seed=5).classes
    )
    assert not check.classes.equals(check_gene_set(noise, cells, GENES[:12], groupby="half", seed=6).classes)
    each = cells.copy()
    each.obs["each"] = each.obs_names
    assert check_gene_set(noise, each, GENES[:12], groupby="each").n_permutations == 4 * N_CELLS / 0.05


def test_mistakes_are_told(cells, noise):
    """Unknown genes with what is wrong with them, other cells, and settings out of range."""
    with pytest.raises(
        GeneError, match=r"set has Ensembl ids such as ENSG00000102144.* the model symbols such as GENE000"
    ):
        check_gene_set(noise, cells, ["ENSG00000102144", "ENSG00000095139"])
    with pytest.raises(GeneError, match=r"2 are there in another case \(GENE001, GENE002\)"):
        check_gene_set(noise, cells, ["Gene001", "gene002", "Pgk1"])
    with pytest.raises(DataError, match=r"80 cells, the explanation has 90"):
        check_gene_set(noise, cells[:80])
    with pytest.raises(DataError, match="another order"):
        check_gene_set(noise, cells[::-1])
    with pytest.raises(UnknownNameError, match="cell_type"):
        check_gene_set(noise, cells, GENES[:3], groupby="celltype")
    for settings, words in (
        (dict(genes="PGK1"), "genes='PGK1'; expected a list"),
        (dict(genes=[]), "expected a list"),
        (dict(alpha=0.001), "alpha=0.001"),
        (dict(n_permutations=0), "n_permutations=0"),
        (dict(n_bins=1.5), "n_bins=1.5"),
        (dict(top=0), "top=0"),
    ):
        with pytest.raises(SettingError, match=words):
            check_gene_set(noise, cells, **{"genes": GENES[:3], **settings})


@pytest.mark.slow
@pytest.mark.parametrize("stressed", [True, False])
def test_stress_that_leaks_into_a_class_is_caught(stressed, tmp_path):
    """Where one type alone is stressed the model uses it, and the check tells; without stress there is no sign."""
    cells = simulate(
        n_cells=300,
        n_genes=240,
        tree={"A": ("a1", "a2"), "B": ("b1", "b2")},
        class_skew=0.0,
        lib_loc=7.5,
        de_prob=0.03,
        stress_strength=1.5 if stressed else 0.0,
        stress_types=("a2",),
        stress_genes=STRESS_GENES[:20],
    )
    quiet = dict(enable_progress_bar=False, logger=False, verbose=False)
    model = sk.fit(cells, "cell_type", max_epochs=10, default_root_dir=tmp_path, **quiet)
    check = check_gene_set(sk.explain(model, cells), cells, groupby="cell_type")
    caught = (check.classes[["weight_p_adjusted", "contribution_p_adjusted"]] < 0.05).any(axis=1)
    assert caught.to_dict() == {"a1": False, "a2": stressed, "b1": False, "b2": False}
    assert ("class a2" if stressed else "no sign") in check.verdict
    assert set(check.missing) == set(STRESS_GENES[20:])
