"""The command line: `python -m sims_kit.datasets`."""

import hashlib

import pytest

from sims_kit.datasets.__main__ import main
from sims_kit.datasets.registry import read_registry

MATRIX = b"gene,cell_1,cell_2,cell_3\nACTB,3,0,1\nVIM,0,2,5\n"
LABELS = b"cell,type\ncell_1,a\ncell_2,b\ncell_3,a\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with the two files of a dataset `toy` of the tier full, one hash known and one not."""
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path))
    entry = read_registry()["mouse-immune"]
    files = {"matrix": ("toy.csv", MATRIX, hashlib.sha256(MATRIX).hexdigest()), "labels": ("types.csv", LABELS, None)}
    (tmp_path / "toys").mkdir()
    source = {}
    for key, (name, content, sha256) in files.items():
        (tmp_path / "toys" / name).write_bytes(content)
        source[key] = entry.source.matrix.model_copy(update=dict(name=name, sha256=sha256, size=len(content)))
    toy = entry.model_copy(
        update=dict(
            source=entry.source.model_copy(update=dict(folder="toys", **source)),
            **dict(tier="full", label="type", cells=3, genes=2, classes=2),
        )
    )
    monkeypatch.setitem(read_registry().datasets, "toy", toy)
    return tmp_path


def test_list_shows_sizes_and_what_is_ready(cache, capsys):
    """Each dataset has a line; what needs no network is ready, what is not in the cache is not."""
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(read_registry().datasets) < set(lines)
    assert lines["toy"].endswith("ready") and lines["pbmc68k"].endswith("ready")
    assert not lines["mouse-immune"].endswith("ready") and "2.3 MB" in lines["mouse-immune"]
    assert "1,000" in lines["mouse-immune"] and "19,371" in lines["mouse-immune"]


def test_list_of_a_tier(cache, capsys):
    """`--tier` leaves the others out."""
    assert main(["list", "--tier", "bundled"]) == 0
    shown = capsys.readouterr().out
    assert "pbmc68k" in shown and "mouse-immune" not in shown


def test_fetch_prepares(cache, capsys):
    """A big text is converted, so that a second call has nothing to do, even without the files as published."""
    with pytest.warns(UserWarning, match=r"types\.csv"):  # pinned
        assert main(["fetch", "toy", "pbmc68k"]) == 0
    assert "toy: ready" in capsys.readouterr().out
    assert (cache / "toys/toy.h5ad").exists()
    (cache / "toys/toy.csv").unlink()
    assert main(["fetch", "toy"]) == 0


def test_fetch_goes_on_after_a_failure(cache, capsys):
    """What fails is named with its reason and gives status 1; the others are fetched all the same."""
    with pytest.warns(UserWarning, match=r"types\.csv"):
        assert main(["fetch", "worm-neurons", "toy"]) == 1
    shown = capsys.readouterr()
    assert "toy: ready" in shown.out
    assert "worm-neurons: failed" in shown.err and "SIMS_KIT_OFFLINE" in shown.err and "1 of 2 not ready" in shown.err


def test_verify(cache, capsys):
    """Right, unknown, missing and wrong files are told apart; only wrong ones give status 1."""
    assert main(["verify", "toy", "worm-neurons"]) == 0
    shown = capsys.readouterr().out
    assert "toy.csv: right" in shown and "types.csv: no hash is known yet" in shown
    assert "worm_neuron_cell.h5: not there" in shown
    (cache / "toys/toy.csv").write_bytes(MATRIX + b"X,1,1,1\n")
    assert main(["verify", "toy"]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_archive_of_several_datasets_counts_once(cache, capsys):
    """Six datasets lie in one archive, which is checked once and whose size is not added up."""
    assert main(["verify", "muraro", "xin"]) == 0
    assert capsys.readouterr().out.count("scRNAseq_Benchmark_datasets.zip") == 1
    (cache / "abdelaal").mkdir()
    (cache / "abdelaal/scRNAseq_Benchmark_datasets.zip").write_bytes(b"x" * 3_000_000)
    assert main(["list", "--tier", "full"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("3.0 MB") == 7  # six lines and the sum


def test_verify_checks_pins(cache, capsys):
    """A hash that was noted at the first use is checked as well."""
    with pytest.warns(UserWarning, match=r"types\.csv"):
        main(["fetch", "toy"])
    assert main(["verify", "toy"]) == 0
    assert "types.csv: right (as when it was pinned)" in capsys.readouterr().out
    (cache / "toys/types.csv").write_bytes(LABELS.replace(b"b", b"c"))
    assert main(["verify", "toy"]) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fetch"], "--tier"),
        (["fetch", "worm-neuron"], "'worm-neurons'"),
        (["verify", "worm"], "'worm-neurons'"),
        (["list", "--tier", "huge"], "small"),
    ],
)
def test_wrong_calls(arguments, told, capsys):
    """A wrong call gives status 2 and says what exists."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
