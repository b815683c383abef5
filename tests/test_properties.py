"""Properties of any input, against dense references: alignment and splits."""

import numpy as np
import scipy.sparse as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sims_kit.cells.genes import GeneAlignment
from sims_kit.cells.splits import stratified_split

settings.register_profile("sims_kit", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("sims_kit")

GENES = st.sampled_from(["ACTB", "actb", "ENSG00000000001", "ENSG00000000001.5", "ENSG00000000002.1", "7157", ""])
LABELS = st.sampled_from(["B", "T", "NK", "1", "1.0", "é", " T"])


@st.composite
def counts(draw):
    """A small matrix of counts, many of them zero; CSR float32."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    values = st.integers(0, 2**20) if draw(st.booleans()) else st.sampled_from([0, 0, 0, 1, 2, 1000])
    return sp.csr_matrix(draw(arrays(np.float32, shape, elements=values.map(np.float32))))


@given(counts(), st.data())
def test_alignment(cells, data):
    """Columns of one gene are summed, others dropped, absent ones zero, Ensembl versions set aside; order is free."""
    n_genes = cells.shape[1]
    query = data.draw(st.lists(GENES, min_size=n_genes, max_size=n_genes))
    vocabulary = data.draw(st.lists(GENES, min_size=1, unique=True))
    expected = np.zeros((cells.shape[0], len(vocabulary)), np.float64)
    plain = [gene.split(".")[0] if gene.startswith("ENSG") else gene for gene in vocabulary]
    for column, gene in enumerate(query):
        bare = gene.split(".")[0] if gene.startswith("ENSG") else gene
        place = vocabulary.index(gene) if gene in vocabulary else plain.index(bare) if bare in plain else None
        if place is not None:
            expected[:, place] += cells[:, [column]].toarray()[:, 0]
    before, alignment = cells.copy(), GeneAlignment(query, vocabulary)
    np.testing.assert_allclose(alignment.apply(cells).toarray(), expected, rtol=1e-6)
    assert (cells != before).nnz == 0
    assert alignment.coverage.n_matched + len(alignment.coverage.missing) == len(vocabulary)
    order = data.draw(st.permutations(range(n_genes)))
    turned = GeneAlignment([query[i] for i in order], vocabulary).apply(cells[:, order])
    np.testing.assert_allclose(turned.toarray(), expected, rtol=1e-6)


@given(
    st.lists(st.none() | LABELS, min_size=1, max_size=60),
    st.sampled_from([0, 0.1, 0.25, 0.4]),
    st.sampled_from([0, 0.1, 0.33, 0.5]),
    st.integers(0, 2**32 - 1),
)
def test_splits(labels, validation, test, seed):
    """Every labelled cell is in one part; each class trains, and has its share, rounded, in parts that it fills."""
    assume(any(label is not None for label in labels))
    split = stratified_split(labels, validation, test, seed)
    everywhere = np.concatenate(split)
    assert sorted(everywhere) == [i for i, label in enumerate(labels) if label is not None]
    assert all((np.diff(part) > 0).all() for part in split)
    array = np.array(labels, dtype=object)
    for label in set(labels) - {None}:
        n_cells = (array == label).sum()
        in_train, in_validation, in_test = ((array[part] == label).sum() for part in split)
        assert in_train >= 1
        wanted = [max(1, int(n_cells * share + 0.5)) if share else 0 for share in (validation, test)]
        if sum(wanted) < n_cells:
            assert [in_validation, in_test] == wanted
        if n_cells >= 3:
            assert (in_validation > 0) == (validation > 0) and (in_test > 0) == (test > 0)
