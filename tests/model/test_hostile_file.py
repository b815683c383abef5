"""Model files made to harm: refused by name, before memory is taken or anything is built."""

import io
import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from sims_kit.errors import ModelFileError
from sims_kit.model import SIMSClassifier, load_model, save_model
from sims_kit.model import file as model_file

GOOD = Path(__file__).with_name("files") / "version_3.safetensors"
FLAG = Path("/tmp/sims_kit_was_here")


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (FLAG.touch, ())


def parts() -> tuple[dict, dict, bytes]:
    """Index, header and tensors of a good file."""
    content = GOOD.read_bytes()
    length = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + length])
    return index, json.loads(index["__metadata__"]["header"]), content[8 + length :]


def packed(index: dict, tensors: bytes, length: int | None = None) -> bytes:
    """A safetensors file, perhaps with a wrong length of its index."""
    text = json.dumps(index).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tensors


def with_header(**changes) -> bytes:
    """The good file with other entries in its header."""
    index, header, tensors = parts()
    index["__metadata__"]["header"] = json.dumps(header | changes)
    return packed(index, tensors)


def with_tensor(name: str, **changes) -> bytes:
    """The good file with another announcement of one tensor."""
    index, _, tensors = parts()
    index[name] |= changes
    return packed(index, tensors)


def renamed(old: str, new: str) -> bytes:
    """The good file with one tensor under another name."""
    index, _, tensors = parts()
    index[new] = index.pop(old)
    return packed(index, tensors)


def nan_weights() -> bytes:
    """The good file with one weight that is no number."""
    index, _, tensors = parts()
    start, _ = index[W]["data_offsets"]
    return packed(index, tensors[:start] + b"\xff" * 4 + tensors[start + 4 :])


def pickled() -> bytes:
    """A pickle that runs code, behind the end of a good file."""
    return GOOD.read_bytes() + pickle.dumps(Bomb())


def checkpoint() -> bytes:
    """A file of torch.save that runs code when it is unpickled."""
    file = io.BytesIO()
    torch.save({"state_dict": Bomb()}, file)
    return file.getvalue()


