"""Fetching: from the cache, from the first address that delivers, or with an error that says what to do."""

import hashlib
from types import SimpleNamespace

import pytest

from sims_kit.datasets.fetch import cache_folder, fetch, known_hash
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError

GOOD = b"gene,cell_1\nACTB,3\n" * 100
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
SHA256, SIZE = hashlib.sha256(GOOD).hexdigest(), len(GOOD)
BAD_PAGES = {
    "missing": dict(body=b"none", status=404),
    "forbidden": dict(body=b"no", status=403),
    "empty": dict(body=b"", status=202),
    "html": dict(body=HTML),
    "waiting": dict(body=b'{"state": "in preparation"}', status=202),
    "other": dict(body=GOOD[:-1] + b"!"),
    "short": dict(body=GOOD[:50]),
    "packed": dict(body=GOOD, headers={"Content-Encoding": "gzip"}),
}
REASONS = ["404", "403", "empty (0 bytes) (HTTP 202", "HTML", "status 202", "SHA-256", "50 bytes", "packed (gzip)"]


def entry(*urls, sha256=SHA256, size=SIZE):
    """A registry entry of the good file at these addresses."""
    return DataFile(name="toy.csv", urls=urls or ["http://127.0.0.1:9/none"], sha256=sha256, size=size)


def put(cache, content=GOOD):
    """Place a file by hand."""
    path = cache / "folder" / "toy.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_cache_folder_follows_the_environment(cache, monkeypatch):
    """SIMS_KIT_DATA names the cache; without it the operating system's folder serves."""
    assert cache_folder() == cache
    monkeypatch.delenv("SIMS_KIT_DATA")
    assert cache_folder().name == "sims_kit"


def test_good_file_is_downloaded_once(server, cache):
    """The first call downloads to <cache>/<folder>/<file>, the second does not ask the server."""
    file = entry(server.page("/good", GOOD))
    path = fetch("toy", "folder", file)
    assert path == cache / "folder" / "toy.csv" and path.read_bytes() == GOOD
    assert path.stat().st_mode & 0o044  # unlike pooch's own: others may read a shared cache, as the umask allows
    assert fetch("toy", "folder", file) == path
    assert server.asked == ["/good"]
    assert list(path.parent.iterdir()) == [path]  # nothing else is left
    assert not (cache / "SHA256SUMS").exists()  # the hash is published: nothing to pin


def test_next_address_is_tried(server, cache):
    """When the first address fails, the second one delivers."""
    urls = [server.page(f"/{name}", **page) for name, page in BAD_PAGES.items()]
    path = fetch("toy", "folder", entry(*urls, server.page("/good", GOOD)))
    assert path.read_bytes() == GOOD


def test_failure_is_tried_again(server, cache):
    """A failing address is asked three times before it is given up."""
    with pytest.raises(FetchError):
        fetch("toy", "folder", entry(server.page("/forbidden", **BAD_PAGES["forbidden"])))
    assert server.asked == ["/forbidden"] * 3


@pytest.mark.parametrize(("answer", "reason"), zip(BAD_PAGES, REASONS, strict=True))
def test_bad_answer_is_explained_and_not_kept(server, cache, answer, reason):
    """The error names dataset, addresses, place, reason and the ways out, and the cache stays clean."""
    urls = [server.page(path, **BAD_PAGES[answer]) for path in ("/first", "/second")]
    with pytest.raises(FetchError) as caught:
        fetch("toy", "folder", entry(*urls), alternatives=["toy-too"])
    message = str(caught.value)
    for part in ("toy", str(cache / "folder" / "toy.csv"), "curl", SHA256, "'toy-too'"):
        assert part in message, part
    assert all(message.count(url) >= 2 for url in urls)  # with its reason, and for the way by hand
    assert message.count(reason) == 2
    assert caught.value.__cause__ is not None
    assert list((cache / "folder").iterdir()) == []


@pytest.mark.parametrize("answer", ["empty", "html", "waiting", "packed", "short"])
def test_unknown_hash_still_recognises_what_is_no_data(server, cache, answer):
    """Without a published hash, what cannot be the file is refused all the same, and not pinned."""
    with pytest.raises(FetchError):
        fetch("toy", "folder", entry(server.page("/bad", **BAD_PAGES[answer]), sha256=None))
    assert list((cache / "folder").iterdir()) == [] and not (cache / "SHA256SUMS").exists()


def test_offline_and_not_there(cache):
    """Offline with an empty cache: no attempt is made, and the message says how to go on."""
    with pytest.raises(FetchError, match="SIMS_KIT_OFFLINE") as caught:
        fetch("toy", "folder", entry("http://a.example/x", "http://b.example/x"), alternatives=["toy-too"])
    for part in ("curl", str(cache), SHA256, "http://a.example/x", "http://b.example/x", "'toy-too'"):
        assert part in str(caught.value), part


