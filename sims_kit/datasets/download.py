"""One file over HTTP, into a part that an interrupted download leaves behind and the next one continues."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError as BrokenBody

from sims_kit.progress import progress_bar

CHUNK = 1 << 18  # bytes between two writes; larger ones are no faster, smaller ones move the bar of a slow line sooner
TIMEOUT = (10, 30)  # seconds to connect, and without a byte; a dead server must not hold a lesson for ever
HTML_STARTS = (b"<!doctype html", b"<html")  # how an error page begins, in small letters


class Downloader:
    """A downloader for pooch, whose bytes gather in a part until they are complete and right.

    A part is continued where that cannot mix two versions of a file: when the hash of the whole is known, or when
    address and validator (a strong ETag, else Last-Modified) are those that the part was begun with. They lie in
    a record beside the part.

    Parameters
    ----------
    part
        Where the bytes gather: beside the file's place, so that it can be moved there at once.
    problem
        What is wrong with a complete file, as ``"has SHA-256 ..."``, or None.
    size
        Bytes of the file, if they are known.
    hash_known
        Whether `problem` compares a hash, so that no mixture would pass.

    Raises
    ------
    ValueError
        The answer is no file or not the right one. Nothing of it is kept.
    requests.RequestException
        The server cannot be reached, refuses, or stops before the end. The part is kept.
    OSError
        The disk is too small or cannot be written. The part is kept.
    """

    def __init__(self, part: Path, problem: Callable[[Path], str | None], *, size: int | None, hash_known: bool):
        self.part, self.record = part, part.with_name(f"{part.name}.json")
        self.problem, self.size, self.hash_known = problem, size, hash_known

    def __call__(self, url: str, output_file: str, pooch: object = None) -> None:
        """Download `url` to `output_file`, which appears when it is complete and right."""
        Path(output_file).unlink()  # pooch's empty file: a killed process would leave it behind
        was_continued = self._receive(url)
        problem = self.problem(self.part)
        if problem and was_continued:  # perhaps the part was of another version: once more, from the start
            self._discard()
            self._receive(url)
            problem = self.problem(self.part)
        if problem:
            self._discard()
            raise ValueError(f"the answer {problem}")
        self.record.unlink(missing_ok=True)
        os.replace(self.part, output_file)

    def _receive(self, url: str) -> bool:
        """Bring the part to its full length; whether it holds bytes of an earlier attempt."""
        record = self._read_record(url)
        there = self.part.stat().st_size if self.part.exists() else 0
        start = there if self.hash_known or record.get("validator") else 0
        if start and start == (self.size or record.get("length")):
            return True
        headers = {"Accept-Encoding": "identity"}  # as published: a .gz must not be unpacked on the way
        if start:
            headers["Range"] = f"bytes={start}-"
            if record.get("validator"):
                headers["If-Range"] = record["validator"]
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if start and response.status_code == 416 and self.hash_known:
                return True  # nothing lies beyond the part: the hash tells whether it is the file
            if start and not _continues(response, start, record):
                if response.status_code in (206, 416):
                    self._discard()
                    raise ValueError(f"the server cannot continue at byte {start:,} (HTTP {response.status_code})")
                start = 0  # the whole file, because it changed or because the server knows no ranges
            if start and not record:  # bytes of two addresses: from now on only the hash can judge the part
                self.record.unlink(missing_ok=True)
            try:
                self._write(url, response, start, there)
            except BrokenBody as error:
                kept = self.part.stat().st_size if self.part.exists() else 0
                raise requests.ConnectionError(f"the connection broke after {kept:,} bytes: {error}") from error
        return start > 0

    def _write(self, url: str, response: requests.Response, start: int, there: int) -> None:
        """Write an answer's bytes behind the first `start` bytes of the part, where `there` bytes lie."""
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        length = start + int(length) if length.isdigit() else None
        chunks = response.raw.stream(CHUNK, decode_content=False)
        first = next(chunks, b"")
        if start == 0 and (problem := self._refusal(response, first, length)):
            raise ValueError(f"the answer {problem}")  # before the part is touched: it may still be continued
        length = length or self.size
        self._check_space((length or 0) - there)
        with self.part.open("ab" if start else "wb") as opened:
            if start == 0:  # in this order: a part never has the record of another one
                self.record.write_text(json.dumps({"url": url, "validator": _validator(response), "length": length}))
            with progress_bar(
                total=length, initial=start, desc=self.part.stem, unit="B", unit_scale=True, bar_format=None
            ) as bar:
                for chunk in chain([first], chunks):
                    opened.write(chunk)
                    bar.update(len(chunk))
            opened.flush()
            os.fsync(opened.fileno())
            if length is not None and opened.tell() != length:
                raise requests.ConnectionError(f"{opened.tell():,} bytes came instead of {length:,}")

    def _refusal(self, response: requests.Response, first: bytes, length: int | None) -> str | None:
        """Why an answer cannot be the file, told by how it begins."""
        status, encoding = response.status_code, response.headers.get("Content-Encoding", "identity")
        if problem := _plain_problem(first):
            return f"{problem} (HTTP {status} {response.reason})"
        if status != 200:
            return f"has status {status} {response.reason}, not 200: it is not the file"
        if encoding != "identity" and not self.part.stem.endswith(".gz"):
            return f"is packed ({encoding}), although the file was asked for as it is"
        if self.size and length not in (None, self.size):
            return f"has {length:,} bytes instead of {self.size:,}: it is damaged or of another version"
        return None

    def _check_space(self, missing: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            needed, free = (tqdm.format_sizeof(n, "B") for n in (missing, free))
            raise OSError(f"{needed} more are needed, and {free} are free on the disk of {self.part.parent}.")

    def _read_record(self, url: str) -> dict:
        """What is known about the part, if it was begun at this address."""
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):  # none, or torn by a crash
            return {}
        return record if record.get("url") == url else {}

    def _discard(self) -> None:
        """Remove the part and its record."""
        self.part.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


def plain_problem(path: Path) -> str | None:
    """What is plainly wrong with a file, whatever it should hold: it cannot be opened, is empty, or is a web page."""
    try:
        with path.open("rb") as opened:
            return _plain_problem(opened.read(512))
    except OSError as error:  # a folder of that name, no permission
        return f"cannot be opened: {error.strerror}"


def _plain_problem(start: bytes) -> str | None:
    """What is plainly wrong with a file that starts like this."""
    if not start:
        return "is empty (0 bytes)"
    if start[:512].lstrip().lower().startswith(HTML_STARTS):
        return "is a web page (HTML), not data: the server sent an error or a login page"
    return None


def _continues(response: requests.Response, start: int, record: dict) -> bool:
    """Whether an answer goes on at byte `start` of the very version that the record tells of."""
    at_start = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    same = not record.get("validator") or _validator(response) in (None, record["validator"])
    return response.status_code == 206 and at_start and same


def _validator(response: requests.Response) -> str | None:
    """What tells this version of a file from others at the same address: a strong ETag, else Last-Modified."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag
