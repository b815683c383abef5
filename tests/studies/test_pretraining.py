"""The study of pretraining: what is compared is comparable, the tables follow from the runs, a restart goes on."""

import importlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import sims_kit as sk
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.studies import pretraining as study_of
from sims_kit.studies.pretraining import RUN, summarised

MODULE = importlib.import_module("sims_kit.studies.pretraining")  # the package has its function by that name
RECIPE = sk.Recipe(
    network={"n_models": 1, "n_d": 8, "n_a": 8, "n_steps": 1, "n_shared": 1, "n_independent": 0, "fixed_scale": True},
    best_epoch=False,
    max_epochs=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs of the module's study are kept."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def arguments(make_cells):
    """Those of a small study with a source whose genes differ."""
    source = make_cells(n_cells=80, seed=1)[:, 5:].copy()
    del source.obs["cell_type"]
    options = dict(proportions=(0.2, 1.0), lengths=(0.4, 1.0), seeds=(0, 1), recipe=RECIPE)
    return (make_cells(n_cells=150, seed=2), "cell_type"), dict(source=source, **options)


@pytest.fixture(scope="module")
def study(arguments, folder):
    """A small study, stored."""
    cells, options = arguments
    return study_of(*cells, folder=folder, **options)


def test_every_start_at_every_point(study):
    """One row for each start, proportion, length and seed; the same labelled cells for all starts."""
    assert list(study.runs["start"].unique()) == ["random weights", "source", "source and own cells"]
    assert len(study.runs) == 3 * 2 * 2 * 2 and not study.runs.duplicated(RUN).any()
    assert (study.runs.groupby(["proportion", "seed"])["n_labelled"].nunique() == 1).all()
    assert study.runs.groupby("proportion")["n_labelled"].first().to_dict() == {0.2: 24, 1.0: 120}
    assert study.runs.groupby("start")["n_pretrained"].first().to_dict() == {
        "random weights": 0,
        "source": 80,
        "source and own cells": 200,
    }
    steps = study.runs.groupby("length")["steps"].max()
    assert steps[0.4] < steps[1.0]
    assert study.runs["explained"].isna().eq(study.runs["start"] == "random weights").all()


def test_tables_follow_from_the_runs(study):
    """Means, gains and intervals are those of scipy's paired t-test; the end of a curve is the run's score."""
    runs = study.runs.set_index(RUN)["accuracy"].sort_index()
    for _, row in study.gains[study.gains["score"] == "accuracy"].iterrows():
        first, second = (runs[start, row["proportion"], row["length"]] for start in (row["start"], "random weights"))
        assert row["gain"] == pytest.approx((first - second).mean())
        if (first - second).std() > 0:
            interval = stats.ttest_rel(first, second).confidence_interval(0.95)
            np.testing.assert_allclose((row["low"], row["high"]), interval)
    means = study.scores.set_index(RUN[:-1])["accuracy"]
    pd.testing.assert_series_equal(runs.groupby(RUN[:-1]).mean().sort_index(), means.sort_index(), check_names=False)
    ends = study.curves.groupby(RUN)["accuracy"].last()
    pd.testing.assert_series_equal(ends.sort_index(), runs.sort_index(), check_names=False)


def test_a_restart_runs_nothing_again(study, arguments, folder, monkeypatch):
    """With the same cells and settings, every run is read; with another setting it would be run."""
    cells, options = arguments
    monkeypatch.setattr(MODULE, "fit", None)
    again = study_of(*cells, folder=folder, **options)
    pd.testing.assert_frame_equal(again.runs, study.runs)
    with pytest.raises(TypeError):
        study_of(*cells, folder=folder, **options, pretrain_settings={"mask_share": 0.4})
    assert len(list(folder.glob("encoder-*.safetensors"))) == 2 * 2  # each start and seed once


def test_test_cells_are_never_learned_from(make_cells, monkeypatch):
    """Neither training nor pretraining is given a test cell, and the labelled cells are the training cells' own."""
    seen = {"fit": [], "pretrain": []}

    class Stop(Exception):
        pass

    def spy(name, real):
        def call(data, *rest, **settings):
            for part in data if isinstance(data, list) else [data]:
                seen[name] += list(part.obs_names)
            return real(data, *rest, **settings)

        return call

    for name in seen:
        monkeypatch.setattr(MODULE, name, spy(name, getattr(sk, name)))
    cells = make_cells(n_cells=100)
    study_of(cells, "cell_type", proportions=(0.5,), seeds=(0,), recipe=RECIPE)
    test = set(map(str, sk.stratified_split(cells.obs["cell_type"], 0, 0.2, 0).test))  # cells are named by number
    assert len(test) == 20 and not test & set(seen["fit"]) and not test & set(seen["pretrain"])
    assert len(seen["pretrain"]) == 80 and set(seen["fit"]) <= set(seen["pretrain"])


def test_steps_to_a_goal():
    """Convergence is the first measured step within 0.02 of the end, its own or that of random weights."""
    rows = [
        {"start": start, "proportion": 0.1, "length": 1.0, "seed": seed, "n_labelled": 10, "step": step}
        | {"accuracy": accuracy, "macro_f1": accuracy, "median_f1": accuracy}
        for seed in (0, 1)
        for start, values in (("random weights", (0.2, 0.5, 0.69, 0.7)), ("own cells", (0.4, 0.69, 0.75, 0.8)))
        for step, accuracy in zip((10, 20, 30, 40), values, strict=True)
    ]
    study = summarised(pd.DataFrame(rows))
    runs = study.runs[study.runs["seed"] == 0].set_index("start")
    assert runs["steps_to_end"].to_dict() == {"random weights": 30, "own cells": 40}
    assert runs["steps_to_random"].to_dict() == {"random weights": 30, "own cells": 20}
    assert study.gains["speedup"].tolist() == pytest.approx([1.5] * 3)
    assert study.gains["gain"].tolist() == pytest.approx([0.1] * 3)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"proportions": (0, 1)}, SettingError, "proportions="),
        ({"lengths": ()}, SettingError, "lengths="),
        ({"test": 1.0}, SettingError, "test="),
        ({"label": "cell_typ"}, UnknownNameError, "cell_type"),
        ({"label": "one"}, LabelError, "one class"),
        ({"seeds": (0, 0)}, SettingError, "seeds="),
        ({"recipe": "no such"}, UnknownNameError, "no such"),
    ],
)
def test_bad_settings_are_refused(make_cells, settings, error, words):
    """Before anything is trained."""
    cells = make_cells()
    cells.obs["one"] = "same"
    with pytest.raises(error, match=words):
        study_of(cells, **{"label": "cell_type", **settings})
