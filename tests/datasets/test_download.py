"""Interrupted downloads: continued where that is safe, begun anew where it is not, and never taken for the file."""

import contextlib
import gzip
import hashlib
import multiprocessing
import random
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pooch
import pytest

from sims_kit.datasets.checksums import lock_of
from sims_kit.datasets.fetch import fetch
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError

GOOD = random.Random(0).randbytes(2000)
HALF, REST = len(GOOD) // 2, f"bytes={len(GOOD) // 2}-"
CHANGED = GOOD[::-1]
V1, V2 = {"ETag": '"1"'}, {"ETag": '"2"'}
KILLS = 50
CHUNK = 1 << 14  # bytes; small, so that a part grows in many steps

# Runs in a child process that multiprocessing has forked from one with sims_kit already imported.
CHILD = """
import os, threading, time, warnings
os.environ.update(environment)
from tqdm import tqdm
from sims_kit.datasets import download
from sims_kit.datasets.fetch import fetch
download.CHUNK = chunk
tqdm.set_lock(threading.RLock())  # its own is a semaphore, which would outlive a killed process
warnings.simplefilter("ignore")
try:
    fetch("toy", "folder", file)
finally:
    exec(then)
"""


def entry(*urls, known=True, content=GOOD, name="toy.csv", size=None):
    """A registry entry of the file at these addresses, with its hash or without."""
    return DataFile(name=name, urls=urls, sha256=hashlib.sha256(content).hexdigest() if known else None, size=size)


