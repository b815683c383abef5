"""The benchmark: pooled folds, a process for each run, rows on disk, and a restart that goes on."""

import contextlib
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from sims_kit import metrics, studies
from sims_kit.errors import DataError, SettingError, UnknownNameError
from sims_kit.studies import store, worker
from sims_kit.studies.adaptor import log_normalised
from sims_kit.studies.store import Job, Processes, new_row
from sims_kit.studies.tasks import Folds, as_task

PEERS = """
import os, subprocess, sys, time
import numpy as np
from sims_kit.errors import PeerError
from sims_kit.studies import Prediction

class Constant:
    packages, settings = (), ""
    def __init__(self, name="constant", settings=""):
        self.name, self.settings = name, settings
    def fit(self, reference, label, *, sample=None, seed=0):
        self.label = reference.obs[label].iloc[0]
    def predict(self, query):
        assert "label" not in query.obs
        return Prediction(np.full(query.n_obs, self.label), None, [self.label])

class Cannot(Constant):
    def fit(self, reference, label, *, sample=None, seed=0):
        raise PeerError("these cells are not for me")

class Breaks(Constant):
    def predict(self, query):
        raise ZeroDivisionError("in the middle")

class Crashes(Constant):
    def fit(self, reference, label, *, sample=None, seed=0):
        print("last words", flush=True)
        os._exit(7)

class Hangs(Constant):
    def fit(self, reference, label, *, sample=None, seed=0):
        subprocess.run([sys.executable, "-c", f"import time; open({self.settings!r}, 'w').close(); time.sleep(600)"])
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A module of peers that behave badly, which worker processes can import too."""
    (tmp_path / "bad_peers.py").write_text(PEERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "bad_peers", raising=False)
    import bad_peers

    return bad_peers


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs jobs without starting processes; gives the list of those that were run."""
    ran = []

    def wait(self, folder):
        result = worker.run(folder)
        (folder / "log.txt").write_text("log")
        ran.append(result["status"])
        return result

    monkeypatch.setattr(Processes, "_wait", wait)
    return ran


def run(cells, methods, folder, **settings):
    """A benchmark of two folds with few bootstrap samples."""
    options = dict(label="cell_type", folder=folder, n_folds=2, n_bootstrap=20, against="linear SVM")
    return studies.benchmark(cells, methods, **{**options, **settings})


def test_pooled_folds_are_cross_val_predict(make_cells, tmp_path, in_this_process):
    """The pooled predictions and their scores are those of scikit-learn's cross_val_predict on the same folds."""
    cells = make_cells(n_cells=150)
    cells.obs.iloc[:30, 0] = np.roll(cells.obs["cell_type"].iloc[:30], 1)  # so that some are wrong
    found = run(cells, ["logistic regression", "linear SVM"], tmp_path, n_folds=5)
    values, folds = log_normalised(cells, list(cells.var_names)), StratifiedKFold(5, shuffle=True, random_state=0)
    truth = cells.obs["cell_type"].to_numpy()
    model = LogisticRegression(C=1, max_iter=1000)
    oracle = cross_val_predict(model, values, truth, cv=folds)
    chances = cross_val_predict(model, values, truth, cv=folds, method="predict_proba")
    expected = metrics.score(truth, oracle, chances, sorted(set(truth)))
    row = found.scores.set_index("method").loc["logistic regression"]
    assert 0.5 < row["accuracy"] < 1
    for name, theirs in {"accuracy": "accuracy_micro", "macro_f1": "f1_macro", "median_f1": "median_f1"}.items():
        assert row[name] == pytest.approx(expected[theirs]) and row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["calibration_error"] == pytest.approx(expected["calibration_error"], abs=2e-3)  # 4 decimals are kept
    stored = store.Store(tmp_path).predictions("cells", "logistic regression")
    np.testing.assert_array_equal(stored["predicted"], oracle)
    assert len(found.rows) == 10 and (found.rows["status"] == "done").all()
    assert (found.rows[["fit_seconds", "predict_seconds", "cpu_seconds"]] >= 0).all(axis=None)
    assert set(found.differences["method"]) == {"logistic regression"} and len(found.differences) == 5
    assert found.classes.groupby("method")["n_cells"].sum().eq(150).all()


