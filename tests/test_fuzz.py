"""Spoiled files: the readers read them or say what is wrong; those that once made one fail are kept and read again."""

from pathlib import Path

import pytest

import fuzz

KEPT = sorted(path for path in (Path(__file__).parent / "fuzz").glob("*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_failed_once(path, tmp_path):
    """A kept input gives a documented error, or is read."""
    reader = fuzz.READERS[path.parent.name]
    outcome = fuzz.attempt(reader, path.read_bytes(), tmp_path / path.name)
    assert outcome in ("read", *(error.__name__ for error in reader.documented))


@pytest.mark.parametrize("name", fuzz.READERS)
def test_some_spoiled_files(name, tmp_path, capsys):
    """Of a hundred inputs none fails, and they reach both ends: some are read, some refused."""
    assert fuzz.try_reader(name, 100, seed=1, kept=tmp_path) == 0
    told = capsys.readouterr().out
    assert "read " in told and "Error " in told and not list(tmp_path.iterdir())
