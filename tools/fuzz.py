"""Throw spoiled files at the readers: they must read them or say what is wrong, soon and in little memory.

    python tools/fuzz.py                            # 100,000 inputs for each reader
    python tools/fuzz.py --inputs 5000 model        # fewer, for one

Inputs are good files with bytes, fields or whole values changed. A reader fails when it raises anything but its
documented errors, takes longer than five seconds of the processor, or lets the process grow. What made it fail is kept
in `tests/fuzz/<reader>/`, where a test reads it ever after. Exits with 1 when something failed.
"""

import argparse
import copy
import gzip
import hashlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from anndata import AnnData

from sims_kit.datasets import attach_labels, read
from sims_kit.datasets.registry import read_registry, registry_path
from sims_kit.errors import DataError, LabelError, ModelFileError, RegistryError, UnknownNameError
from sims_kit.model import load_model

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "fuzz"
SECONDS = 5  # of the processor; longer is a hang: good inputs take hundredths
GROWTH = 300 * 2**20  # bytes that the process may grow by over all inputs, which are of some kilobytes
ODD = [  # values that readers tend to be wrong about
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "a", "0", "\x00", "\ud7ff", "../../x", "/etc/passwd", "é" * 300, "x" * 100_000, "1" * 5000),
    *([], [[]], {}, {"a": {}}, [None], [0, 0], ["a", "a"], list(range(300))),
]
TOKENS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\r", b'"', b"''", b",", b"\t", b";", b" ", b",,"),
    *(
        b"nan",
        b"NA",
        b"inf",
        b"-inf",
        b"1e999",
        b"-1",
        b"1e-400",
        b"0x10",
        b"1_000",
        b"TRUE",
        b"\xc3\x28",
        b"\xe2\x88\x9e",
    ),
    *(b"[" * 2000, b"{", b"}", b"&a", b"*a", b"!!python/object:os.system", b"<html>", b"\x1f\x8b", b"0" * 10_000),
]


class TooLong(BaseException):
    """A reader hangs; nothing that a reader catches."""


class Reader(NamedTuple):
    """What is tried."""

    read: Callable[[Path], Any]
    documented: tuple[type[Exception], ...]
    seeds: Callable[[], dict[str, bytes]]
    """Good files: ending and content."""
    spoil: Callable[[bytes, random.Random], bytes]
    """Changes values where the format allows it, so that what lies behind the first check is reached too."""


def main() -> int:
    """Try the readers that were asked for; 0 when none failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("readers", nargs="*", help=f"by default all: {', '.join(READERS)}")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    n_failed = sum(try_reader(name, options.inputs, options.seed) for name in options.readers or READERS)
    return int(n_failed > 0)


def try_reader(name: str, n_inputs: int, seed: int, kept: Path = KEPT) -> int:
    """Read that many spoiled files, print what came of them, keep those that failed; how many failed."""
    reader, draw, outcomes = READERS[name], random.Random(f"{name} {seed}"), Counter()
    seeds, start, slowest, peak = list(reader.seeds().items()), time.perf_counter(), 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_inputs):
            ending, content = draw.choice(seeds)
            content = reader.spoil(content, draw) if draw.random() < 0.6 else content
            for _ in range(draw.choice([0, 1, 1, 2, 5])):
                content = spoil_bytes(content, draw)
            before = time.process_time()
            outcome = attempt(reader, content, Path(folder) / f"input{ending}")
            slowest = max(slowest, time.process_time() - before)
            if number == min(200, n_inputs // 2):  # libraries have loaded what they need
                peak = memory()
            if peak is not None and memory() > peak + GROWTH:
                outcome, peak = "grew", memory()
            outcomes[outcome] += 1
            if outcome not in ("read", *(error.__name__ for error in reader.documented)):
                (kept / name).mkdir(parents=True, exist_ok=True)
                (kept / name / f"{hashlib.sha256(content).hexdigest()[:12]}{ending}").write_bytes(content)
    failed = n_inputs - sum(outcomes[outcome] for outcome in ("read", *(e.__name__ for e in reader.documented)))
    grown = max(0, memory() - (peak or memory()))
    told = ", ".join(f"{outcome} {n:,}" for outcome, n in outcomes.most_common())
    print(f"{name}: {n_inputs:,} inputs, {failed} failed ({told}); slowest {slowest:.2f} s of the processor, "
          f"memory grew by {grown / 2**20:.0f} MB, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    return failed


def attempt(reader: Reader, content: bytes, path: Path) -> str:
    """``"read"``, or the name of the error that came."""
    path.write_bytes(content)
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
        return "read"
    except (Exception, TooLong) as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def spoil_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes changed, cut out, doubled, or put in, without regard to what they mean."""
    at = draw.randrange(len(content) + 1)
    end = min(len(content), at + draw.choice([1, 1, 2, 8, 64, 1000]))
    kind = draw.randrange(6)
    if kind == 0:
        return content[:at] + draw.randbytes(end - at) + content[end:]
    if kind == 1:
        return content[:at] + content[end:]
    if kind == 2:
        return content[:end] + content[at:end] * draw.choice([1, 2, 50]) + content[end:]
    if kind == 3:
        return content[:at] + draw.choice(TOKENS) + content[at:]
    if kind == 4:
        return content[:at] + draw.choice(TOKENS) + content[end:]
    return content[:at]


