"""Rankings of genes: each method's numbers against the library or function that they come from."""

import os
import sys

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import sims_kit as sk
from sims_kit.errors import LabelError, PeerError, SettingError, UnknownNameError
from sims_kit.evidence import CELL_METHODS, METHODS, cell_scores, gene_scores_per_cell, rank_genes, top_genes_overall
from sims_kit.evidence.cell_scores import _shuffled_among_alike, log_normalised_values, ranks_within_cells

WITHOUT_CAPTUM = [method for method in METHODS if method != "integrated gradients"]


@pytest.fixture(scope="module")
def cells(easy_cells):
    """Those that the model was fitted on."""
    return easy_cells


@pytest.fixture(scope="module")
def values(cells):
    """What scanpy makes of the counts."""
    adata = cells.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


@pytest.fixture(scope="module")
def rankings(model, cells):
    """The tables of all methods that need no further package."""
    return rank_genes(model, cells, "cell_type", WITHOUT_CAPTUM)


def test_one_table_per_method(rankings, model):
    """Classes x genes of the model, named."""
    assert list(rankings) == WITHOUT_CAPTUM
    for table in rankings.values():
        assert table.index.name == "class" and list(table.index) == ["class_0", "class_1", "class_2"]
        assert list(table.columns) == model.genes and table.notna().all(axis=None)


def test_sims_tables_are_those_of_explain(rankings, model, cells):
    """Masks and contributions by label."""
    explanation = sk.explain(model, cells, groupby="cell_type")
    np.testing.assert_allclose(rankings["SIMS masks"], explanation.classes, atol=1e-7)
    np.testing.assert_allclose(rankings["SIMS contributions"], explanation.class_contributions, atol=1e-6)


def test_peers_are_those_of_their_libraries(rankings, cells, values):
    """Coefficients are scikit-learn's, test scores scanpy's, on the values that scanpy normalises."""
    for name, peer in (
        ("logistic regression", LogisticRegression(C=1, max_iter=1000, random_state=0)),
        ("linear SVM", LinearSVC(C=0.01, random_state=0)),
    ):
        expected = peer.fit(values.X, cells.obs["cell_type"]).coef_
        np.testing.assert_allclose(rankings[name], expected, atol=1e-3)
    sc.tl.rank_genes_groups(values, "cell_type", method="wilcoxon")
    for label, scores in rankings["Wilcoxon"].iterrows():
        expected = sc.get.rank_genes_groups_df(values, label).set_index("names")["scores"]
        np.testing.assert_allclose(scores[expected.index], expected, rtol=0.01, atol=0.02)  # rounding unties cells


def test_wilcoxon_leaves_the_number_of_threads(model, cells):
    """Torch computes on as many threads after scanpy's test as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() + 1)  # what nobody else would choose
    try:
        rank_genes(model, cells, "cell_type", "Wilcoxon")
        assert torch.get_num_threads() == os.cpu_count() + 1
    finally:
        torch.set_num_threads(before)


def test_markers_come_first(rankings, cells):
    """By every method the gene that speaks most for a class is one of its markers."""
    for method, table in rankings.items():
        assert list(cells.var["marker_of"][table.idxmax(axis=1)]) == list(table.index), method


def test_two_classes(model, cells):
    """With two classes, what speaks for one speaks against the other; genes that no cell has score 0."""
    two = cells[cells.obs["cell_type"] != "class_2"].copy()
    two.X = two.X @ sp.diags((np.arange(60) != 5).astype(np.float32))
    tables = rank_genes(model, two, "cell_type", ["logistic regression", "linear SVM", "Wilcoxon"])
    for method, table in tables.items():
        np.testing.assert_allclose(table.iloc[0], -table.iloc[1], atol=1e-5)
        assert list(cells.var["marker_of"][table.idxmax(axis=1)]) == ["class_0", "class_1"], method
        assert not table.iloc[:, 5].any()


def test_integrated_gradients_add_up(model, cells, monkeypatch):
    """A cell's sum to its class's logit against the mean of all, less that of a cell whose values all but vanish."""
    pytest.importorskip("captum")
    monkeypatch.setattr(cell_scores, "STEPS", 256)
    scores = gene_scores_per_cell(model, cells[:20], "integrated gradients")
    values = torch.from_numpy(log_normalised_values(model, cells[:20]).toarray())
    with torch.no_grad():
        logits, faded = model.eval()(values), model(values * 1e-6)
    own = logits.argmax(dim=1, keepdim=True)
    expected = [(part.gather(1, own)[:, 0] - part.mean(dim=1)).numpy() for part in (logits, faded)]
    np.testing.assert_allclose(scores.sum(axis=1).A1, expected[0] - expected[1], atol=0.01 * expected[0].max())
    table = rank_genes(model, cells[:20], "cell_type", "integrated gradients")["integrated gradients"]
    first = (cells.obs["cell_type"][:20] == table.index[0]).to_numpy()
    np.testing.assert_allclose(table.iloc[0], scores[first].toarray().mean(axis=0), atol=1e-5)


def test_captum_missing_is_told(model, cells, monkeypatch):
    """Without the package, the error says how to get it."""
    monkeypatch.delitem(sys.modules, "captum.attr", raising=False)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(PeerError, match=r"captum.*pip install 'sims_kit\[peers\]'"):
        gene_scores_per_cell(model, cells[:5], "integrated gradients")


@pytest.mark.parametrize("method", [name for name in CELL_METHODS if name != "integrated gradients"])
def test_scores_per_cell_cover_what_is_expressed(model, cells, method):
    """One entry for each gene that a cell expresses; the same for the same seed."""
    scores = gene_scores_per_cell(model, cells, method, seed=3)
    assert (scores.indices == cells.X.indices).all() and (scores.indptr == cells.X.indptr).all()
    assert (gene_scores_per_cell(model, cells, method, seed=3).data == scores.data).all()


def test_scores_per_cell_are_those_of_explain(model, cells):
    """Masks and contributions of each cell; an SVM's weights of the predicted class, times the value."""
    explanation = sk.explain(model, cells)
    for method, expected in (
        ("SIMS masks", explanation.cells),
        ("SIMS contributions", explanation.contributions),
    ):
        np.testing.assert_allclose(gene_scores_per_cell(model, cells, method).toarray(), expected.toarray(), atol=1e-5)
    values = log_normalised_values(model, cells)
    svm = LinearSVC(C=0.01, random_state=0).fit(values, explanation.predicted)
    weights = svm.coef_[np.searchsorted(svm.classes_, explanation.predicted)]
    found = gene_scores_per_cell(model, cells, "linear SVM weight times value")
    np.testing.assert_allclose(found.toarray(), values.toarray() * weights, atol=1e-6)