def zipped() -> bytes:
    """A zip archive with a path that leads out of it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.safetensors", GOOD.read_bytes())
    return file.getvalue()


def first_weights() -> str:
    """The name of some float tensor."""
    return next(name for name, entry in parts()[0].items() if entry.get("dtype") == "F32" and len(entry["shape"]) == 2)


W = first_weights()
# fmt: off
HOSTILE = {
    "pickle": (lambda: pickle.dumps(Bomb()), "its index alone claims"),
    "pickle behind the tensors": (pickled, "bytes of tensors where its index announces"),
    "checkpoint that runs code": (checkpoint, "its index alone claims"),
    "zip archive": (zipped, "its index alone claims"),
    "seven bytes": (lambda: b"1234567", "its index alone claims"),
    "index of 2 GB": (lambda: packed(*parts()[::2], length=2**31), "claims 2,147,483,648"),
    "index of 16 exabytes": (lambda: packed(*parts()[::2], length=2**64 - 1), "claims 18,446,744,073,709,551,615"),
    "index without end": (lambda: packed({}, b"")[:8] + b"[" * 2**20, "index"),
    "index nested deep": (lambda: (2**20).to_bytes(8, "little") + b"[" * 2**20, "cannot be read"),
    "index that is a list": (lambda: packed([1, 2], b""), "cannot be read"),
    "header nested deep": (lambda: packed({"__metadata__": {"format": "sims_kit", "header": "[" * 2**20}}, b""),
                           "cannot be read"),
    "header that is a list of its keys": (
        lambda: packed({"__metadata__": {"format": "sims_kit", "header": json.dumps(list(parts()[1]))}}, b""),
        "no mapping"),
    "texts that are a list": (lambda: packed({"__metadata__": ["format"]}, b""), "not one of sims_kit's"),
    "overlapping tensors": (lambda: with_tensor(W, data_offsets=[0, 8]), "where one should start at"),
    "tensor beyond the end": (lambda: with_tensor(W, data_offsets=[10**15, 10**15 + 8]), "where one should start at"),
    "negative place": (lambda: with_tensor(W, data_offsets=[-8, 8]), "no positions"),
    "place that is text": (lambda: with_tensor(W, data_offsets="ab"), "cannot be read"),
    "shape larger than its bytes": (lambda: with_tensor(W, shape=[10**9, 10**9]), "bytes"),
    "negative shape": (lambda: with_tensor(W, shape=[-1, -8]), "shape"),
    "shape of texts": (lambda: with_tensor(W, shape=["1"]), "shape"),
    "type that does not exist": (lambda: with_tensor(W, dtype="OBJECT"), "'OBJECT'"),
    "integers for weights": (lambda: with_tensor(W, dtype="I64", shape=[1, 4]), "needs|bytes"),
    "path in a name": (lambda: renamed(W, "../../etc/passwd"), "does not hold the tensors"),
    "absurd width": (lambda: with_header(network={**parts()[1]["network"], "n_d": 10**12}), "needs"),
    "absurd depth": (lambda: with_header(network={**parts()[1]["network"], "n_steps": 10**9}), "layers or more"),
    "absurd ensemble": (lambda: with_header(network={**parts()[1]["network"], "n_models": 10**9}), "layers or more"),
    "width beyond 64 bits": (lambda: with_header(network={**parts()[1]["network"], "n_d": 10**30}), "cannot be built"),
    "no ghost batch": (lambda: with_header(network={"virtual_batch_size": 0}), "cannot be built"),
    "setting that is a list": (lambda: with_header(network={"gamma": [1.3]}), "gamma is"),
    "setting that is no number": (lambda: with_header(network={"gamma": float("nan")}), "gamma is nan"),
    "a hundred thousand classes": (lambda: with_header(classes=list(map(str, range(100_000)))), "needs"),
    "no genes": (lambda: with_header(genes=[]), "cannot be built"),
    "weights that are NaN": (nan_weights, "NaN"),
    "temperature that is infinite": (lambda: with_header(calibration={"temperature": float("inf")}), "temperature inf"),
    "version that is a list": (lambda: with_header(format_version=[3]), "format version"),
}
# fmt: on


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, monkeypatch, make, message):
    """Each is refused with its own message; no network is built, no code run, and little memory taken."""
    monkeypatch.setattr(model_file, "SIMSClassifier", lambda *args, **options: pytest.fail("a network was built"))
    FLAG.unlink(missing_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(make())
    tracemalloc.start()
    with pytest.raises(ModelFileError, match=message) as error:
        load_model(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "model.safetensors" in str(error.value) and len(str(error.value)) < 1000
    assert peak < 4 * path.stat().st_size + 2**24  # names as Python's objects
    assert not FLAG.exists() and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_sparse_file_of_2_gb(tmp_path):
    """A file that really is as long as its index claims is refused unread."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((2**31).to_bytes(8, "little"))
        file.truncate(2**31 + 8)
    with pytest.raises(ModelFileError, match="the most that is read"):
        load_model(path)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_memory_stays_within_four_files(tmp_path):
    """Loading takes no more than four times the file: for 20,000 genes, measured in a process of its own."""
    names = dict(genes=[f"gene {i}" for i in range(20_000)], classes=list("abcdefghij"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SIMSClassifier(20_000, 10, **names)
    model.network.encoder.att_transformers[0].bn.bn.num_batches_tracked += 1  # as if it had been trained
    path = save_model(model, tmp_path / "model.safetensors")
    code = (
        "import sys; from sims_kit.model import load_model\n"
        "def kilobytes(key): return int(open('/proc/self/status').read().split(key + ':')[1].split()[0])\n"
        "load_model(sys.argv[1]); open('/proc/self/clear_refs', 'w').write('5'); before = kilobytes('VmRSS')\n"
        "load_model(sys.argv[2]); print(kilobytes('VmHWM') - before)"
    )
    command = [sys.executable, "-c", code, str(GOOD), str(path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024
    assert 1 < grown / path.stat().st_size < 4
