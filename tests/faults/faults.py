"""Nothing lost: stopped work goes on as if nothing had happened, and files are whole or not there."""

import ctypes
import itertools
import os
import random
import re
import resource
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.callbacks import LambdaCallback

import sims_kit as sk
from sims_kit.datasets import attach_labels
from sims_kit.datasets.read import convert
from sims_kit.errors import ModelFileError, SettingError, SimsError

RECIPE = dict(n_models=1, n_d=2, n_a=2, best_epoch=True)
SLURM = dict(SLURM_JOB_ID="1", SLURM_JOB_NAME="job", SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
SLURM |= dict(SLURM_NODEID="0", SLURM_NNODES="1", SLURM_NTASKS_PER_NODE="1")


def fit(cells, **more):
    """A small training with checkpoints; its weights."""
    model = sk.fit(cells, "cell_type", recipe=RECIPE, max_epochs=4, verbose=False, **{"checkpoints": "run"} | more)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def save(cells):
    """Write a model over an older one; its classes."""
    model = sk.load_model("model.safetensors")
    return sk.load_model(sk.save_model(model, "other.safetensors", notes=os.urandom(8).hex())).classes


def annotate(cells):
    """Write annotated cells; the labels."""
    sk.annotate("cells.h5ad", "model.safetensors", out="out.h5ad")
    return sk.read("out.h5ad").obs["sims_label"].tolist()


def to_h5ad(cells):
    """Convert text; the sum of its values."""
    return float(sk.read(convert("cells.csv", "text.h5ad")).X.sum())


def study(cells):
    """A small study that keeps its runs; its scores."""
    found = sk.studies.ablation(cells, "cell_type", proportions=(0.5, 1), methods="linear SVM", folder="runs", seeds=0)
    return found.predictions["predicted"].tolist()


WORK = [fit, save, annotate, to_h5ad, study]


@pytest.fixture(scope="module")
def material(make_cells, tmp_path_factory):
    """Cells, a file of them, the same as text, and a model."""
    folder = tmp_path_factory.mktemp("material")
    cells = make_cells()
    cells.write_h5ad(folder / "cells.h5ad")
    cells.to_df().to_csv(folder / "cells.csv")
    model = sk.fit(cells, "cell_type", recipe=RECIPE, max_epochs=1, verbose=False)
    sk.save_model(model, folder / "model.safetensors")
    import_module("scanpy")  # slow: once, for all forks
    return folder, cells


@pytest.fixture
def cells(material, tmp_path, monkeypatch):
    """Cells, in a folder with files of them and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path / "cache"))
    for file in material[0].iterdir():
        os.link(file, file.name)
    return material[1]


def same(found, expected) -> bool:
    """Whether two results are equal bit for bit."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)
    return found == expected


def begin_anew():
    """Remove what was kept, else the next call has nothing to do."""
    for kept in ("run", "runs"):
        shutil.rmtree(kept, ignore_errors=True)


@pytest.mark.parametrize("environment", [{}, SLURM], ids=["alone", "under SLURM"])
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_stopped_work_goes_on(cells, forked, n_trials, monkeypatch, work, environment):
    """Stopped by a signal at a random moment and called again, it ends as work that was not stopped."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started, whole = time.monotonic(), forked(work, cells)
    length = time.monotonic() - started
    assert whole.kind == "done", whole.message
    chance = random.Random(work.__name__)
    signals = itertools.cycle(signal.Signals[f"SIG{name}"] for name in ("KILL", "INT", "TERM", "USR1", "KILL", "KILL"))
    for signal_sent in itertools.islice(signals, n_trials // 4 + 1):
        stopped = forked(work, cells, send=signal_sent, after=chance.uniform(0, 0.9 * length))
        assert stopped.kind != "error" or issubclass(stopped.found, KeyboardInterrupt | SystemExit), stopped.message
        again = forked(work, cells)
        assert again.kind == "done", again.message
        assert same(again.found, whole.found), signal_sent
        assert not list(Path().glob("*hpc_ckpt*"))
        begin_anew()


def small_files(room: int):
    """Let no file of this process grow beyond this; what lets them again."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def full_disk(room: int):
    """Mount a disk on the working folder, for this process alone, with its files and this room; what makes more."""
    libc, content, ids = ctypes.CDLL(None), files(), [f"0 {number} 1" for number in (os.getuid(), os.getgid())]
    size = sum(-(-len(one) // 4096) for one in content.values()) + room // 4096  # in pages
    if libc.unshare(0x10020000):  # users and mounts of its own
        pytest.skip("no disk can be mounted here")
    for name, value in zip(("setgroups", "uid_map", "gid_map"), ("deny", *ids), strict=True):
        Path("/proc/self", name).write_text(value)
    if libc.mount(b"tmpfs", os.getcwd().encode(), b"tmpfs", 0, b"size=%d" % (size * 4096)):
        pytest.skip("no disk can be mounted here")
    os.chdir(os.getcwd())
    for path, one in content.items():
        path.write_bytes(one)
    return lambda: libc.mount(None, os.getcwd().encode(), None, 32, b"size=64m")  # mounted again


def files() -> dict[Path, bytes]:
    """What the files in the working folder hold."""
    return {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}


@pytest.mark.parametrize("shortage", [small_files, full_disk], ids=lambda shortage: shortage.__name__)
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_full_disk(cells, forked, counts, n_trials, work, shortage):
    """Without room, the error names it, older files stay, no part is left, and the work is done when there is room."""
    whole, chance = forked(work, cells).found, random.Random(0)

    def starved(room):
        make_room, before, said = shortage(room), files(), "done"
        try:
            work(cells)
        except (SimsError, OSError) as error:
            said = str(error)
            assert files() == before
        assert not [*Path().rglob("*.part")]
        make_room()
        return said, work(cells)

    for room in [0, *(chance.randrange(2 ** chance.randrange(10, 18)) for _ in range(max(2, n_trials // 4)))]:
        begin_anew()
        found = forked(starved, room)
        if found.found in (pytest.skip.Exception, PermissionError):  # of the maps
            pytest.skip("no disk can be mounted here")
        assert found.kind == "done" and same(found.found[1], whole), found.message
        assert (found.found[0] == "done" and room) or re.search("No space left|File too large", found.found[0])
        counts("enough room" if found.found[0] == "done" else "an error that names it")


def damaged(good: bytes, n: int, page: int = 4096):
    """Files with a changed bit, a lost page or a lost end, at random places."""
    chance = np.random.default_rng(0)
    for number in range(n):
        bad, place = bytearray(good), int(chance.integers(len(good)))
        if number % 3 == 0:
            bad[place] ^= 1 << int(chance.integers(8))
        elif number % 3 == 1:
            bad[place : place + page] = bytes(len(bad[place : place + page]))
        else:
            del bad[place:]
        if bad != good:
            yield bytes(bad)


def test_damaged_checkpoints(cells, forked, n_trials):
    """A damaged checkpoint is refused by `fit` and `load_model`, or damage makes no difference; none gives others."""
    whole, path, outcomes = fit(cells), Path("run/resume.ckpt"), set()
    good, state = path.read_bytes(), sk.load_model(path).state_dict()

    def opened():
        return same(sk.load_model(path).state_dict(), state)

    for bad in damaged(good, n_trials):
        path.write_bytes(bad)
        found = forked(opened)
        assert found.found is True or found.found is ModelFileError, found
        path.write_bytes(bad)
        found = forked(fit, cells)
        assert same(found.found, whole) if found.kind == "done" else found.found is ModelFileError, found.message
        outcomes.add(found.found if found.kind == "error" else found.kind)
    assert ModelFileError in outcomes


def test_damaged_models(cells, counts, n_trials):
    """A model file with changed bits, lost pages or a lost end is refused, or is the same (1 and 3 are both True)."""
    state = sk.load_model("model.safetensors").state_dict()
    for bad in damaged(Path("model.safetensors").read_bytes(), 15 * n_trials):
        Path("bad.safetensors").write_bytes(bad)
        try:
            found = sk.load_model("bad.safetensors").state_dict()
        except ModelFileError:
            counts("ModelFileError")
        else:
            counts("the same")
            assert same(found, state)


def test_damaged_matrices(cells, forked, counts, n_trials):
    """A matrix file with changed bits, lost pages or a lost end never ends the process; errors are named.

    libhdf5 itself loops without end at some attributes, a few in a hundred such files.
    """
    n_slow, n_files, whole = 0, (5 if n_trials < 200 else 15) * n_trials, forked(annotate, cells).found

    def look(backed):
        return sk.annotate("bad.h5ad", "model.safetensors", backed=backed).obs["sims_label"].tolist()

    for number, bad in enumerate(damaged(Path("cells.h5ad").read_bytes(), n_files, page=512)):
        Path("bad.h5ad").write_bytes(bad)
        found = forked(look, bool(number % 2), limit=5)
        is_named = found.kind == "error" and issubclass(found.found, SimsError)
        assert found.kind == "done" or is_named or found.message == "too slow", found
        n_slow += found.message == "too slow"
        if found.kind == "done":
            counts("the same labels" if found.found == whole else "other labels")
    assert n_slow <= max(3, n_trials)


@pytest.mark.filterwarnings("ignore")
def test_damaged_texts(cells, n_trials):
    """A table of cells or labels with a changed bit, a lost part or a lost end is read, or refused by name."""
    cells.obs.to_csv("labels.csv")
    readers = {"cells.csv": sk.read, "labels.csv": lambda path: attach_labels(cells.copy(), path, "cell_type")}
    for name, read in readers.items():
        for bad in damaged(Path(name).read_bytes(), 5 * n_trials, page=64):
            Path("bad.csv").write_bytes(bad)
            with suppress(SimsError):
                read("bad.csv")


def test_end_of_a_slurm_job(cells, forked, monkeypatch):
    """A job that is told to end leaves nothing that a later training would take up instead of its own weights."""
    whole = forked(fit, cells)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    stop = LambdaCallback(  # in the middle of the second epoch, as SLURM does before a job's end
        on_train_batch_end=lambda trainer, *_: trainer.global_step == 6 and os.kill(os.getpid(), signal.SIGUSR1)
    )
    assert forked(partial(fit, checkpoints=None, callbacks=stop), cells).found == signal.SIGUSR1
    assert not list(Path().rglob("hpc_ckpt*"))
    Path("hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    assert forked(fit, cells).found is SettingError
    Path("hpc_ckpt_1.ckpt").unlink()
    assert same(forked(fit, cells).found, whole.found)