def test_matched_scores_stay_among_genes_of_like_value(model, cells):
    """Each cell keeps its scores, and each stays in its block of genes ordered by value."""
    added = gene_scores_per_cell(model, cells, "SIMS contributions")
    matched = gene_scores_per_cell(model, cells, "random matched by expression")
    assert (matched.data != added.data).mean() > 0.5
    np.testing.assert_array_equal(np.sort(matched.toarray(), axis=1), np.sort(added.toarray(), axis=1))
    values = sp.csr_matrix(np.random.default_rng(0).permutation(90) + np.array([[1.0], [100.0]]))
    shuffled = _shuffled_among_alike(values, values, np.random.default_rng(0)).toarray()
    for row, found in zip(values.toarray(), shuffled, strict=True):
        order = np.argsort(row)
        for first, last in ((0, 20), (20, 40), (40, 60), (60, 90)):  # the last block takes what is left
            np.testing.assert_array_equal(np.sort(found[order[first:last]]), row[order[first:last]])
        assert (found != row).mean() > 0.8


def test_ranks_within_cells(model, cells):
    """1 for the highest score of each cell, every rank once."""
    scores = gene_scores_per_cell(model, cells, "SIMS masks")
    ranks = ranks_within_cells(scores)
    for row in range(5):
        own, places = scores.data[slice(*scores.indptr[row : row + 2])], ranks.data[slice(*ranks.indptr[row : row + 2])]
        assert sorted(places) == list(range(1, len(own) + 1))
        assert (np.diff(own[np.argsort(places)]) <= 0).all()


def test_top_genes_overall_shares_among_classes():
    """The best of each class first, then the second best; a gene counts once."""
    table = pd.DataFrame([[9, 8, 1, 0, 5], [0, 1, 9, 8, 7]], ["x", "y"], list("abcde"), dtype=float)
    assert set(top_genes_overall(table, 2)) == {"a", "c"}
    assert set(top_genes_overall(table, 4)) == {"a", "b", "c", "d"}
    with pytest.raises(SettingError, match="1 to 5"):
        top_genes_overall(table, 6)


def test_errors_name_what_is_wrong(model, cells):
    """Unknown methods and columns, lone cells, and a single predicted class."""
    with pytest.raises(UnknownNameError, match="Wilcoxon"):
        rank_genes(model, cells, "cell_type", ["wilcoxon"])
    with pytest.raises(UnknownNameError, match="random"):
        gene_scores_per_cell(model, cells, "chance")
    with pytest.raises(UnknownNameError, match="cell_type"):
        rank_genes(model, cells, "celltype")
    lone = cells.copy()
    lone.obs["cell_type"] = ["alone", *lone.obs["cell_type"][1:]]
    with pytest.raises(LabelError, match=r"'alone'.* one cell each"):
        rank_genes(model, lone, "cell_type", "Wilcoxon")
    same = cells[cells.obs["cell_type"] == "class_1"].copy()
    same = same[sk.annotate(same, model, copy=True).obs["sims_label"] == "class_1"].copy()
    with pytest.raises(LabelError, match=r"'class_1'.*two classes"):
        gene_scores_per_cell(model, same, "linear SVM weight times value")
