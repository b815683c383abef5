"""A server on the loopback device, whose answers can fail as real ones do, and an empty cache."""

import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest


class Handler(StreamRequestHandler):
    """Answers with the bytes of `server.pages`."""

    def handle(self):
        """Read a request, note its path, and send the answer."""
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(path)
        self.wfile.write(self.server.pages[path])


@pytest.fixture
def server(monkeypatch):
    """A server with the network allowed and no waiting between attempts; `page` puts an answer on it."""
    monkeypatch.delenv("SIMS_KIT_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as running:
        running.pages, running.asked = {}, []

        def page(path, body, status=200, promised=None, header="Connection: close"):
            length = "" if promised == 0 else f"Content-Length: {promised or len(body)}\r\n"
            running.pages[path] = f"HTTP/1.1 {status} -\r\n{header}\r\n{length}\r\n".encode() + body
            return f"http://127.0.0.1:{running.server_address[1]}{path}"

        running.page = page
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield running
        running.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, beside the user's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"
