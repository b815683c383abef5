"""What masked pretraining is worth: few labels, short training, another tissue (thesis sections 0.2.4 and 0.4).

The thesis has it as future work that "can reduce test error, training time, and increase accuracy".
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from anndata import AnnData
from scipy import stats

from sims_kit import metrics
from sims_kit.annotation import predict_probabilities
from sims_kit.cells.loaders import query_batches
from sims_kit.cells.matrix import Expression
from sims_kit.cells.splits import Split, check_shares, stratified_split
from sims_kit.datasets import read
from sims_kit.errors import LabelError, SettingError
from sims_kit.model.file import load_model, save_model
from sims_kit.model.pretraining import MaskedPretraining
from sims_kit.model.recipe import Recipe, get_recipe
from sims_kit.pretraining import pretrain
from sims_kit.studies.runs import as_seeds, fingerprint, plain_cells
from sims_kit.studies.sweep import sweep
from sims_kit.studies.worker import cpu_seconds
from sims_kit.training import fit

RANDOM, OWN, SOURCE, BOTH = "random weights", "own cells", "source", "source and own cells"
SCORES = {"accuracy": "accuracy_micro", "macro_f1": "f1_macro", "median_f1": "median_f1"}
RUN = ["start", "proportion", "length", "seed"]
N_MEASURED = 20  # times in a training that the test cells are asked
TOLERANCE = 0.02  # points of accuracy: as close as the thesis asks for in section 0.3.5


@dataclass(frozen=True)
class PretrainingStudy:
    """What pretraining changed, as tables.

    Attributes
    ----------
    scores
        One row per ``start``, ``proportion`` of labels, and ``length`` of training, as a share of the recipe's:
        ``n_labelled`` cells, ``n_seeds``, and ``steps`` of training; on the fixed test cells the mean over the seeds of
        ``accuracy``, ``macro_f1``, ``median_f1`` (0 to 1), each with ``_low`` and ``_high``, its 95 % interval
        (Student's t over seeds; NaN for one).
    gains
        What each pretrained start gains on random weights: the same columns, and ``score``, ``gain`` with ``low`` and
        ``high``, paired by seed; ``speedup``, how many times fewer steps it takes to come within 0.02 of the accuracy
        with which random weights end, the geometric mean over seeds in which it does (``n_reached``).
    runs
        One row per run: as `scores`, with ``seed``, ``steps_to_end`` (within 0.02 of its own end) and
        ``steps_to_random`` (of that of random weights; NaN if never), ``cpu_seconds`` of its training; ``n_pretrained``
        cells and ``explained``, the share of the variance of hidden genes that the encoder explains.
    curves
        One row per run and moment: ``step``, accuracy and F1 of the test cells, which are measured and decide nothing;
        and what is known of the run. `summarised` makes the other tables of these rows.
    """

    scores: pd.DataFrame
    gains: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame


def pretraining(
    cells: AnnData,
    label: str,
    *,
    source: AnnData | str | os.PathLike | Sequence | None = None,
    proportions: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    lengths: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0, 1, 2),
    recipe: str | Recipe = "default",
    pretrain_settings: Mapping[str, Any] | None = None,
    test: float = 0.2,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
) -> PretrainingStudy:
    """Train on few labels with and without pretraining, and test on the same cells.

    The test cells are set aside once; neither training nor pretraining sees them. Training cells keep their label in
    the given proportions, class by class, at least one per class; all labelled cells train, none validates. For
    one seed all starts learn from the same labels and in the same order.

    Parameters
    ----------
    cells
        Cells x genes, counts or log-normalised.
    label
        The `obs` column with the labels; cells without one are left out.
    source
        Cells of another tissue, whose labels, if any, are not looked at: AnnData, a path, or a list of either. The
        starts are then ``"random weights"``, ``"source"`` and ``"source and own cells"``; without a source,
        ``"random weights"`` and ``"own cells"``. Own cells are the training cells without their labels.
    proportions
        Of the training cells, above 0 to 1.
    lengths
        Of the training, as shares of the recipe's epochs, above 0 to 1.
    seeds
        Each decides which cells keep labels, the weights, and what is hidden.
    recipe
        Of both trainings.
    pretrain_settings
        Further arguments of `pretrain`, such as ``{"mask_share": 0.3}``.
    test
        Share of all cells, stratified by class.
    folder
        Where runs and encoders are kept, so that a restart goes on; None keeps nothing.
    n_jobs, part
        Processes at the same time; ``(i, n)`` for the i-th job of an array of n. See `sims_kit.studies.sweep.sweep`.

    Returns
    -------
    PretrainingStudy
        `sims_kit.plotting.label_efficiency` draws its `scores`, `sims_kit.plotting.learning_speed` its `curves`.

    Raises
    ------
    UnknownNameError
        If there is no such column or recipe.
    SettingError
        If a proportion, a length, a seed or `test` is out of range.
    LabelError
        If there are fewer than two classes.
    """
    for name, values in (("proportions", proportions), ("lengths", lengths)):
        if not len(values) or not all(0 < value <= 1 for value in values):
            raise SettingError(f"{name}={list(values)}: give one or more numbers above 0, up to 1.")
    check_shares(0, test)
    cells, recipe, seeds = plain_cells(cells, label), get_recipe(recipe), as_seeds(seeds)
    if cells.obs["label"].nunique() < 2:
        raise LabelError(f"Column {label!r} has one class; a classifier needs two or more. Check the label column.")
    split = stratified_split(cells.obs["label"], validation=0, test=test, seed=0)
    study = _Study(cells, split, source, recipe, dict(pretrain_settings or {}))
    starts = (RANDOM, OWN) if source is None else (RANDOM, SOURCE, BOTH)
    runs = [
        dict(zip(RUN, (start, float(proportion), float(length), seed), strict=True))
        for seed in seeds
        for proportion in proportions
        for length in lengths
        for start in starts
    ]
    key = fingerprint([cells, *map(_plain, study.sources)], recipe, study.settings, test)
    with tempfile.TemporaryDirectory() as passing:
        run = partial(_run, study=study, encoders=Path(passing if folder is None else folder), key=key)
        rows = sweep(runs, run, folder, fingerprint=key, n_jobs=n_jobs, part=part, desc="pretraining")
    return summarised(rows)


def summarised(rows: pd.DataFrame) -> PretrainingStudy:
    """All tables, from the rows of all runs, or of as many as there are."""
    runs = rows.groupby(RUN, sort=False).last().reset_index().rename(columns={"step": "steps"})
    runs["steps_to_end"] = [_reached(rows, run, run["accuracy"]) for _, run in runs.iterrows()]
    own = runs[runs["start"] == RANDOM].set_index(RUN[1:])["accuracy"]
    goals = own.reindex(pd.MultiIndex.from_frame(runs[RUN[1:]]))
    runs["steps_to_random"] = [_reached(rows, run, goal) for (_, run), goal in zip(runs.iterrows(), goals, strict=True)]
    groups = runs.groupby(RUN[:-1], sort=False)
    scores = groups.agg(n_labelled=("n_labelled", "first"), n_seeds=("seed", "size"), steps=("steps", "first"))
    for score in SCORES:
        spread = groups[score].apply(_mean_interval).unstack()
        scores[[score, f"{score}_low", f"{score}_high"]] = spread[["mean", "low", "high"]]
    return PretrainingStudy(scores.reset_index(), _gains(runs), runs, rows)


@dataclass(frozen=True)
class _Study:
    """What all runs share."""

    cells: AnnData
    split: Split
    source: Any
    recipe: Recipe
    settings: Mapping[str, Any]

    @property
    def sources(self) -> list:
        """The source, as a list."""
        if self.source is None:
            return []
        return list(self.source) if isinstance(self.source, list | tuple) else [self.source]

    def unlabelled(self, start: str) -> list:
        """The cells that an encoder is pretrained on."""
        own = self.cells[self.split.train]
        return {OWN: [own], SOURCE: self.sources, BOTH: [*self.sources, own]}[start]

    def few_labels(self, proportion: float, seed: int) -> AnnData:
        """The training cells that keep their label."""
        training = self.cells[self.split.train]
        if proportion == 1:
            return training.copy()
        kept = stratified_split(training.obs["label"], validation=0, test=1 - proportion, seed=seed).train
        return training[kept].copy()


class _Curve(pl.Callback):
    """Asks the test cells some times in a training."""

    def __init__(self, test: AnnData):
        self.test, self.rows = test, []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, unless it was done a moment ago; the end is measured when training is over."""
        every = max(1, trainer.max_epochs // N_MEASURED)
        if (trainer.current_epoch + 1) % every == 0 and trainer.current_epoch + 1 < trainer.max_epochs:
            self.measure(pl_module.eval(), trainer.global_step)
            pl_module.train()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how many steps there were."""
        self.n_steps = trainer.global_step

    def measure(self, model: pl.LightningModule, step: int) -> None:
        """Score the test cells."""
        batches, *_ = query_batches(self.test, model.genes)
        called = np.asarray(model.classes)[predict_probabilities(model, batches).argmax(1)]
        found = metrics.score(self.test.obs["label"].to_numpy(), called)
        self.rows.append({"step": step, **{name: found[key] for name, key in SCORES.items()}})


def _run(
    start: str, proportion: float, length: float, seed: int, *, study: _Study, encoders: Path, key: str
) -> pd.DataFrame:
    """One row for each time that the test cells are asked."""
    pretrained = None if start == RANDOM else _encoder(start, seed, study, encoders, key)
    labelled = study.few_labels(proportion, seed)
    _, epochs = study.recipe.schedule(labelled.n_obs)
    curve = _Curve(study.cells[study.split.test].copy())
    started = cpu_seconds()
    model = fit(
        labelled,
        "label",
        recipe=study.recipe,
        seed=seed,
        pretrained=pretrained,
        validation=0,
        test=0,
        max_epochs=max(1, round(length * epochs)),
        callbacks=curve,
        **_QUIET,
    )
    seconds = cpu_seconds() - started
    curve.measure(model, curve.n_steps)
    facts = {"n_labelled": labelled.n_obs, "cpu_seconds": round(seconds, 2), "n_pretrained": 0, "explained": np.nan}
    if pretrained is not None:
        facts["n_pretrained"] = sum(pretrained.provenance["cells"].values())
        facts["explained"] = pretrained.provenance["explained"]
    return pd.DataFrame(curve.rows).assign(**facts)


def _encoder(start: str, seed: int, study: _Study, folder: Path, key: str) -> MaskedPretraining:
    """From the folder; else it is pretrained and put there."""
    path = folder / f"encoder-{start.replace(' ', '-')}-{seed}-{key}.safetensors"
    if not path.is_file():
        made = pretrain(study.unlabelled(start), recipe=study.recipe, seed=seed, **_QUIET, **study.settings)
        made.provenance["explained"] = float(made.history["val_explained"].iloc[-1])
        save_model(made, path)
    return load_model(path)


_QUIET = dict(verbose=False)


def _plain(source: AnnData | str | os.PathLike) -> AnnData:
    """Matrix and genes of a source, for a fingerprint."""
    expression = Expression(source if isinstance(source, AnnData) else read(source))
    return AnnData(expression.matrix, var=pd.DataFrame(index=expression.var.index.astype(str)))


def _reached(curves: pd.DataFrame, run: pd.Series, goal: float) -> float:
    """The first measured step of a run that is no further below the goal than the tolerance; NaN if there is none."""
    own = curves[(curves[RUN] == run[RUN]).all(axis=1) & (curves["accuracy"] >= goal - TOLERANCE)]
    return float(own["step"].min())


def _gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Each start less random weights, by seed."""
    rows, keys = [], RUN[1:]
    own = runs[runs["start"] == RANDOM].set_index(keys)
    for start, table in runs[runs["start"] != RANDOM].groupby("start", sort=False):
        paired = table.set_index(keys).join(own[[*SCORES, "steps_to_random"]].add_suffix("_random"), how="inner")
        for (proportion, length), pairs in paired.groupby(keys[:-1], sort=False):
            ratio = (pairs["steps_to_random_random"] / pairs["steps_to_random"]).dropna()
            speed = {"speedup": np.exp(np.log(ratio).mean()), "n_reached": len(ratio), "n_seeds": len(pairs)}
            named = {
                "start": start,
                "proportion": proportion,
                "length": length,
                "n_labelled": pairs["n_labelled"].iloc[0],
            }
            for score in SCORES:
                gain = _mean_interval(pairs[score] - pairs[f"{score}_random"])
                rows.append(
                    named | {"score": score, "gain": gain["mean"], "low": gain["low"], "high": gain["high"]} | speed
                )
    return pd.DataFrame(rows)


def _mean_interval(values: pd.Series) -> pd.Series:
    """Mean and 95 % interval by Student's t."""
    mean, half = values.mean(), np.nan
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return pd.Series({"mean": mean, "low": mean - half, "high": mean + half})
