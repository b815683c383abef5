"""Explanation: the masks as tables."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch
from scipy import sparse

import sims_kit as sk
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import DataError
from sims_kit.model.contributions import explain_batch


@pytest.fixture(scope="module")
def explanation(model, cells):
    """Its explanation of the cells."""
    return sk.explain(model, cells, batch_size=64)


def test_rows_are_the_networks(model, cells, explanation):
    """Each row is the network's aggregated mask divided by its sum, and its contributions, stored sparse."""
    assert explanation.cells.shape == cells.shape and explanation.cells.format == "csr"
    normalised = torch.from_numpy(log_normalised(cells[:5], model.genes).toarray())
    for share, found in {0.4: explanation, 0: sk.explain(model, cells, networks_only=True)}.items():
        expected = explain_batch(model.network, normalised, None, model.logit_adjustment, model.novelty, share)
        np.testing.assert_allclose(found.cells[:5].toarray(), expected.masks.to_dense(), atol=1e-5)
        np.testing.assert_allclose(found.contributions[:5].toarray(), expected.contributions.to_dense(), atol=1e-4)


def test_tables_agree_with_the_cells(model, cells, explanation):
    """Class and gene tables are means of the rows; a class's genes speak for it; a column may replace predictions."""
    rows, added = explanation.cells.toarray(), explanation.contributions.toarray()
    for label in explanation.classes.index:
        of_class = explanation.labels == label
        np.testing.assert_allclose(explanation.classes.loc[label], rows[of_class].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(explanation.class_contributions.loc[label], added[of_class].mean(axis=0), atol=1e-5)
        assert explanation.class_contributions.loc[label].sum() > 0
    genes = explanation.genes.loc[cells.var_names]
    np.testing.assert_allclose(genes["weight"], rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(genes["cells"], (rows > 0).mean(axis=0))
    np.testing.assert_allclose(genes["contribution"], np.abs(added).mean(axis=0), atol=1e-5)
    assert explanation.genes["weight"].is_monotonic_decreasing
    assert list(sk.explain(model, cells, groupby="cell_type").labels) == list(cells.obs["cell_type"])


def test_one_cell_and_top_genes(cells, explanation):
    """A cell's genes, largest contribution first, and those of a class: mostly its own markers."""
    markers = cells.var["marker_of"].astype(str)
    assert explanation.genes.loc[cells.var_names[markers != ""], "weight"].sum() > 0.6  # half of the genes
    genes, top = explanation.cell(cells.obs_names[7]), explanation.top_genes(5)
    assert genes["contribution"].is_monotonic_decreasing and genes["weight"].sum() == pytest.approx(1, rel=1e-5)
    assert top.shape == (5, 3) and all((markers[names] == label).mean() >= 0.8 for label, names in top.items())
    assert top.iloc[0, 0] == explanation.class_contributions.iloc[0].idxmax()
    assert explanation.top_genes(5, by="weight").iloc[0, 0] == explanation.classes.iloc[0].idxmax()
    with pytest.raises(KeyError, match="weight"):
        explanation.top_genes(by="weights")
    for shown in (repr(explanation), explanation._repr_html_()):
        assert all(gene in shown for gene in top.iloc[:, 0]) and len(shown) < 1500


def test_why_a_cell(model, cells, explanation):
    """One cell: the classes, their probabilities, and what speaks for the one against the other."""
    name = cells.obs_names[7]
    found = sk.explain_cell(model, cells, name)
    annotated = sk.annotate(cells, model, copy=True)
    assert found.label == annotated.obs.loc[name, "sims_label"] == explanation.predicted[7]
    assert found.second_label == annotated.obs.loc[name, "sims_second_label"]
    assert found.probability == pytest.approx(annotated.obs.loc[name, "sims_confidence"], abs=1e-5)
    assert 0 < found.second_probability < found.probability
    expected = explanation.cell(name).reindex(found.genes.index)
    np.testing.assert_allclose(found.genes[["weight", "contribution"]], expected, atol=1e-4)
    counts = cells[name, found.genes.index].X.toarray()[0] / cells[name].X.sum()
    np.testing.assert_allclose(found.genes["expression"], np.log1p(counts * 1e4), rtol=1e-5)
    assert not np.allclose(found.genes["against_second"], found.genes["contribution"])
    values = sparse.csr_matrix(cells.X.toarray() * (cells.obs_names != name)[:, None])
    nothing = sk.explain_cell(model, ad.AnnData(values, cells.obs, cells.var), name)
    assert not len(nothing.genes) and list(nothing.genes) == list(found.genes)
    assert found.label in repr(found) and found.genes.index[0] in repr(found) and len(repr(found)) < 1500


def test_written_for_scanpy(cells, explanation, tmp_path):
    """Layers, class tables and a ranking that scanpy's own functions read, after a round trip through a file."""
    adata = cells[:, ::-1].copy()  # genes in another order
    explanation.add_to(adata)
    adata.write_h5ad(tmp_path / "explained.h5ad")
    adata = sc.read_h5ad(tmp_path / "explained.h5ad")
    np.testing.assert_allclose(adata[:, cells.var_names].layers["sims_masks"].toarray(), explanation.cells.toarray())
    table = sc.get.rank_genes_groups_df(adata, None, key="rank_genes_sims")
    for label, ranked in table.groupby("group", observed=True):
        assert list(ranked["names"][:5]) == list(explanation.top_genes(5)[label])
    classes = list(adata.uns["sims_kit"]["sims"]["explained_classes"])
    column = adata.varm["sims_class_contributions"][:, classes.index(explanation.classes.index[1])]
    np.testing.assert_allclose(column, explanation.class_contributions.iloc[1][adata.var_names], atol=1e-6)
    sc.pl.rank_genes_groups(adata, key="rank_genes_sims", show=False)
    sc.pl.rank_genes_groups_dotplot(adata, key="rank_genes_sims", n_genes=3, show=False)
    adata.uns["sims_kit"]["title"] = "Cortex"
    refused = {"explanation 300": (cells[:5].copy(), "sims"), "slash": (cells, "a/b"), "fact": (adata, "title")}
    for words, (where, key) in refused.items():
        with pytest.raises(ValueError, match=words):
            explanation.add_to(where, key_added=key)


def test_values_are_written_to_the_genes_that_were_matched(model, cells):
    """Where a column of `var`, and not var_names, holds the model's genes, nothing becomes zero."""
    other = cells.copy()
    other.var["feature_name"] = other.var_names.to_numpy()
    other.var_names = [f"ENSG{i:011d}" for i in range(other.n_vars)]
    found = sk.explain(model, other)
    found.add_to(other)
    for layer, values in (("sims_masks", found.cells), ("sims_contributions", found.contributions)):
        assert values.nnz > 0 and (other.layers[layer] != values).nnz == 0


def test_names_that_no_terminal_takes(model, cells):
    """Control characters and halves of letters in names are written out, whatever is shown."""
    odd, escape = cells.copy(), "\x1b[31m\x07\udcff"
    odd.var["names"], odd.uns["sims_kit"] = odd.var_names, {"dataset": escape}
    odd.var_names = [f"{escape}{name}" for name in odd.var_names]
    odd.obs["cell_type"] = [f"{label}{escape[:-1]}" for label in odd.obs["cell_type"]]
    named = sk.fit(odd, "cell_type", max_epochs=1, recipe={"n_models": 1}, verbose=False, logger=False)
    explanation = sk.explain(named, odd)
    shown = [explanation, sk.explain_cell(named, odd, odd.obs_names[0]), sk.gene_coverage(odd, named)]
    shown = [explanation._repr_html_(), *map(repr, shown), str(shown[-1]), str(sk.DataModule(odd, None, "cell_type"))]
    for text in shown:
        assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_names_that_are_not_those_of_one_cell(model, cells):
    """An unknown name, and one of several cells, are refused."""
    twins = cells.copy()
    twins.obs_names = ["twin", "twin", *twins.obs_names[2:]]
    for ask in (lambda name: sk.explain_cell(model, twins, name), sk.explain(model, twins).cell):
        with pytest.raises(DataError, match="2 cells are called 'twin'"):
            ask("twin")
        with pytest.raises(KeyError, match="cell_0007"):
            ask("cell_00007")


def test_one_cell_and_a_file_are_read_as_all_cells(model, cells, tmp_path):
    """A single cell is explained as it is among the others, and a file that is left on disk as cells in memory."""
    shallow = cells.copy()
    sc.pp.normalize_total(shallow, target_sum=123)
    sc.pp.log1p(shallow)
    one, whole = sk.explain_cell(model, shallow, shallow.obs_names[3]), sk.explain(model, shallow)
    table = whole.cell(shallow.obs_names[3])
    np.testing.assert_allclose(one.genes["contribution"], table["contribution"].loc[one.genes.index], atol=1e-5)
    shallow.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    found = sk.explain(model, tmp_path / "cells.h5ad", batch_size=64, backed=True)
    np.testing.assert_allclose(found.cells.toarray(), whole.cells.toarray(), atol=1e-6)
    assert found.genes.index.equals(whole.genes.index) and found.cell_names.equals(whole.cell_names)
