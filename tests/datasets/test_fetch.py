"""Fetching: from the cache, from the first address that delivers, or with an error that says what to do."""

import gzip
import hashlib
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sims_kit.datasets.fetch import cached_path, fetch
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError

GOOD = b"gene,cell_1\nACTB,3\n" * 100
OTHER = GOOD[:-2] + b"4\n"
HDF5 = Path(__file__).with_name("files").joinpath("seuratdisk.h5ad").read_bytes()
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
SHA256 = hashlib.sha256(GOOD).hexdigest()
BAD_ANSWERS = {  # what the server sends, and the reason that the error gives
    "missing": (dict(body=b"none", status=404), "404"),
    "not ready": (dict(body=b'{"state": "in preparation"}', status=202), "status 202"),
    "empty": (dict(body=b""), "empty"),
    "web page": (dict(body=HTML), "HTML"),
    "cut short": (dict(body=GOOD[:50], promised=len(GOOD)), "50 bytes read"),
    "other": (dict(body=OTHER), "does not match the known hash"),
}


def entry(*urls, sha256=SHA256, size=None, name="toy.csv"):
    """A file of the registry at these addresses."""
    return DataFile(name, urls or ("https://a.example/x", "https://b.example/x"), sha256, size)


def put(cache, content=GOOD, name="toy.csv"):
    """Place a file by hand."""
    path = cache / "folder" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_cache_folder_follows_the_environment(cache, monkeypatch):
    """SIMS_KIT_DATA names the cache, also with a tilde; without it the operating system's folder serves."""
    monkeypatch.setenv("HOME", str(cache))
    monkeypatch.setenv("SIMS_KIT_DATA", "~/data")
    assert cached_path("x", entry()) == cache / "data/x/toy.csv"
    monkeypatch.delenv("SIMS_KIT_DATA")
    assert cached_path("x", entry()).parts[-3:] == ("sims_kit", "x", "toy.csv")


def test_first_address_that_delivers(server, cache):
    """Each address is tried three times; what the last one sends is stored once, readable for others, and alone."""
    urls = [server.page(f"/{name}", **page) for name, (page, _) in BAD_ANSWERS.items() if " " not in name]
    file = entry(*urls, server.page("/good", GOOD))
    path = fetch("toy", "folder", file)
    assert path == cache / "folder" / "toy.csv" and path.read_bytes() == GOOD and path.stat().st_mode & 0o044
    assert server.asked == [f"/{name}" for name in ("missing", "empty", "other") for _ in range(3)] + ["/good"]
    assert fetch("toy", "folder", file) == path and len(server.asked) == 10
    assert list(path.parent.iterdir()) == [path]


CASES = [(answer, sha256) for answer in BAD_ANSWERS for sha256 in (SHA256, None) if sha256 or answer != "other"]


@pytest.mark.parametrize(("answer", "sha256"), CASES)
def test_bad_answer_is_explained_and_not_kept(server, cache, answer, sha256):
    """The error names dataset, addresses, place, reason and the way by hand, and nothing is left in the cache."""
    page, reason = BAD_ANSWERS[answer]
    urls = [server.page(path, **page) for path in ("/first", "/second")]
    with pytest.raises(FetchError) as caught:
        fetch("toy", "folder", entry(*urls, sha256=sha256), alternatives=("toy-too",))
    message, place = str(caught.value), cache / "folder" / "toy.csv"
    by_hand = f"curl -L --fail -C - --create-dirs -o {place} {urls[0]}"
    for part in ("toy: ", by_hand, f"sha256sum {place}", "toy-too", sha256 or "not published"):
        assert part in message, part
    assert message.count(reason) >= 2 and all(message.count(url) >= 2 for url in urls)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "size", "reason"),
    [
        (gzip.compress(GOOD)[:-9], None, "ended before"),
        (b"PK\3\4" + GOOD, None, "not a zip file"),  # its index would be at its end
        (HDF5[:3000], None, "truncated file"),
        (bytes(5000), None, "more than 4,000 bytes"),
        (GOOD, len(GOOD) - 1, "more than 1,899 bytes"),
        (GOOD[:-1], len(GOOD), "has 1,899 bytes, expected 1,900"),
    ],
)
def test_answers_of_unknown_length(server, cache, monkeypatch, body, size, reason):
    """Without length and hash, an answer is read to its end, and one without an end ends at a bound."""
    monkeypatch.setattr("sims_kit.datasets.fetch.LARGEST", 4000)
    with pytest.raises(FetchError, match=reason):
        fetch("toy", "folder", entry(server.page("/x", body, promised=0), sha256=None, size=size))
    assert list((cache / "folder").iterdir()) == []