def test_offline_and_there(cache):
    """Offline, a file in the cache is found, also when cache and file may not be written."""
    path = put(cache)
    path.chmod(0o444)
    (cache / ".locks").write_text("no lock can be had")
    path.parent.chmod(0o555)
    try:
        assert fetch("toy", "folder", entry()).read_bytes() == GOOD
    finally:
        path.parent.chmod(0o755)


def test_cache_that_cannot_be_written(server, cache):
    """A download into a cache without write permission fails with a way out, before the server is asked."""
    cache.mkdir()
    (cache / ".locks").write_text("no lock can be had")  # also refuses root, whom no permission stops
    with pytest.raises(FetchError, match="SIMS_KIT_DATA can name") as caught:
        fetch("toy", "folder", entry(server.page("/good", GOOD)))
    assert ".locks" in str(caught.value) and "curl" in str(caught.value) and server.asked == []


@pytest.mark.parametrize("size", [SIZE, None], ids=["size known", "size told by the server"])
def test_disk_too_small(server, cache, monkeypatch, size):
    """The message says how much is needed, how much is free and what to do; no other address is tried."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    urls = server.page("/good", GOOD), server.page("/mirror", GOOD)
    with pytest.raises(FetchError, match=r"1\.90kB more are needed, and 1\.00kB are free") as caught:
        fetch("toy", "folder", entry(*urls, size=size))
    assert "SIMS_KIT_DATA" in str(caught.value) and "curl" in str(caught.value) and server.asked == ["/good"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=SIZE))
    assert fetch("toy", "folder", entry(*urls, size=size)).read_bytes() == GOOD


@pytest.mark.parametrize(
    ("content", "reason"), [(GOOD + b"x", "SHA-256"), (b"", "empty"), (HTML, "HTML")], ids=["other", "empty", "html"]
)
def test_wrong_file_in_the_cache_is_reported_and_left_alone(server, cache, content, reason):
    """A file that is there but wrong is never overwritten or removed."""
    path = put(cache, content)
    with pytest.raises(FetchError, match="left as it is") as caught:
        fetch("toy", "folder", entry(server.page("/good", GOOD)))
    assert reason in str(caught.value) and SHA256 in str(caught.value)
    assert path.read_bytes() == content and server.asked == []


@pytest.mark.parametrize("by_hand", [False, True])
def test_unknown_hash_is_pinned_aloud_and_then_checked(server, cache, by_hand, recwarn):
    """A null hash is pinned once, with a warning that names it, and a changed file is refused ever after."""
    file = entry(server.page("/good", GOOD), sha256=None)
    assert known_hash("folder", file) is None
    if by_hand:
        put(cache)
    with pytest.warns(UserWarning, match=f"toy: no SHA-256 of toy.csv .*{SHA256}.*SHA256SUMS"):
        path = fetch("toy", "folder", file)
    assert server.asked == ([] if by_hand else ["/good"])
    assert (cache / "SHA256SUMS").read_text() == f"{SHA256}  folder/toy.csv\n"
    assert known_hash("folder", file) == SHA256
    fetch("toy", "folder", file)
    assert len(recwarn) == 0  # said once
    put(cache, GOOD[:-1] + b"!")
    with pytest.raises(FetchError, match=r"pinned in .*SHA256SUMS"):
        fetch("toy", "folder", file)
    path.unlink()
    server.page("/good", GOOD[:-1] + b"!")
    with pytest.raises(FetchError, match=r"pinned in .*SHA256SUMS"):
        fetch("toy", "folder", file)
    assert not path.exists()


def test_published_hash_overrules_a_pinned_one(cache):
    """When the registry learns a file's hash, the one that was pinned before no longer counts."""
    put(cache)
    (cache / "SHA256SUMS").write_text(f"{'0' * 64}  folder/toy.csv\n")
    assert known_hash("folder", entry()) == SHA256
    assert fetch("toy", "folder", entry()).exists()


def test_unknown_hash_in_a_cache_that_cannot_be_written(cache):
    """The file serves, and the warning says that nothing guards it."""
    put(cache)
    (cache / ".locks").write_text("no lock can be had")
    with pytest.warns(UserWarning, match=f"{SHA256}.* cannot be pinned .* not be noticed"):
        assert fetch("toy", "folder", entry(sha256=None)).read_bytes() == GOOD


def test_unknown_hash_with_a_known_size(cache):
    """Where only the size is published, a file of another size is refused and not pinned."""
    put(cache, GOOD[:-7])
    with pytest.raises(FetchError, match="1,893 bytes instead of 1,900"):
        fetch("toy", "folder", entry(sha256=None))
    assert not (cache / "SHA256SUMS").exists()
