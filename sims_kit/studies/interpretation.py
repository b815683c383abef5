"""Tests of explanations: deletion and insertion of the top genes, and sets of genes that should not matter."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control, hypergeom

from sims_kit.annotation import Model, predict
from sims_kit.cells.loaders import CellDataset
from sims_kit.cells.matrix import log_normalised
from sims_kit.datasets.simulate import STRESS_GENES
from sims_kit.errors import DataError, GeneError
from sims_kit.explanation import Explanation, explain
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar
from sims_kit.studies.methods import known
from sims_kit.text import examples

CELL_RANKINGS = ("SIMS masks", "SIMS contributions", "random", "random matched by expression")
NUMBERS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # of genes, about evenly spaced in their logarithm
BLOCK = 20  # genes of similar expression among which the scores of a cell are shuffled


def faithfulness(
    model: Model,
    cells: AnnData,
    methods: str | Iterable[str] | Mapping[str, sparse.csr_matrix] = CELL_RANKINGS,
    *,
    numbers: Sequence[int] = NUMBERS,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how predictions change when each cell loses its top genes (deletion), or all others (insertion).

    After Petsiuk et al. (BMVC 2018, arXiv:1806.07421). Genes are ranked for each cell among those that it expresses; a
    deleted gene is set to zero in the log-normalised values that the model reads. `methods` are ``"SIMS masks"``,
    ``"SIMS contributions"``, ``"random"`` and ``"random matched by expression"``, which shuffles contributions among
    each twenty genes of similar value in the cell; or scores by name (CSR, cells x genes of the model, with an entry
    for each expressed gene). `numbers` of genes are deleted, or kept, and last all. `seed` is of all random orders.

    Rows are by ``method``, ``curve`` and ``n_genes``: ``probability``, the mean probability of the class that is
    predicted for the whole cell, and ``unchanged``, the share of cells that keep that prediction.

    >>> curves = sk.studies.faithfulness(model, cells, ["SIMS contributions", "random"], numbers=(0, 1, 10, 100))
    >>> sns.relplot(curves, kind="line", x="n_genes", y="probability", hue="method", col="curve")
    """
    given = methods if isinstance(methods, Mapping) else {}
    names, model = list(given) or known(methods, CELL_RANKINGS), fitted_model(model)
    values = log_normalised(cells, model.genes, layer=layer).copy()  # may share its indices with the caller's matrix
    values.eliminate_zeros()
    rows = values.tocoo().row
    explanation = None if given or names == ["random"] else explain(model, cells, layer=layer)
    predicted = _probabilities(model, values).argmax(axis=1)
    most = int(np.diff(values.indptr).max())
    numbers = [*sorted({number for number in numbers if number < most}), most]
    found = []
    for name in progress_bar(names, desc="deleting genes", unit="method"):
        scores = sparse.csr_matrix(given[name] if given else _scores_per_cell(name, values, explanation, seed))
        if not (np.array_equal(scores.indptr, values.indptr) and np.array_equal(scores.indices, values.indices)):
            given, wanted = (f"{some.shape[0]:,} x {some.shape[1]:,} with {some.nnz:,}" for some in (scores, values))
            raise DataError(f"The scores of {name!r} are {given} entries; expected {wanted}, of what cells express.")
        order = np.lexsort((np.random.default_rng(seed).random(values.nnz), -scores.data, rows))
        ranks = np.empty(values.nnz, np.int32)  # 1 for the highest score of a cell, equal ones in random order
        ranks[order] = np.arange(values.nnz) - values.indptr[rows] + 1
        for curve in ("deletion", "insertion"):
            for number in numbers:
                left = values.copy()
                left.data *= (ranks <= number) == (curve == "insertion")
                left.eliminate_zeros()
                answers = _probabilities(model, left)
                own = answers[np.arange(len(answers)), predicted].mean(dtype=float)
                found.append((name, curve, number, own, (answers.argmax(axis=1) == predicted).mean()))
    return pd.DataFrame(found, columns=["method", "curve", "n_genes", "probability", "unchanged"])