def test_restart_after_an_interruption_goes_on(make_cells, tmp_path, in_this_process, monkeypatch):
    """What was done before the interruption is kept, only the rest is run, and a third call runs nothing."""
    cells, wait, calls = make_cells(n_cells=60), Processes._wait, []

    def interrupted(self, folder):
        calls.append(folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wait(self, folder)

    monkeypatch.setattr(Processes, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cells, ["linear SVM", "logistic regression"], tmp_path)
    before = pd.read_csv(tmp_path / "rows.csv")
    assert len(before) == 2
    monkeypatch.setattr(Processes, "_wait", wait)
    in_this_process.clear()
    found = run(cells, ["linear SVM", "logistic regression"], tmp_path)
    assert in_this_process == ["done", "done"] and len(found.rows) == 4
    kept = found.rows.merge(before[["method", "fold", "fit_seconds"]], on=["method", "fold", "fit_seconds"])
    assert len(kept) == 2
    again = run(cells, ["linear SVM", "logistic regression"], tmp_path)
    assert len(in_this_process) == 2
    pd.testing.assert_frame_equal(again.scores, found.scores)


def test_changed_settings_or_cells_are_run_anew_and_told(make_cells, tmp_path, in_this_process, peers, capsys):
    """Rows of other settings or cells are replaced, with a word; they are never pooled with new ones."""
    cells = make_cells(n_cells=60)
    run(cells, [peers.Constant(settings="a")], tmp_path)
    run(cells, [peers.Constant(settings="a")], tmp_path)
    assert len(in_this_process) == 2 and "run anew" not in capsys.readouterr().out
    run(cells, [peers.Constant(settings="b")], tmp_path)
    assert len(in_this_process) == 4 and "versions changed: constant" in capsys.readouterr().out
    other = cells.copy()
    other.X.data[0] += 1
    found = run(other, [peers.Constant(settings="b")], tmp_path)
    assert len(in_this_process) == 6 and len(found.rows) == 2
    found = run(other, [peers.Constant(settings="b")], tmp_path, n_folds=3)
    assert len(found.rows) == 3 and found.scores["n_cells"].item() == 60
    rows = pd.read_csv(tmp_path / "rows.csv")
    rows.loc[0, "method_fingerprint"] = "another"
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (reason,) = studies.read_benchmark(tmp_path).scores["reason"]
    assert "different settings or versions" in reason


def test_failing_peers_are_told_and_not_scored(make_cells, tmp_path, in_this_process, peers):
    """A peer that cannot, or breaks, has a reason and no score; the others go on; failures are tried again."""
    cells = make_cells(n_cells=60)
    methods = [peers.Cannot("cannot"), peers.Breaks("breaks"), "linear SVM"]
    found = run(cells, methods, tmp_path, against="breaks")
    table = found.scores.set_index("method")
    assert table.loc["cannot", "reason"] == "cannot: these cells are not for me"
    assert table.loc["breaks", "reason"] == "failed: ZeroDivisionError: in the middle"
    assert table.loc[["cannot", "breaks"], ["accuracy", "macro_f1", "median_f1"]].isna().all(axis=None)
    assert table.loc["linear SVM", "accuracy"] > 0.9 and not len(found.differences)
    assert (tmp_path / "logs/cells-breaks-0.log").exists()
    in_this_process.clear()
    run(cells, methods, tmp_path, against="breaks")
    assert in_this_process == ["failed", "failed"]


def job(cells, peer, folder):
    """One job on the first of two folds."""
    folds = Folds(as_task(cells, "cell_type"), n_folds=2)
    fold = folds[0]
    fold.reference.write_h5ad(folder / "reference_0.h5ad")
    fold.query.write_h5ad(folder / "query_0.h5ad")
    return Job(new_row(folds, 0, peer, seed=0), peer, folder, folder / "logs")


def test_process_of_its_own(make_cells, tmp_path, peers):
    """A run in its own process gives labels, seconds and peak memory; a crash is told with its last words."""
    with Processes(timeout_seconds=300) as processes:
        result, predictions = processes.run(job(make_cells(), peers.Constant(), tmp_path))
        assert result["status"] == "done" and len(predictions) == 60
        assert 50 < result["peak_memory_mb"] < 4000 and result["cpu_seconds"] >= 0
        crashed, nothing = processes.run(job(make_cells(), peers.Crashes("crashes"), tmp_path))
    assert nothing is None and crashed["status"] == "failed"
    assert crashed["reason"] == "the process ended with exit status 7: last words"


def test_hanging_peer_is_stopped_with_its_children(make_cells, tmp_path, peers):
    """After the timeout the process and what it started are ended, and the row says so."""
    started = tmp_path / "started"
    with Processes(timeout_seconds=60) as processes:
        this = job(make_cells(), peers.Hangs("hangs", str(started)), tmp_path)
        wait = store.subprocess.Popen.wait

        def short(process, timeout=None):  # as soon as the grandchild runs, the time is up
            while timeout and not started.exists() and process.poll() is None:
                time.sleep(0.05)
            return wait(process, timeout and 0.1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.subprocess.Popen, "wait", short)
            result, _ = processes.run(this)
    assert result["status"] == "timeout" and result["reason"] == "not done after 1 minutes"
    assert started.exists() and not running(str(started))


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see which processes are left")
def test_nothing_outlives_a_killed_benchmark(make_cells, tmp_path, peers):
    """When the benchmark's own process is killed, the process that it started ends, with its children."""
    started = tmp_path / "started"
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job(make_cells(), peers.Hangs("hangs", str(started)), tmp_path)))
    code = (
        "import pickle; from sims_kit.studies.store import Processes; "
        f"Processes(300).run(pickle.load(open({str(tmp_path / 'job.pickle')!r}, 'rb')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(started.exists)
    parent.kill()
    parent.wait()
    wait_until(lambda: not running(str(started)))


def wait_until(condition, seconds=120):
    """Wait for a condition, and fail if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def running(text):
    """The command lines of processes that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes().decode(errors="replace"))
    return [command for command in found if text in command]