def spoil_value(value: Any, draw: random.Random) -> Any:
    """One value somewhere inside a tree of dicts and lists changed, left out, renamed or doubled."""
    value = copy.deepcopy(value)
    parent, key, node = None, None, value
    while isinstance(node, dict | list) and node and draw.random() < 0.85:
        parent, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if parent is None:
        return draw.choice(ODD)
    kind = draw.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(copy.deepcopy(node))
    elif kind == 1 and isinstance(key, str):
        parent[draw.choice([key[:-1], key.upper(), f"{key} ", "x", ""])] = parent.pop(key)
    elif kind == 2 and type(node) in (int, float):
        parent[key] = draw.choice([node + 1, node - 1, -node, node * 2, node * 10**9, str(node), float(node)])
    else:
        parent[key] = draw.choice(ODD)
    return value


def spoil_model(content: bytes, draw: random.Random) -> bytes:
    """A model file whose index, or the header in it, has another value; its length is right."""
    length = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + length])
    if draw.random() < 0.6:
        header = spoil_value(json.loads(index["__metadata__"]["header"]), draw)
        index["__metadata__"]["header"] = json.dumps(header)
    else:
        index = spoil_value(index, draw)
    text = json.dumps(index).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def spoil_registry(content: bytes, draw: random.Random) -> bytes:
    """A registry with another value."""
    return yaml.safe_dump(spoil_value(yaml.safe_load(content), draw), allow_unicode=True).encode()


def spoil_fields(content: bytes, draw: random.Random) -> bytes:
    """A table with other fields, rows or delimiters; packed as it was."""
    is_packed = content.startswith(b"\x1f\x8b")
    lines = (gzip.decompress(content) if is_packed else content).split(b"\n")
    row = draw.randrange(len(lines))
    fields, kind = lines[row].split(b","), draw.randrange(4)
    if kind == 0:
        fields[draw.randrange(len(fields))] = draw.choice(TOKENS)
    elif kind == 1:
        del fields[draw.randrange(len(fields))]
    elif kind == 2:
        fields.insert(draw.randrange(len(fields)), draw.choice(TOKENS))
    lines[row] = b",".join(fields)
    if kind == 3:
        lines.insert(row, draw.choice(lines))
    spoiled = b"\n".join(lines)
    if draw.random() < 0.1:
        spoiled = spoiled.replace(b",", draw.choice([b"\t", b";", b" ", b"|", b", "]))
    return gzip.compress(spoiled, 1) if is_packed else spoiled


def memory() -> int:
    """The most that this process has used so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_labels(path: Path) -> AnnData:
    """Labels from a table, for cells of known names."""
    cells = AnnData(obs=pd.DataFrame(index=[f"cell_{number}" for number in range(6)]))
    attach_labels(cells, path, "cell_type")
    return cells


def _model_seeds() -> dict[str, bytes]:
    files = sorted((ROOT / "tests/model/files").glob("*.safetensors"))
    return {f".{number}.safetensors": path.read_bytes() for number, path in enumerate(files)}


def _registry_seeds() -> dict[str, bytes]:
    registry = yaml.safe_load(registry_path().read_text(encoding="utf-8"))
    by_kind = {entry["source"]["kind"]: (name, entry) for name, entry in registry["datasets"].items()}
    for _, entry in by_kind.values():
        entry.pop("alternatives", None)
    return {".yaml": yaml.safe_dump({**registry, "datasets": dict(by_kind.values())}).encode()}


def _matrix_seeds() -> dict[str, bytes]:
    rows = [f"cell_{i}," + ",".join(str((i * j) % 4 * 0.5) for j in range(9)) for i in range(6)]
    table = "\n".join(["cell," + ",".join(f"GENE{j}" for j in range(9)), *rows, ""]).encode()
    return {".csv": table, ".tsv": table.replace(b",", b"\t"), ".csv.gz": gzip.compress(table, 1)}


def _label_seeds() -> dict[str, bytes]:
    table = b"cell,cell_type,age\n" + b"".join(b"cell_%d,type %d,%d\n" % (i, i % 2, 20 + i) for i in range(6))
    return {".csv": table, ".txt": table.replace(b",", b"\t"), ".csv.gz": gzip.compress(table, 1)}


def _too_long(*arguments) -> None:
    raise TooLong(f"not done after {SECONDS} s")


READERS = {
    "model": Reader(load_model, (ModelFileError,), _model_seeds, spoil_model),
    "registry": Reader(read_registry.__wrapped__, (RegistryError,), _registry_seeds, spoil_registry),
    "matrix": Reader(read, (DataError,), _matrix_seeds, spoil_fields),
    "labels": Reader(read_labels, (DataError, LabelError, UnknownNameError), _label_seeds, spoil_fields),
}

if __name__ == "__main__":
    sys.exit(main())
