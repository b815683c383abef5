"""SIMS as a scikit-learn classifier: `fit` and `annotate` behind ``fit(X, y)`` and ``predict_proba(X)``."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, column_or_1d

from sims_kit.annotation import batches_for, predict_logits
from sims_kit.cells.matrix import as_csr
from sims_kit.errors import LabelError, UnknownNameError
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import Recipe
from sims_kit.text import class_labels
from sims_kit.training import fit


class SIMS(ClassifierMixin, BaseEstimator):
    """SIMS in pipelines, cross-validation and grid searches of scikit-learn.

    `X` holds counts or log-normalised values, cells x genes: a sparse or dense array, a DataFrame with a column for
    each gene, or AnnData. Genes of a DataFrame or AnnData are matched by name when cells are predicted. Sparse values
    stay sparse. What `sims_kit.fit` refuses is refused here, in its words.

    Settings are those of `sims_kit.fit`; `pretrained` is an encoder to start from, and `validation`, the share of the
    cells that calibrate confidence, may be 0.

    >>> from sklearn.model_selection import GroupKFold, cross_val_predict
    >>> labels = cross_val_predict(SIMS(), X, y, groups=donors, cv=GroupKFold(4))
    >>> classifier = SIMS({"n_models": 1}, max_epochs=20).fit(reference, "cell_type")
    >>> classifier.predict_proba(query)  # cells x classes, in the order of classifier.classes_
    >>> explain(classifier, query)  # or classifier.model_, the SIMSClassifier; so do annotate and save_model
    """

    def __init__(
        self,
        recipe: str | dict | Recipe = "default",
        *,
        seed: int = 0,
        validation: float = 0.1,
        max_epochs: int | None = None,
        pretrained: MaskedPretraining | None = None,
        verbose: bool = False,
    ):
        self.recipe, self.seed, self.validation = recipe, seed, validation
        self.max_epochs, self.pretrained, self.verbose = max_epochs, pretrained, verbose

    def fit(self, X, y, groups: Sequence | str | None = None) -> "SIMS":
        """Train on labelled cells; `y` and `groups` (donors, samples), (cells,), may be names of `obs` columns."""
        cells = as_cells(X)
        y, groups = obs_values(cells, y), None if groups is None else obs_values(cells, groups)
        check_consistent_length(cells, y, groups)
        obs = pd.DataFrame({"label": class_labels(y, "y").to_numpy(), "group": groups}, index=cells.obs_names)
        if n_missing := obs["label"].isna().sum():
            raise LabelError(f"{n_missing:,} of {len(obs):,} cells have no label. Leave them out.")
        check_classification_targets(y)
        self.classes_, self.n_features_in_ = np.unique(y), cells.n_vars
        vars(self).pop("feature_names_in_", None)
        if isinstance(X, AnnData) or list(getattr(X, "columns", [])) == list(cells.var_names):
            self.feature_names_in_ = cells.var_names.to_numpy(dtype=object)
        self._genes, column = cells.var_names, None if groups is None else "group"
        self.model_ = fit(AnnData(cells.X, obs=obs, var=cells.var), "label", groups=column, test=0, **self.get_params())
        self._columns = pd.Index(self.model_.classes).get_indexer(class_labels(self.classes_, "y"))
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Probabilities, (cells, classes) float32, on the scale that validation cells calibrated."""
        check_is_fitted(self)
        batches, *_ = batches_for(self.model_, as_cells(X, self._genes))
        return predict_logits(self.model_, batches)[0].softmax(dim=1).numpy()[:, self._columns]

    def predict(self, X) -> np.ndarray:
        """The most probable class of each cell, (cells,)."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.positive_only = True
        return tags


def as_cells(X, genes: Sequence[str] | None = None) -> AnnData:
    """Cells x genes as AnnData; columns without names get those in `genes`, or are named by their position."""
    if isinstance(X, AnnData):
        return X
    if isinstance(X, pd.DataFrame) and all(isinstance(name, str) for name in X.columns):
        matrix, genes = X.sparse.to_coo() if hasattr(X, "sparse") else X.to_numpy(), X.columns
    else:
        matrix = check_array(X, accept_sparse=("csr", "csc"), dtype="numeric", ensure_all_finite=False)
        genes = [f"x{i}" for i in range(matrix.shape[1])] if genes is None else genes
        if len(genes) != matrix.shape[1]:
            raise ValueError(f"X has {matrix.shape[1]} features, but SIMS is expecting {len(genes)} features as input.")
    return AnnData(as_csr(matrix), var=pd.DataFrame(index=pd.Index(genes, dtype=object)))


def obs_values(cells: AnnData, values) -> np.ndarray:
    """(cells,) values, where a name stands for a column of `obs`."""
    if isinstance(values, str):
        if values not in cells.obs:
            raise UnknownNameError("obs column", values, cells.obs.columns)
        values = cells.obs[values]
    return column_or_1d(values, warn=True)