def check_gene_set(
    explanation: Explanation, cells: AnnData, genes: Sequence[str] = STRESS_GENES, *, layer: str | None = None
) -> pd.DataFrame:
    """Test how many genes of a set are among the 100 most used genes of each class, against sets of equal expression.

    An exact test: each gene of the set is exchanged for a random one of similar mean log-normalised expression. A small
    p-value says that the model uses the genes more than chance, not that this is wrong: they may mark the class. Stress
    of cells in culture is a set that should not matter (Bhaduri et al. 2020, doi:10.1038/s41586-020-1962-0). Use is
    the mean size of the contribution in `explanation`, that of the same `cells` by `explain`; of fewer than 1,000 genes
    a tenth counts as most used. Genes of the set that the model does not know are left out.

    Rows are all cells (``"overall"``) and each class: ``contribution``, the set's share of all contributions, by size;
    ``share``, of the set among the most used genes; ``expected``, ``low`` and ``high``, mean and central 95 % of that
    for all sets of equal expression; ``p``, the share of these with as many or more, Benjamini-Hochberg adjusted.

    >>> check = sk.studies.check_gene_set(sk.explain(model, cells, groupby="cell_type"), cells)
    >>> check[check["p"] < 0.05]  # classes in which the model relies on stress genes
    """
    if list(cells.obs_names) != list(explanation.cell_names):
        raise DataError("The cells differ from those of the explanation; pass the AnnData that was explained.")
    names, labels = explanation.gene_names, explanation.labels
    members = np.flatnonzero(names.isin(genes))
    if not len(members):
        raise GeneError(f"None of the genes of the set ({examples(genes)}) is among the model's ({examples(names)}).")
    means = log_normalised(cells, list(names), layer=layer).mean(axis=0, dtype=float).A1
    n_bins = max(1, min(20, len(means) // 10))  # fewer than ten genes would be too few to exchange
    bins = np.array_split(np.argsort(means, kind="stable"), n_bins)
    sizes, rows, classes = abs(explanation.contributions), [], np.unique(labels)
    for chosen in [slice(None), *(labels == label for label in classes)]:
        own = sizes[chosen]
        total, first = own.sum(axis=0, dtype=float).A1, np.zeros(len(means), bool)
        order = np.argsort(-total, kind="stable")[: min(100, len(means) // 10)]
        first[order] = total[order] > 0  # unused genes have no rank
        chances, shares = np.ones(1), np.arange(len(members) + 1) / len(members)
        for bin_ in bins:
            n_exchanged = np.isin(members, bin_).sum()
            in_bin = hypergeom(len(bin_), first[bin_].sum(), n_exchanged).pmf(np.arange(n_exchanged + 1))
            chances = np.convolve(chances, in_bin)  # of 0, 1, ... first genes in a set
        low, high = shares[np.searchsorted(chances.cumsum(), [0.025, 0.975])]
        n_first, held = first[members].sum(), total[members].sum() / max(total.sum(), np.finfo(float).tiny)
        p = min(1.0, chances[n_first:].sum())
        rows.append((own.shape[0], held, n_first / len(members), chances @ shares, low, high, p))
    table = pd.DataFrame(rows, pd.Index(["overall", *classes], name="class"))
    table.columns = ["n_cells", "contribution", "share", "expected", "low", "high", "p"]
    table.iloc[1:, -1] = false_discovery_control(table["p"].iloc[1:])
    return table


def _scores_per_cell(method: str, values: sparse.csr_matrix, explanation, seed: int) -> sparse.csr_matrix:
    """A score for each entry of `values`."""
    random, rows, scores = np.random.default_rng(seed), values.tocoo().row, values.copy()
    if method == "random":
        scores.data = random.random(values.nnz)
        return scores
    table = explanation.cells if method == "SIMS masks" else explanation.contributions
    scores.data = np.asarray(table[rows, values.indices]).ravel()
    if method == "random matched by expression":
        order = np.lexsort((random.random(values.nnz), values.data, rows))
        places, sizes = np.arange(values.nnz) - values.indptr[rows], np.diff(values.indptr)
        blocks = np.minimum(places // BLOCK, np.maximum(sizes // BLOCK - 1, 0)[rows])  # the last one takes the rest
        scores.data[order] = scores.data[order[np.lexsort((random.random(values.nnz), blocks, rows))]]
    return scores


def _probabilities(model: SIMSClassifier, values: sparse.csr_matrix) -> np.ndarray:
    """Class probabilities of values that are model input already."""
    dataset, starts = CellDataset([]), range(0, values.shape[0], 512)
    batches = (dataset.batch(values[start : start + 512], []) for start in starts)
    return predict(lambda cells: [model.probabilities(cells)], model, batches)[0].numpy()
