"""Spoiled files: the readers read them, or raise an error of `sims_kit.errors` that says what is wrong."""

import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import yaml
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from sims_kit.datasets import attach_labels, read
from sims_kit.datasets.registry import PATH, read_registry
from sims_kit.errors import SimsError

TOKENS = [b"", b"\x00", b"\xff\xfe", b"\r", b'"', b",", b"\t", b",,", b"nan", b"1e999", b"[" * 500, b"&a", b"{"]
CELLS = b"cell,A,B,C\n" + b"".join(b"cell_%d,%d,0,1.5\n" % (i, i) for i in range(6))
LABELS = b"cell,cell_type,age\n" + b"".join(b"cell_%d,type %d,%d\n" % (i, i % 2, 20 + i) for i in range(6))
REGISTRY = yaml.safe_load(PATH.read_text(encoding="utf-8"))
REGISTRY["datasets"] = {name: REGISTRY["datasets"][name] for name in ("pbmc68k", "sim-cortex", "worm-neurons")}
for entry in REGISTRY["datasets"].values():
    entry.pop("alternatives", None)


def labels_of(path):
    """Labels from a table, for cells of known names."""
    attach_labels(AnnData(obs=pd.DataFrame(index=[f"cell_{i}" for i in range(6)])), path, "cell_type")


READERS = {
    "cells": (read, ".csv", CELLS),
    "labels": (labels_of, ".csv", LABELS),
    "registry": (read_registry, ".yaml", yaml.safe_dump(REGISTRY).encode()),
}


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=5000, derandomize=True)
@given(data=st.data())
def test_spoiled_files_are_read_or_refused(name, data):
    """Bytes left out, doubled, exchanged or put in, up to four times; most often near the file's head."""
    read_file, ending, content = READERS[name]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)) | st.integers(0, min(400, len(content))))
        end = at + data.draw(st.sampled_from([0, 1, 2, 8, 64, 1000]))
        put = data.draw(st.sampled_from([*TOKENS, content[at:end], content[at:end] * 2]) | st.binary(max_size=8))
        content = content[:at] + put + content[end:]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        path = Path(folder, f"file{ending}")
        path.write_bytes(content)
        with suppress(SimsError):
            read_file(path)