def test_timeout_is_kept_until_more_time_is_given(make_cells, tmp_path, peers):
    """A stopped row is not run again with the same time, but with more."""
    this = job(make_cells(), peers.Constant(), tmp_path)
    rows = store.Store(tmp_path / "rows")
    with rows.locked():
        rows.add(this.row | {"status": "timeout", "reason": "slow", "timeout_seconds": 60}, None)
    assert rows.has(this.row, 60) and not rows.has(this.row, 61)


def test_wrong_calls_are_told(make_cells, tmp_path):
    """Names, numbers and folders that cannot be are refused before anything is run."""
    cells = make_cells(n_cells=60)
    with pytest.raises(UnknownNameError, match="linear SVM"):
        run(cells, ["linear SVN"], tmp_path)
    with pytest.raises(UnknownNameError, match="pbmc68k"):
        run("pbmc68", ["linear SVM"], tmp_path)
    with pytest.raises(SettingError, match="names of their own"):
        run(cells, ["linear SVM", "linear SVM"], tmp_path)
    with pytest.raises(SettingError, match="cannot be sent to a process of its own"):
        run(cells, [studies.peers.classical.Estimator("mine", lambda *_: LogisticRegression())], tmp_path)
    with pytest.raises(SettingError, match="n_jobs=0"):
        run(cells, ["linear SVM"], tmp_path, n_jobs=0)
    with FileLock(tmp_path / ".lock"), pytest.raises(SettingError, match="Another benchmark is writing"):
        run(cells, ["linear SVM"], tmp_path)
    with pytest.raises(DataError, match="holds no rows"):
        studies.read_benchmark(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="does not have the columns"):
        studies.read_benchmark(tmp_path)
