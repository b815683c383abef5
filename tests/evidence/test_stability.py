"""Stability: rank-biased overlap by hand, tables of several models, their consensus."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from sims_kit.errors import DataError, GeneError, SettingError
from sims_kit.evidence import consensus, members_for_stability, rank_biased_overlap, stability


def noisy_tables(n=4, noise=0.5, n_classes=3, n_genes=200, seed=0):
    """Tables of models that see the same truth through noise of their own."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(n_classes, n_genes))
    names = dict(index=[f"class_{i}" for i in range(n_classes)], columns=[f"GENE{i}" for i in range(n_genes)])
    return [pd.DataFrame(truth + random.normal(0, noise, truth.shape), **names) for _ in range(n)]


def overlap_from_sets(first, second, p):
    """Equation 32 of Webber, Moffat and Zobel, term by term."""
    short, long = sorted((first, second), key=len)
    s, n = len(short), len(long)
    common = [len(set(short[:d]) & set(long[:d])) for d in range(n + 1)]
    total = sum(common[d] / d * p**d for d in range(1, n + 1))
    total += sum(common[s] * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * total + ((common[n] - common[s]) / n + common[s] / s) * p**n


@pytest.mark.parametrize(
    "first, second, p, expected",
    [
        ("abc", "acd", 0.9, (0.9 + 0.405 + 0.486) / 9 + 0.486),  # in common 1, 1, 2 of depths 1, 2, 3
        ("a", "ba", 0.5, 0.125 + 0.125),  # of other lengths: 0, 1
        ("ab", "acb", 0.5, 5 / 6),  # 1, 1, 2, and half of the short one expected to go on
        ("abc", "abc", 0.9, 1),
        ("abc", "abcdef", 0.9, 1),  # nothing speaks against the same continuation
        ("abc", "xyz", 0.9, 0),
        ("abc", "xy", 0.9, 0),
    ],
)
def test_overlap_by_hand(first, second, p, expected):
    """Values worked by hand; the order of the two does not matter."""
    assert rank_biased_overlap(first, second, p=p) == pytest.approx(expected, abs=1e-12)
    assert rank_biased_overlap(second, first, p=p) == pytest.approx(expected, abs=1e-12)


def test_overlap_is_the_published_formula():
    """Random rankings of other lengths and partly other names agree with the formula by sets."""
    random = np.random.default_rng(0)
    for _ in range(50):
        first, second = (list(random.permutation(30)[: random.integers(1, 25)]) for _ in range(2))
        p = random.uniform(0.1, 0.99)
        assert rank_biased_overlap(first, second, p=p) == pytest.approx(overlap_from_sets(first, second, p))
        cut = rank_biased_overlap(first, second, p=p, depth=5)
        assert cut == pytest.approx(overlap_from_sets(first[:5], second[:5], p))


def test_first_ranks_count_most():
    """A swap at the top costs more than one further down."""
    names = list("abcdefghij")
    top, bottom = names[1::-1] + names[2:], names[:8] + names[:7:-1]
    assert rank_biased_overlap(names, top) < rank_biased_overlap(names, bottom) < 1


def test_pairs_and_classes():
    """One row per pair and class; RBO of the genes above zero, Spearman as scipy has it over all."""
    tables = dict(zip("abc", noisy_tables(3), strict=True))
    table = stability(tables, depth=20)
    assert list(table.columns) == ["first", "second", "class", "rbo", "spearman"]
    assert list(zip(table["first"], table["second"], strict=True))[::3] == [("a", "b"), ("a", "c"), ("b", "c")]
    row = table[(table["second"] == "c") & (table["class"] == "class_1")].iloc[0]
    one, other = tables["a"].loc["class_1"], tables["c"].loc["class_1"]
    assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    expected = rank_biased_overlap(one.nlargest(20).index, other.nlargest(20).index)
    assert row["rbo"] == pytest.approx(expected)
    same = stability([tables["a"], tables["a"].iloc[::-1, ::-1]])  # the order of rows and columns does not matter
    np.testing.assert_allclose(same[["rbo", "spearman"]], 1)
    assert list(same["first"]) == [0, 0, 0]


def test_unused_genes_do_not_agree():
    """Genes at zero have no rank: models that share no gene score 0, a class without genes has no score."""
    one, other = pd.DataFrame(0.0, ["x", "y"], list("abcdefgh")), pd.DataFrame(0.0, ["x", "y"], list("abcdefgh"))
    one.loc["x", ["a", "b"]], other.loc["x", ["g", "h"]] = 1.0, [2.0, 1.0]
    table = stability([one, other]).set_index("class")
    assert table.loc["x", "rbo"] == 0 and np.isnan(table.loc["y", "rbo"]) and np.isnan(table.loc["y", "spearman"])


def test_only_what_is_shared_is_compared():
    """Classes and genes that one table lacks are left out with a warning that names them."""
    one, other = noisy_tables(2)
    with pytest.warns(UserWarning, match=r"1 classes \(class_0\) and 2 genes \(GENE0, GENE1\)"):
        table = stability([one, other.iloc[1:, 2:]])
    pd.testing.assert_frame_equal(table, stability([one.iloc[1:, 2:], other.iloc[1:, 2:]]))
    with pytest.raises(DataError, match="share no class"):
        stability([one, other.rename(index="other {}".format)])
    with pytest.raises(GeneError, match="share no gene"):
        stability([one, other.rename(columns="other {}".format)])


def test_consensus_is_mean_and_spread():
    """Mean and standard deviation as numpy has them; each top gene with the share of models that agree."""
    tables = noisy_tables(5)
    found = consensus(tables)
    values = np.stack(tables)
    np.testing.assert_allclose(found.mean, values.mean(axis=0))
    np.testing.assert_allclose(found.sd, values.std(axis=0, ddof=1))
    assert found.n == 5
    top = found.top_genes(7)
    assert len(top) == 3 * 7 and list(top["rank"][:7]) == list(range(1, 8))
    own = top[top["class"] == "class_2"]
    assert list(own["gene"]) == list(found.mean.loc["class_2"].nlargest(7).index)
    for row in own.itertuples():
        members = [row.gene in table.loc["class_2"].nlargest(7).index for table in tables]
        assert row.share == pytest.approx(np.mean(members))
        assert (row.mean, row.sd) == (found.mean.loc["class_2", row.gene], found.sd.loc["class_2", row.gene])
    assert consensus(tables[:1]).sd.isna().all().all()


def test_top_genes_are_above_zero():
    """A class has no more top genes than genes above zero."""
    table = pd.DataFrame([[0.0, 2.0, -1.0], [1.0, 2.0, 3.0]], ["x", "y"], list("abc"))
    top = consensus([table, table]).top_genes(3)
    assert list(top["class"]) == ["x", "y", "y", "y"] and list(top["gene"]) == ["b", "c", "b", "a"]
    with pytest.raises(SettingError, match="n=0"):
        consensus([table]).top_genes(0)


def test_more_members_agree_better():
    """Averages of more models agree better; groups share no table, and the seed decides."""
    tables = noisy_tables(12, noise=1.5)
    table = members_for_stability(tables, n_draws=10, seed=3)
    assert table.groupby("n_members").size().to_dict() == dict.fromkeys(range(1, 7), 10)
    means = table.groupby("n_members")["rbo"].mean()
    assert means[1] + 0.1 < means[3] + 0.05 < means[6]
    pd.testing.assert_frame_equal(table, members_for_stability(tables, n_draws=10, seed=3))
    assert not table.equals(members_for_stability(tables, n_draws=10, seed=4))
    one = members_for_stability(tables, sizes=[2], n_draws=10, seed=3)
    assert list(one["rbo"]) == list(table.loc[table["n_members"] == 2, "rbo"])


def test_few_tables_give_every_pair_once():
    """Where there are no more pairs of groups than draws, each is there once: of 4 tables 6 of one, 3 of two."""
    tables = noisy_tables(4)
    table = members_for_stability(tables)
    assert table.groupby("n_members").size().to_dict() == {1: 6, 2: 3}
    single = stability(tables).groupby(["first", "second"])["rbo"].mean()
    np.testing.assert_allclose(table.loc[table["n_members"] == 1, "rbo"], single)
    halves = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
    expected = [
        stability([consensus([tables[i] for i in group]).mean for group in groups])["rbo"].mean() for groups in halves
    ]
    np.testing.assert_allclose(table.loc[table["n_members"] == 2, "rbo"], expected)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda t: stability(t[:1]), DataError, "1 tables given; expected 2 or more"),
        (lambda t: members_for_stability(t[:1]), DataError, "1 tables given; expected 2 or more"),
        (lambda t: consensus([]), DataError, "0 tables given; expected 1 or more"),
        (lambda t: stability(t[0]), DataError, "single DataFrame"),
        (lambda t: stability([t[0], t[1].iloc[:0]]), DataError, "Table 1 is DataFrame without values"),
        (lambda t: stability([t[0], "table"]), DataError, "Table 1 is str"),
        (lambda t: stability({"a": t[0], "b": t[1] / 0}), DataError, "'b' has values that are not finite"),
        (lambda t: stability([t[0], t[1].rename(index={"class_1": "class_0"})]), DataError, "class 'class_0' twice"),
        (lambda t: stability([t[0], t[1].rename(columns={"GENE1": "GENE0"})]), DataError, "gene 'GENE0' twice"),
        (lambda t: stability(t, p=1.0), SettingError, "p=1.0"),
        (lambda t: stability(t, depth=0), SettingError, "depth=0"),
        (lambda t: members_for_stability(t, sizes=[1, 3]), SettingError, "sizes has 3; expected .* 1 to 2"),
        (lambda t: members_for_stability(t, n_draws=0), SettingError, "n_draws=0"),
        (lambda t: rank_biased_overlap([], ["a"]), DataError, "first ranking is empty"),
        (lambda t: rank_biased_overlap(["a"], ["b", "b"]), DataError, "second ranking has 'b' twice"),
    ],
)
def test_mistakes_are_told(call, error, words):
    """Too few tables, damaged ones and settings out of range are named."""
    with pytest.raises(error, match=words):
        call(noisy_tables(4))
