"""The command line: `python -m sims_kit.datasets`."""

import hashlib
from dataclasses import replace

import pytest

from sims_kit.datasets.__main__ import main
from sims_kit.datasets.registry import DataFile, read_registry


@pytest.fixture
def toys(cache, monkeypatch):
    """The cache folder of a dataset `toy`, with two files, one hash known and one not."""
    (cache / "toys").mkdir(parents=True)
    files = []
    for name, sha256 in (("toy.csv", hashlib.sha256(b"toy.csv").hexdigest()), ("types.csv", None)):
        (cache / "toys" / name).write_bytes(name.encode())
        files.append(DataFile(name, ("https://a.example/x",), sha256, None))
    entry = read_registry().datasets["mouse-immune"]
    source = replace(entry.source, folder="toys", matrix=files[0], labels=files[1])
    monkeypatch.setitem(read_registry().datasets, "toy", replace(entry, source=source))
    return cache / "toys"


def test_list(toys, capsys):
    """Each entry has a line with its numbers, and says whether its files are in the cache."""
    assert main(["list"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert {*read_registry().datasets, *read_registry().tables} < set(lines)
    assert lines["toy"][-1] == lines["pbmc68k"][-1] == "True"
    assert lines["mouse-immune"] == ["small", "1000", "19371", "5", "2.3", "False"]


@pytest.mark.filterwarnings("ignore:toy. No SHA-256")
def test_fetch_goes_on_after_a_failure(toys, capsys):
    """What fails is named with its reason and gives status 1; the others are fetched all the same."""
    assert main(["fetch", "gencode-human", "toy", "pbmc68k"]) == 1
    shown = capsys.readouterr()
    assert [line.split(" ")[:2] for line in shown.out.splitlines()] == [["toy:", "ready"], ["pbmc68k:", "ready"]]
    assert shown.err.startswith("gencode-human: failed: ") and "SIMS_KIT_OFFLINE" in shown.err


def test_verify(toys, capsys):
    """Right, unchecked, missing and wrong files are told apart; only wrong ones give status 1."""
    assert main(["verify", "toy", "muraro"]) == 0
    shown = capsys.readouterr().out
    assert "toy: ready" in shown and "(none is published)" in shown and "muraro: not in the cache" in shown
    (toys / "toy.csv").write_bytes(b"another")
    assert main(["verify"]) == 1 and "toy.csv has SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "says"), [("fetch", "NAME"), ("fetch worm", "'worm-neurons'"), ("x", "list")])
def test_wrong_calls(arguments, says, capsys):
    """A wrong call gives status 2 and says what exists."""
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2 and says in capsys.readouterr().err
