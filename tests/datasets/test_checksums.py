"""The cache's lock file of hashes."""

import hashlib
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from sims_kit.datasets.checksums import BLOCK, file_hash, pin, pinned_hash
from sims_kit.errors import FetchError


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_file_hash_is_that_of_hashlib(tmp_path, size):
    """The hash is right for sizes around the block that is read at once."""
    (tmp_path / "file").write_bytes(b"x" * size)
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"x" * size).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_lock_file_can_be_checked_by_sha256sum(tmp_path):
    """`sha256sum -c SHA256SUMS` agrees in the cache: with files as they were pinned, and not with a changed one."""
    for name in ("a/one file.csv", "b/two.csv.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
        pin(tmp_path, name, file_hash(tmp_path / name))
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "b/two.csv.gz").write_bytes(b"changed")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 1


def test_lock_file_by_another_hand(tmp_path):
    """Lines of other tools are understood: capitals, the mark of binary files, no end of line; they are kept."""
    (tmp_path / "SHA256SUMS").write_text(f"{'A' * 64} *a/b.csv")
    assert pinned_hash(tmp_path, "a/b.csv") == "a" * 64
    assert pinned_hash(tmp_path, "b.csv") is None
    pin(tmp_path, "c.csv", "c" * 64)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{'A' * 64} *a/b.csv\n{'c' * 64}  c.csv\n"


def test_pinned_hash_is_never_replaced(tmp_path):
    """The first hash of a file stays."""
    pin(tmp_path, "a.csv", "a" * 64)
    pin(tmp_path, "a.csv", "b" * 64)
    assert pinned_hash(tmp_path, "a.csv") == "a" * 64


def test_damaged_lock_file_is_reported(tmp_path):
    """A torn line is an error with its number, not a file that silently counts as new."""
    (tmp_path / "SHA256SUMS").write_text(f"{'a' * 64}  a.csv\n\nabc  b.csv\n")
    with pytest.raises(FetchError, match=r"SHA256SUMS, line 3: 'abc  b.csv'"):
        pinned_hash(tmp_path, "c.csv")


def test_many_pin_at_once(tmp_path):
    """No line is lost when many pin at the same time."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: pin(tmp_path, f"{i}.csv", f"{i:064x}"), range(40)))
    assert [pinned_hash(tmp_path, f"{i}.csv") for i in range(40)] == [f"{i:064x}" for i in range(40)]
