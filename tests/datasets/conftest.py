"""A server on the loopback device whose pages fail in every way that real ones do, and an empty cache."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Page:
    """What the server answers at one address."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)  # an ETag here also serves If-Range
    ranges: bool = True
    obeys_if_range: bool = True
    tells_length: bool = True
    cuts: list[int] = field(default_factory=list)  # per request, the byte of the body where it breaks off
    at_cut: Callable[[], object] = lambda: None


class Handler(BaseHTTPRequestHandler):
    """Answers from `server.pages`, and 404 for all else."""

    def do_GET(self):
        """Send the answer and note what was asked for."""
        self.server.asked.append(self.path)
        self.server.ranges.append(self.headers["Range"])
        self.server.encodings.append(self.headers["Accept-Encoding"])
        page = self.server.pages.get(self.path, Page(b"nothing here", status=404))
        status, start, end = page.status, 0, len(page.body)
        unchanged = self.headers["If-Range"] in (None, page.headers.get("ETag")) or not page.obeys_if_range
        if self.headers["Range"] and page.ranges and unchanged:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < end else 416
        self.send_response(status)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if status in (206, 416):
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}" if status == 206 else f"bytes */{end}")
        if page.tells_length:
            self.send_header("Content-Length", str(max(end - start, 0)))
        self.end_headers()
        cut = page.cuts.pop(0) if page.cuts else None
        self.wfile.write(page.body[start:cut])
        if cut is not None:
            self.wfile.flush()
            page.at_cut()

    def log_message(self, *arguments):
        """Stay silent."""


class Server(ThreadingHTTPServer):
    """The server, what it was asked for, and its pages."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.ranges, self.encodings = {}, [], [], []

    def page(self, path: str, body: bytes, **options) -> str:
        """Put a page on the server; its address."""
        self.pages[path] = Page(body, **options)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *arguments):
        """Stay silent when a client goes away."""


@pytest.fixture
def server(monkeypatch):
    """A server on a free port, with the network allowed and no waiting between attempts."""
    monkeypatch.delenv("SIMS_KIT_OFFLINE", raising=False)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    running = Server()
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
