"""Fetching, against a server on the loopback device."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sims_kit.datasets.fetch import cache_folder, fetch
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError

GOOD = b"gene,cell_1\nACTB,3\n" * 100
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers by path: /good, /empty, /html, /cut, and 404 for all else."""

    def do_GET(self):
        """Send the answer and note the path."""
        self.server.asked.append(self.path)
        bodies = {"/good": GOOD, "/empty": b"", "/html": HTML, "/cut": GOOD[:50], "/other": GOOD + b"!"}
        body = bodies.get(self.path)
        self.send_response(404 if body is None else 202 if body == b"" else 200)
        length = len(GOOD) if self.path == "/cut" else len(body or b"")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *arguments):
        """Stay silent."""


@pytest.fixture
def server(monkeypatch):
    """A server on a free port, with the network allowed and no waiting between attempts."""
    monkeypatch.delenv("SIMS_KIT_OFFLINE", raising=False)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked = []
    running.address = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(*urls, sha256=SHA256):
    """A registry entry of the good file at these addresses."""
    return DataFile(name="toy.csv", urls=urls or ["http://127.0.0.1:9/none"], sha256=sha256, size=len(GOOD))


def test_cache_folder_follows_the_environment(cache, monkeypatch):
    """SIMS_KIT_DATA names the cache; without it the operating system's folder serves."""
    assert cache_folder() == cache
    monkeypatch.delenv("SIMS_KIT_DATA")
    assert cache_folder().name == "sims_kit"


def test_good_file_is_downloaded_once(server, cache):
    """The first call downloads to <cache>/<folder>/<file>, the second does not ask the server."""
    file = entry(f"{server.address}/good")
    path = fetch("toy", "folder", file)
    assert path == cache / "folder" / "toy.csv" and path.read_bytes() == GOOD
    assert path.stat().st_mode & 0o444 == 0o444  # a shared cache can be read by all
    assert fetch("toy", "folder", file) == path
    assert server.asked == ["/good"]


def test_next_address_is_tried(server, cache):
    """When the first address fails, the second one delivers."""
    path = fetch("toy", "folder", entry(f"{server.address}/missing", f"{server.address}/good"))
    assert path.read_bytes() == GOOD


def test_failure_is_tried_again(server, cache):
    """A failing address is asked three times before it is given up."""
    with pytest.raises(FetchError):
        fetch("toy", "folder", entry(f"{server.address}/missing"))
    assert server.asked == ["/missing"] * 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("missing", "404"), ("empty", "empty"), ("html", "HTML"), ("other", "hash"), ("cut", "IncompleteRead")],
)
def test_bad_answer_is_explained_and_not_kept(server, cache, answer, reason):
    """The error names dataset, address, place, reason and the way by hand, and the cache stays clean."""
    url = f"{server.address}/{answer}"
    with pytest.raises(FetchError) as caught:
        fetch("toy", "folder", entry(url))
    message = str(caught.value)
    for part in ("toy", url, str(cache / "folder" / "toy.csv"), reason, "curl", SHA256):
        assert part in message, part
    assert caught.value.__cause__ is not None
    assert list((cache / "folder").iterdir()) == []


@pytest.mark.parametrize("answer", ["empty", "html"])
def test_unknown_hash_still_recognises_what_is_no_data(server, cache, answer):
    """Without a published hash, empty answers and web pages are refused all the same."""
    with pytest.raises(FetchError):
        fetch("toy", "folder", entry(f"{server.address}/{answer}", sha256=None))
    assert list((cache / "folder").iterdir()) == []


def test_offline_and_not_there(cache):
    """Offline with an empty cache: no attempt is made, and the message says how to go on."""
    with pytest.raises(FetchError, match="SIMS_KIT_OFFLINE") as caught:
        fetch("toy", "folder", entry())
    assert "curl" in str(caught.value) and str(cache) in str(caught.value) and SHA256 in str(caught.value)


def test_offline_and_there(cache):
    """Offline, a file in the cache is found, also when cache and file may not be written."""
    folder = cache / "folder"
    folder.mkdir(parents=True)
    (folder / "toy.csv").write_bytes(GOOD)
    (folder / "toy.csv").chmod(0o444)
    folder.chmod(0o555)
    try:
        assert fetch("toy", "folder", entry()).read_bytes() == GOOD
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("content", "reason"), [(GOOD + b"x", "SHA-256"), (b"", "empty"), (HTML, "HTML")], ids=["other", "empty", "html"]
)
def test_wrong_file_in_the_cache_is_reported_and_left_alone(server, cache, content, reason):
    """A file that is there but wrong is never overwritten or removed."""
    path = cache / "folder" / "toy.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(FetchError, match="left as it is") as caught:
        fetch("toy", "folder", entry(f"{server.address}/good"))
    assert reason in str(caught.value) and SHA256 in str(caught.value)
    assert path.read_bytes() == content and server.asked == []