def broken_off(url, cache, file=None, at=HALF):
    """Let a download break off three times at the same byte, so that it is given up; where the part lies."""
    part = cache / "folder" / "toy.csv.part"
    with pytest.raises(FetchError, match=f"are kept in {part}"):
        fetch("toy", "folder", file or entry(url))
    assert part.stat().st_size == at and not part.with_suffix("").exists()
    return part


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
@pytest.mark.parametrize("headers", [V1, {"Last-Modified": "Fri, 06 Oct 2023 00:00:00 GMT"}, {"ETag": 'W/"1"'}, {}])
def test_only_the_rest_is_asked_for(server, cache, known, headers):
    """After a break the next attempt asks for the rest, if a hash or a strong validator guards against a mixture."""
    url = server.page("/cut", GOOD, headers=headers, cuts=[HALF], obeys_if_range="ETag" in headers)
    assert fetch("toy", "folder", entry(url, known=known)).read_bytes() == GOOD
    is_guarded = known or headers in (V1, {"Last-Modified": "Fri, 06 Oct 2023 00:00:00 GMT"})
    assert server.ranges == [None, REST if is_guarded else None]


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_later_call_goes_on(server, cache, known):
    """What one call left behind, the next one completes; the space on the disk is reckoned without it."""
    url = server.page("/cut", GOOD, headers=V1, cuts=[HALF] * 3)
    file = entry(url, known=known, size=len(GOOD))
    part = broken_off(url, cache, file)
    server.ranges.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=HALF))
        path = fetch("toy", "folder", file)
    assert path.read_bytes() == GOOD and server.ranges == [REST]
    assert list(part.parent.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("obeys", [True, False], ids=["If-Range obeyed", "If-Range ignored"])
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_file_changed_on_the_server(server, cache, known, obeys):
    """A part of the old version is thrown away, whether the server says so or only shows another ETag."""
    broken_off(
        server.page("/cut", GOOD, headers=V1, cuts=[HALF] * 3), cache, entry(f"{address(server)}/cut", known=known)
    )
    server.ranges.clear()
    url = server.page("/cut", CHANGED, headers=V2, obeys_if_range=obeys)
    assert fetch("toy", "folder", entry(url, known=known, content=CHANGED)).read_bytes() == CHANGED
    assert server.ranges == [REST] if obeys else [REST, None]


def test_server_without_ranges(server, cache):
    """A server that sends the whole file instead of the rest makes it start again."""
    url = server.page("/cut", GOOD, cuts=[HALF], ranges=False)
    assert fetch("toy", "folder", entry(url)).read_bytes() == GOOD
    assert server.ranges == [None, REST]


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_mirror_goes_on_only_with_a_hash(server, cache, known):
    """The next address continues the part of the first one when the hash of the whole is known, else it starts anew."""
    urls = server.page("/cut", GOOD, headers=V1, cuts=[HALF] * 3), server.page("/mirror", GOOD, headers=V1)
    assert fetch("toy", "folder", entry(*urls, known=known)).read_bytes() == GOOD
    assert server.asked[3:] == ["/mirror"] and server.ranges[3:] == [REST if known else None]


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
def test_part_of_two_addresses_needs_a_hash(server, cache):
    """A part that a mirror went on with is not taken for the first address's own, should the hash be forgotten."""
    first = server.page("/cut", GOOD, headers=V1, cuts=[500] * 3)
    second = server.page("/mirror", CHANGED, cuts=[HALF] * 3)
    broken_off(first, cache, entry(first, second))
    server.ranges.clear()
    assert fetch("toy", "folder", entry(first, known=False)).read_bytes() == GOOD
    assert server.ranges == [None]


@pytest.mark.parametrize("garbage", [b"x" * HALF, b"x" * len(GOOD), b"x" * 3000], ids=["short", "full", "long"])
@pytest.mark.parametrize("size", [len(GOOD), None], ids=["size known", "size unknown"])
def test_wrong_part_is_thrown_away(server, cache, monkeypatch, garbage, size):
    """A part that leads to a wrong hash costs one clean start, not even one of the attempts."""
    monkeypatch.setattr("sims_kit.datasets.fetch.RETRIES", 0)
    part = cache / "folder" / "toy.csv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(garbage)
    assert fetch("toy", "folder", entry(server.page("/good", GOOD), size=size)).read_bytes() == GOOD
    assert server.ranges[-1] is None


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_interrupted_after_the_last_byte(server, cache, monkeypatch, known):
    """Ctrl-C keeps the part; a complete one is moved into place without asking the server again."""
    file = entry(server.page("/good", GOOD, headers=V1), known=known)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.fsync", lambda descriptor: signal.raise_signal(signal.SIGINT))
            fetch("toy", "folder", file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in sorted((cache / "folder").iterdir())] == ["toy.csv.part", "toy.csv.part.json"]
    assert fetch("toy", "folder", file).read_bytes() == GOOD
    assert server.asked == ["/good"]


def test_complete_part_of_unknown_length(server, cache):
    """A server that has nothing behind the part (416) confirms it, and the hash decides."""
    part = cache / "folder" / "toy.csv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD)
    assert fetch("toy", "folder", entry(server.page("/good", GOOD))).read_bytes() == GOOD
    assert server.ranges == [f"bytes={len(GOOD)}-"]


def test_login_page_does_not_cost_the_part(server, cache):
    """An answer that cannot be the file leaves the bytes that are there alone."""
    url = server.page("/cut", GOOD, cuts=[HALF] * 3)
    part = broken_off(url, cache)
    server.page("/cut", b"<html>Welcome to the airport", ranges=False)
    with pytest.raises(FetchError, match="web page"):
        fetch("toy", "folder", entry(url))
    assert part.read_bytes() == GOOD[:HALF]


def test_answer_without_length_that_ends_early(server, cache):
    """Where only the registry knows the size, an early end is still seen, and the rest is fetched."""
    url = server.page("/cut", GOOD, cuts=[HALF], tells_length=False)
    assert fetch("toy", "folder", entry(url, size=len(GOOD))).read_bytes() == GOOD
    assert server.ranges == [None, REST]


@pytest.mark.parametrize("labelled", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "labelled as encoding"])
def test_packed_file_is_stored_as_published(server, cache, labelled):
    """A .gz file is not unpacked on the way, also where the server calls its packing an encoding."""
    packed = gzip.compress(GOOD)
    file = entry(server.page("/good", packed, headers=labelled), content=packed, name="toy.csv.gz", size=len(packed))
    assert fetch("toy", "folder", file).read_bytes() == packed
    assert server.encodings == ["identity"]  # so that a server does not pack a file that is not packed


def test_silent_server_is_given_up(server, cache, monkeypatch):
    """A server that stops sending without closing the line is left after a while, and what came is kept."""
    monkeypatch.setattr("sims_kit.datasets.download.TIMEOUT", (5, 0.1))
    woken = threading.Event()
    url = server.page("/slow", GOOD, cuts=[HALF] * 3, at_cut=lambda: woken.wait(5), ranges=False)
    with pytest.raises(FetchError, match="timed out"):
        fetch("toy", "folder", entry(url))
    woken.set()


