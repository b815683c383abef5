"""Comparison: every method on the same folds, scores with intervals, differences paired by cell (thesis table 0.2)."""

import os
from collections.abc import Sequence

import pandas as pd
from anndata import AnnData
from sklearn.model_selection import GroupKFold, StratifiedKFold

from sims_kit.estimator import as_cells, obs_values
from sims_kit.studies.resampling import differences, intervals, resample, score_labelled
from sims_kit.studies.runs import Methods, Tables, plain_cells, run_all


def compare(
    methods: Methods,
    X,
    y,
    groups: Sequence | str | None = None,
    *,
    cv=5,
    seed: int = 0,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Tables:
    """Compare methods on the same folds, on cells that they have not seen (Abdelaal et al., Genome Biology 2019).

    `X` is cells x genes, counts or log-normalised; `y` and `groups` are the label and the donor or sample of each cell,
    with AnnData also the `obs` columns of these. No group is in training and test of one fold. `cv` is the number of
    folds, stratified by label or made of groups, or a splitter of scikit-learn; `seed` is of folds and methods. Other
    arguments are as in `ablation`.

    Tables are ``scores`` of the predictions of all folds together: ``accuracy``, ``macro_f1`` and ``median_f1`` (0 to
    1) of the cells with a label, and ``unlabelled_percent``; mean CPU seconds of a fold. ``differences``, the first
    method minus each other one, paired by cell. ``predictions`` by ``method``, ``fold`` and ``cell`` (position in `X`):
    ``class``, ``predicted``, and ``confidence``, the largest probability (NaN where the method has none).

    >>> found = compare(["SIMS, one network", "linear SVM"], cells, "cell_type", groups="donor")
    >>> found.scores[["method", "accuracy", "accuracy_low", "accuracy_high"]]
    """
    given = as_cells(X)
    obs = pd.DataFrame({"label": obs_values(given, y)}, index=given.obs_names)
    cells = plain_cells(AnnData(given.X, obs=obs, var=given.var), "label")
    if groups is not None:
        cells.obs["sample"] = obs_values(given, groups)[cells.obs_names.astype(int)].astype(str)
    if isinstance(cv, int):
        cv = StratifiedKFold(cv, shuffle=True, random_state=seed) if groups is None else GroupKFold(cv)
    folds = list(cv.split(cells.obs, cells.obs["label"], cells.obs.get("sample")))

    def parts(fold: int, seed: int) -> tuple:
        training, asked = folds[fold]
        return cells[training], {"": cells[asked]}

    cases = [{"fold": fold} for fold in range(len(folds))]
    kept = dict(data=[cells], settings=folds, folder=folder, n_jobs=n_jobs, desc="comparison")
    table, _ = run_all(parts, methods, cases, seed, confidence=True, **kept)
    drawn = resample(table, ["method"], n_bootstrap, score=score_labelled)
    (_, first), *others = drawn.items()
    scores = intervals(drawn, ["method"])
    scores.insert(1, "n_cells", table["cell"].nunique())
    scores.insert(2, "n_classes", table["class"].nunique())
    seconds = table.groupby(["method", "fold"])[["fit_cpu_seconds", "predict_cpu_seconds"]].first()
    return Tables(
        scores=scores.merge(seconds.groupby("method").mean().reset_index()),
        differences=differences({key: (first, second) for key, second in others}, ["method"], list(first)),
        predictions=table[["method", "fold", "cell", "class", "predicted", "confidence"]],
    )