def test_offline(cache):
    """Without network a file in the cache is found, also where nothing may be written; else the way by hand is said."""
    with pytest.raises(FetchError, match="SIMS_KIT_OFFLINE") as caught:
        fetch("toy", "folder", entry())
    assert all(part in str(caught.value) for part in ("curl", SHA256, "https://a.example/x", "https://b.example/x"))
    assert not cache.exists()
    path = put(cache)
    path.parent.chmod(0o555)
    assert fetch("toy", "folder", entry()).read_bytes() == GOOD
    path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "content", "sha256", "reason"),
    [
        ("toy.csv", OTHER, SHA256, "SHA-256"),
        ("toy.csv", OTHER[1:], None, "size 1899, expected 1900"),
        ("toy.csv.gz", gzip.compress(OTHER), SHA256, "SHA-256"),
        ("toy.csv.gz", gzip.compress(GOOD)[:-20], SHA256, "cannot be read"),
        ("toy.csv.gz", GOOD, SHA256, "cannot be read"),
        ("toy.csv", b"", SHA256, "pipe or device"),  # which may have no end
    ],
)
def test_wrong_file_in_the_cache_is_left_alone(server, cache, name, content, sha256, reason):
    """What is there but wrong is never overwritten or removed."""
    path = put(cache, content, name)
    if not content:
        path.unlink()
        path.symlink_to(os.devnull)
    with pytest.raises(FetchError, match="never replaced") as caught:
        fetch("toy", "folder", entry(server.page("/good", GOOD), sha256=sha256, size=1900))
    assert reason in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == content and server.asked == []


def test_page_of_a_redirect_is_not_read(server, cache):
    """It may have no end."""
    url = server.page("/moved", bytes(2**26), 302, promised=0, header=f"Location: {server.page('/good', GOOD)}")
    tracemalloc.start()
    assert fetch("toy", "folder", entry(url)).read_bytes() == GOOD
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_file_that_somebody_placed(cache):
    """A packed copy serves, a plain one goes before; where no hash is published, the one that was found is named."""
    packed = put(cache, gzip.compress(GOOD), "toy.csv.gz")
    assert fetch("toy", "folder", entry(size=len(GOOD))) == packed
    path = put(cache)
    with pytest.warns(UserWarning, match=f"toy: No SHA-256 of toy.csv .* not checked.*{SHA256}"):
        assert fetch("toy", "folder", entry(sha256=None)) == path


def test_published_packing_is_kept(server, cache):
    """A .gz file is stored as it is published, also where the server calls its packing an encoding."""
    packed = gzip.compress(GOOD)
    url = server.page("/good", packed, header="Content-Encoding: gzip")
    file = entry(url, sha256=hashlib.sha256(packed).hexdigest(), name="toy.csv.gz")
    assert fetch("toy", "folder", file).read_bytes() == packed


def test_many_at_once(server, cache):
    """Downloads of one file at the same time do not disturb each other."""
    content = GOOD * 5000
    file = entry(server.page("/good", content), sha256=hashlib.sha256(content).hexdigest())
    with ThreadPoolExecutor(8) as pool:
        paths = {download.result() for download in [pool.submit(fetch, "toy", "folder", file) for _ in range(8)]}
    assert [path.read_bytes() for path in paths] == [content] and len(list((cache / "folder").iterdir())) == 1