def address(server):
    """Where the server is."""
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, because sims_kit is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sims_kit.datasets.fetch"])
    return context


def child(processes, cache, file, then=""):
    """A process that fetches the file into the cache."""
    environment = {"SIMS_KIT_DATA": str(cache), "SIMS_KIT_OFFLINE": "", "NO_PROXY": "127.0.0.1"}
    names = {"environment": environment, "chunk": CHUNK, "file": file, "then": then}
    return processes.Process(target=exec, args=(CHILD, names), daemon=True)


def test_two_processes_at_once(server, cache, processes, monkeypatch):
    """The second process says that it waits for the first one, and then finds the file without a download."""
    begun, waiting, told = threading.Event(), threading.Event(), []

    def tell(message, *arguments):
        told.append(message % arguments)
        waiting.set()

    monkeypatch.setattr(pooch.get_logger(), "info", tell)
    url = server.page("/slow", GOOD, cuts=[HALF], at_cut=lambda: (begun.set(), waiting.wait(60)))
    first = child(processes, cache, entry(url))
    first.start()
    assert begun.wait(60)
    assert fetch("toy", "folder", entry(url)).read_bytes() == GOOD
    first.join()
    assert first.exitcode == 0 and told == ["Waiting for another process that downloads 'toy.csv'."]
    assert server.ranges == [None, REST]  # both by the first process


def test_file_that_appears_while_waiting_is_checked(server, cache, monkeypatch):
    """What somebody else put there meanwhile is not trusted."""
    lock = lock_of(cache, "folder.toy.csv")
    path = cache / "folder" / "toy.csv"

    def place(*arguments):
        path.parent.mkdir()
        path.write_bytes(CHANGED)
        lock.release()

    monkeypatch.setattr(pooch.get_logger(), "info", place)
    with lock, pytest.raises(FetchError, match="left as it is"):
        fetch("toy", "folder", entry(f"{address(server)}/toy"))
    assert server.asked == []


@pytest.mark.filterwarnings("ignore:toy. no SHA-256:UserWarning")
@pytest.mark.parametrize("known", [True, False], ids=["hash known", "hash unknown"])
def test_killed_at_random_bytes(server, cache, processes, known):
    """Killed 50 times, the cache never holds a wrong file; not even when the file changes on the server meanwhile."""
    choose = random.Random(1)
    versions = [(choose.randbytes(1_000_000), {"ETag": f'"{i}"'}) for i in range(2)]
    right = [versions[0][0]] if known else [content for content, _ in versions]
    path, current = cache / "folder" / "toy.csv", 0
    part = path.with_name("toy.csv.part")
    file = entry(f"{address(server)}/toy", known=known, content=versions[0][0])

    def size():
        with contextlib.suppress(FileNotFoundError):
            return part.stat().st_size
        return 0

    continued = finished = 0
    for _ in range(KILLS):
        current = choose.choices([current, 1 - current], [0.9, 0.1])[0]
        content, headers = versions[current]
        before, dead = size(), threading.Event()
        somewhere, at_end = before + choose.randrange(1, 100_000), len(content)  # at the end it checks, moves and pins
        goal = choose.choices([somewhere, at_end], [0.8, 0.2])[0]
        cut = min(goal + 2 * CHUNK, len(content))  # what the child holds in memory never reaches the disk
        server.page("/toy", content, headers=headers, cuts=[cut], at_cut=lambda dead=dead: dead.wait(5))
        server.ranges.clear()
        victim = child(processes, cache, file, then="time.sleep(60)")
        victim.start()
        wait_for(lambda goal=goal, before=before: path.exists() or size() >= goal > before)
        time.sleep(choose.uniform(0, 0.002))
        victim.kill()
        victim.join()
        dead.set()
        assert victim.exitcode == -signal.SIGKILL
        continued += any(server.ranges)
        if path.exists():
            finished += 1
            assert path.read_bytes() in right
            shutil.rmtree(cache)
    assert continued > KILLS / 4 and finished < KILLS / 4  # else little was tried
    server.page("/toy", versions[0][0], headers=versions[0][1])
    assert fetch("toy", "folder", file).read_bytes() in right
    assert list(path.parent.iterdir()) == [path]


def wait_for(condition, seconds=0.5):
    """Wait until a condition holds, but not for long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.0002)
