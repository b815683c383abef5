"""Sweeps: stored as they go, joined in order, shared between jobs."""

import os

import pandas as pd
import pytest

from sims_kit.errors import SettingError
from sims_kit.studies.sweep import sweep

RUNS = [{"method": name, "seed": seed} for name in ("a b", "c") for seed in (0, 1)]


def square(method: str, seed: int) -> pd.DataFrame:
    """Two rows for each run."""
    return pd.DataFrame({"target": ["x", "NA"], "value": [seed**2, len(method)]})


def refuse(**_) -> pd.DataFrame:
    """Stands for a run that must not be needed."""
    raise AssertionError("ran again")


def test_one_table_in_the_order_of_the_runs(tmp_path):
    """Arguments come first, then what the run returned; stored or not, in one process or two."""
    expected = pd.concat([pd.DataFrame([run] * 2).join(square(**run)) for run in RUNS], ignore_index=True)
    for folder, n_jobs in ((None, 1), (tmp_path / "a", 1), (tmp_path / "b", 2)):
        pd.testing.assert_frame_equal(sweep(RUNS, square, folder, n_jobs=n_jobs), expected)


def test_a_restart_goes_on_where_it_stopped(tmp_path):
    """Runs that were stored before a failure are read, those after it are run."""
    done = []

    def fails(method, seed):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((method, seed))
        return square(method, seed)

    with pytest.raises(KeyboardInterrupt):
        sweep(RUNS, fails, tmp_path)
    assert len(done) == 2 and not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    again = []
    sweep(RUNS, lambda **run: (again.append(run), square(**run))[1], tmp_path)
    assert again == RUNS[2:]
    assert len(sweep(RUNS, refuse, tmp_path)) == 8


def test_another_fingerprint_is_another_run(tmp_path):
    """What was stored with other cells or settings is not taken for this sweep's."""
    sweep(RUNS, square, tmp_path, fingerprint="old")
    with pytest.raises(AssertionError, match="ran again"):
        sweep(RUNS, refuse, tmp_path, fingerprint="new")


def test_text_stays_text(tmp_path):
    """A donor "01" is not read as the number 1 where its column is named."""
    table = pd.DataFrame({"donor": ["01", "NA"]})
    for _ in range(2):
        found = sweep([{"group": "02"}], lambda group: table, tmp_path, text=["group", "donor"])
        assert found.to_dict("list") == {"group": ["02", "02"], "donor": ["01", "NA"]}


def test_jobs_of_an_array_share_a_folder(tmp_path):
    """Each runs its part; the last to come has them all."""
    assert len(sweep(RUNS, square, tmp_path, part=(0, 2))) == 4
    assert len(sweep(RUNS, square, tmp_path, part=(1, 2))) == 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"part": (2, 2)}, "part="),
        ({"part": (0, len(RUNS) + 1)}, "jobs or fewer"),
        ({"n_jobs": 0}, "n_jobs=0"),
        ({"runs": RUNS * 2}, "Two runs"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    """Before anything is run."""
    with pytest.raises(SettingError, match=words):
        sweep(**({"runs": RUNS, "run": refuse} | settings))
