"""The Cell Ontology: broader types, ids of labels, and how they travel from a reference to the labels of a query."""

import sys

import numpy as np
import pytest

import sims_kit as sk
from sims_kit.datasets.ontology import COLUMN, common_term, lineage, ontology_paths, read_terms
from sims_kit.errors import SettingError, UnknownNameError

CD4, CD8, T, B, NK = "CL:0000624", "CL:0000625", "CL:0000084", "CL:0000236", "CL:0000623"
ALPHA_BETA, LYMPHOCYTE, ALPHA = "CL:0000791", "CL:0000542", "CL:0000171"
PANCREAS = "epithelial cell of pancreas"


def test_table():
    """Every parent is a term of the table, every label is there once, and no term is a kind of itself."""
    terms = read_terms()
    assert len(terms) > 3000 and len({label for label, _ in terms.values()}) == len(terms)
    assert all(parent in terms for _, parents in terms.values() for parent in parents)
    assert all(term not in lineage(parent) for term, (_, parents) in terms.items() for parent in parents)
    assert terms[B][0] == "B cell" and T in lineage(CD4) and T not in lineage(B)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [([CD4, CD8], ALPHA_BETA), ([CD4, CD4], CD4), ([CD4, T], T), ([CD4, CD8, B], LYMPHOCYTE), ([CD4, ALPHA], None),
     ([], None), (["FBbt:1"], "FBbt:1"), (["FBbt:1", "FBbt:2"], None)],
)  # fmt: skip
def test_common_term(terms, expected):
    """The narrowest that all are; any cell is a "cell", which says nothing."""
    assert common_term(terms) == expected


@pytest.mark.parametrize(
    ("ids", "paths"),
    [
        ({"a": CD4, "b": CD8, "c": B}, [["a", "mature alpha-beta T cell", "lymphocyte"], None, ["c", "lymphocyte"]]),
        ({"a": CD4, "b": T, "c": ALPHA}, [["a", "b"], ["b"], ["c"]]),  # a class that is a parent keeps its name
        ({"a": CD4, "b": CD4}, [["a", "CD4-positive, alpha-beta T cell"], None, ["c"]]),
        ({"a": CD4, "b CELL": "", "c": ""}, [["a", "lymphocyte"], ["b CELL", "lymphocyte"], ["c"]]),  # by its label
        ({"a": CD4, "lymphocyte": ALPHA, "c": B}, [None, ["lymphocyte"], ["c", "lymphocyte (CL:0000542)"]]),
        ({"a": "FBbt:1", "b": "FBbt:1"}, [["a"], ["b"], ["c"]]),
        (  # of terms that hold as many classes, the one that says more is first
            {"acinar": "CL:0002064", "beta": "CL:0000169", "ductal": "CL:0002079"},
            [["acinar", "epithelial cell of exocrine pancreas", "secretory epithelial cell", PANCREAS], None, None],
        ),
    ],
)
def test_paths(ids, paths):
    """From narrow to broad, one name for the same classes; names are those of classes where these are the term."""
    found, named = ontology_paths([*ids] if len(ids) > 2 else [*ids, "c"], ids)
    assert [path for path, own in zip(found, paths, strict=True) if own] == [own for own in paths if own]
    assert all(named[name] == term for name, term in ids.items() if term)


@pytest.fixture(scope="module")
def typed(cells):
    """A model of cells whose labels have ids: of two terms for class_0, one for class_1, no valid one for class_2."""
    cells = cells.copy()
    cells.obs[COLUMN] = cells.obs["cell_type"].map({"class_0": CD4, "class_1": f" {NK}", "class_2": f"[{B}]"})
    cells.obs.loc[cells.obs_names[cells.obs["cell_type"] == "class_2"][0], COLUMN] = "plate:b"
    cells.obs.loc[cells.obs_names[cells.obs["cell_type"] == "class_0"][:5], COLUMN] = CD8
    return sk.fit(cells, "cell_type", max_epochs=8, verbose=False)


def test_ids_travel_with_the_model(typed, cells, tmp_path):
    """Labels carry the ids of the reference, by CELLxGENE's rules, also from a file; parents have their own."""
    assert typed.provenance["ontology_ids"] == {"class_0": ALPHA_BETA, "class_1": NK}
    model = sk.load_model(sk.save_model(typed, tmp_path / "typed.safetensors"))
    query = sk.annotate(cells, model, copy=True)
    expected = query.obs["sims_label"].map({"class_0": ALPHA_BETA, "class_1": NK, "class_2": "unknown"})
    assert query.obs["sims_ontology_term_id"].tolist() == expected.tolist()
    sk.annotate(query, model, hierarchy="ontology", threshold=0.999)
    assert {"lymphocyte", "Unknown"} < set(query.obs["sims_label"])
    pairs = set(zip(query.obs["sims_label"], query.obs["sims_ontology_term_id"], strict=True))
    assert {("lymphocyte", LYMPHOCYTE), ("Unknown", "unknown")} < pairs
    broader = query.obs["sims_label"] == "lymphocyte"
    summed = query.obsm["sims_probabilities"][:, :2].sum(axis=1)
    np.testing.assert_allclose(query.obs["sims_confidence"][broader], summed[broader], rtol=1e-5)


def test_without_ids(model, cells):
    """Nothing is added; parents cannot be taken from the ontology, and other words are no hierarchy."""
    query = sk.annotate(cells, model, copy=True)
    assert "ontology_ids" not in model.provenance and "sims_ontology_term_id" not in query.obs
    with pytest.raises(SettingError, match=f"'class_0', 'class_1'.*{COLUMN}"):
        sk.annotate(cells, model, hierarchy="ontology")
    for other in ("ontologie", True, ["ontology"]):
        with pytest.raises(UnknownNameError, match="'ontology'"):
            sk.annotate(cells, model, hierarchy=other)


def test_large_files_keep_ids(typed, cells, tmp_path, monkeypatch):
    """Of many cells only some columns are read: the ids are among them."""
    monkeypatch.setattr(sys.modules["sims_kit.datasets.read"], "NAMED", 10)
    cells = cells.copy()
    cells.obs[COLUMN] = CD4
    cells.write_h5ad(tmp_path / "cells.h5ad")
    module = sk.DataModule(tmp_path / "cells.h5ad", class_label="cell_type", backed=True, verbose=False)
    assert module.provenance["ontology_ids"] == dict.fromkeys(module.classes, CD4)
