"""Model files: they come back the same, files of earlier versions load, and none runs code or takes much memory."""

import hashlib
import json
import pickle
import subprocess
import sys
import tracemalloc
from datetime import date
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

import sims_kit as sk
from sims_kit.errors import FetchError, ModelFileError, SettingError
from sims_kit.model import MaskedPretraining, SIMSClassifier, load_model, save_model
from sims_kit.model import file as model_file
from sims_kit.model.pretraining import mask_genes

# version_N.safetensors was written by the sims_kit of that time: `save_model` of a classifier such as the one of the
# fixture `model`, with recipe=dict(n_models=2, n_d=2, n_a=2), eight calibration cells and a temperature of 1.5; beside
# it, as JSON, cells and their probabilities. A new format version needs its own; the older ones stay as they are.
FILES = Path(__file__).with_name("files")
PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"
GOOD = FILES / f"version_{model_file.VERSION}.safetensors"
FLAG = Path("/tmp/sims_kit_was_here")
Bomb = type("Bomb", (), {"__reduce__": lambda self: (FLAG.touch, ())})  # runs code when it is unpickled
Memory = type("Memory", (), {"__reduce__": lambda self: (bytearray, (10**6,))})  # takes memory, which torch allows


def _fitted(recipe):
    """A small model that has names and saw a training batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SIMSClassifier(4, 2, genes=list("abcd"), classes=["B cell", "T cell"], recipe=recipe)
        model(torch.rand(8, 4))
    return model.eval()


@pytest.fixture
def model():
    """A fitted model with provenance, metrics, and three validation cells, two of them right."""
    model, labels = _fitted("thesis"), torch.tensor([0, 1, 1])
    model.provenance = {"files": ["cells.h5ad"], "class_label": "cell_type", "seed": 0}
    model.test_metrics = pd.Series({"accuracy_micro": 0.75})
    model.novelty.measure([(torch.rand(3, 4), labels)], torch.ones(len(model.classes)))
    model.calibrate(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), labels, torch.rand(3, 2))
    return model


@pytest.mark.parametrize("recipe", ["thesis", "default"])
def test_round_trip(tmp_path, recipe):
    """Logits, names, provenance and metrics come back, whatever the recipe; loading draws no random numbers."""
    model = _fitted(recipe)
    model.provenance, model.test_metrics = {"seed": 3}, pd.Series({"loss": 0.5})
    model.temperature.fill_(1.7), model.logit_adjustment.copy_(torch.tensor([0.3, -0.1]))
    path = save_model(model, tmp_path / "new folder" / f"{'m' * 243}.safetensors")  # the longest name
    state = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    cells = torch.rand(5, 4)
    torch.testing.assert_close(loaded(cells), model(cells), rtol=0, atol=0)
    torch.testing.assert_close(loaded.probabilities(cells), model.probabilities(cells), rtol=0, atol=0)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert (loaded.genes, loaded.classes, loaded.provenance) == (model.genes, model.classes, model.provenance)
    pd.testing.assert_series_equal(loaded.test_metrics, model.test_metrics, check_names=False)
    assert loaded.calibration_cells is None and str(loaded.device) == "cpu"
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written left
    assert path.stat().st_mode & 0o777 == 0o644  # others may read it
    path.write_bytes(bytes(path.stat().st_size))
    torch.testing.assert_close(loaded(cells), model(cells), rtol=0, atol=0)  # it does not change with its file
    loaded.train()(torch.rand(8, 4)).sum().backward()


def test_round_trip_of_an_encoder(tmp_path):
    """A pretrained encoder that saw a training batch comes back the same; it is not taken for a classifier."""
    encoder = MaskedPretraining(4, genes=list("abcd"), recipe=dict(n_models=2), mask_share=0.3)
    masked, encoder.provenance = mask_genes(torch.rand(20, 4).to_sparse_csr(), 0.5), {"seed": 3}
    encoder(masked)
    path = save_model(encoder.eval(), tmp_path / "encoder.safetensors")
    loaded = load_model(path)
    torch.testing.assert_close(loaded(masked)[1], encoder(masked)[1], rtol=0, atol=0)
    assert (loaded.genes, loaded.provenance, loaded.mask_share) == (encoder.genes, encoder.provenance, 0.3)
    assert model_file.fitted_model(path, kind=MaskedPretraining).is_fitted
    with pytest.raises(SettingError, match="holds MaskedPretraining"):
        model_file.fitted_model(path)
    with pytest.raises(SettingError, match="Expected a MaskedPretraining"):
        model_file.fitted_model(GOOD, kind=MaskedPretraining)


@pytest.mark.parametrize("version", range(1, model_file.VERSION + 1))
def test_earlier_versions(version, tmp_path):
    """A file of every version gives the probabilities of its time, and so does the file it is saved into."""
    path = FILES / f"version_{version}.safetensors"
    answers = json.loads(path.with_suffix(".json").read_text())
    model = load_model(path)
    for loaded in (model, load_model(save_model(model, tmp_path / "again.safetensors"))):
        with torch.no_grad():
            found = loaded.probabilities(torch.tensor(answers["cells"]))
        torch.testing.assert_close(found, torch.tensor(answers["probabilities"]))
        assert loaded.test_metrics["accuracy_micro"] == 0.75 and loaded.provenance["class_label"] == "cell_type"
        assert loaded.novelty.is_measured == (version >= 4)  # version 3 had another novelty score
        assert (loaded.calibration_cells is not None) == (version >= 3)


def test_earlier_encoder():
    """A pretrained encoder of the first format loads."""
    answers = json.loads((FILES / "encoder_1.json").read_text())
    encoder = load_model(FILES / "encoder_1.safetensors")
    steps = encoder.network.steps(torch.tensor(answers["cells"]))
    torch.testing.assert_close(torch.stack([step.decision[:, 0] for step in steps]), torch.tensor(answers["decisions"]))
    assert encoder.provenance == {"seed": 0} and encoder.is_fitted


def test_what_a_file_says_of_itself(model, tmp_path):
    """What it says of recipe, genes, versions, licence, confidence and novelty outlives two saves, and is shown."""
    model.provenance |= {"gene_kind": "symbol", "cells": {"train": 80, "test": 10}}
    path = save_model(model, tmp_path / "a.safetensors", licence="CC-BY-4.0", notes="Of adult cortex only.")
    again = load_model(save_model(load_model(path), tmp_path / "b.safetensors"))
    known = again.metadata
    assert known["recipe"] | {"optimizer": "Adam", "lambda_sparse": 1e-3, "n_steps": 3} == known["recipe"]
    assert known["recipe"]["optimizer_params"] == {"lr": 0.01, "weight_decay": 1e-3}
    assert known["versions"]["torch"] == version_of("torch") and date.fromisoformat(known["saved"])
    for ours, theirs in zip(again.calibration_cells, model.calibration_cells, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.calibration_cells.correct.tolist() == [True, True, False]
    torch.testing.assert_close(again.novelty.state_dict(), model.novelty.state_dict(), rtol=0, atol=0)
    for part in ("4 genes (symbol) to 2 classes", "B cell, T cell", "cells.h5ad", "80 train", "accuracy 0.750"):
        assert part in repr(again)
    assert "CC-BY-4.0" in repr(again) and "Of adult cortex only." in repr(again)


def test_what_is_not_saved(model, tmp_path):
    """Provenance that is no data, a path in the model's place, a model without names or training; old files stay."""
    path = save_model(model, tmp_path / "model.safetensors")
    before, twice = path.read_bytes(), ["a"]
    for _ in range(60):
        twice = [twice, twice]
    for no_data, says in ((object(), "not JSON"), (twice, "a million values"), ({(1, 2): 3}, "not tuple")):
        model.provenance["no data"] = no_data
        with pytest.raises(SettingError, match=f"provenance or metrics .*{says}"):
            save_model(model, path)
    for first in (GOOD, tmp_path / "new.safetensors"):
        with pytest.raises(SettingError, match=r"Mind the order: save_model\(model, path\)"):
            save_model(first, model)
    untrained = SIMSClassifier(4, 2, genes=list("abcd"), classes=["B cell", "T cell"])
    untrained.eval()(torch.rand(8, 4))  # prediction is no training
    for unfitted in (SIMSClassifier(4, 2), untrained, MaskedPretraining(4)):
        with pytest.raises(SettingError, match="not fitted"):
            save_model(unfitted, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# --- Damaged and hostile files


def parts(path: Path = GOOD) -> tuple[dict, dict, bytes]:
    """Index, header and tensors of a file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + length])
    return index, json.loads(index["__metadata__"]["header"]), content[8 + length :]


def packed(index: dict, tensors: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, perhaps with a wrong length of its index."""
    text = json.dumps(index).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + tensors


def rewritten(tensors: dict | None = None, path: Path = GOOD, **header) -> bytes:
    """A file with other entries in its header or other tensors, and the right hash."""
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
    tensors = load_file(path) | (tensors or {})
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    texts["header"] = json.dumps(json.loads(texts["header"]) | header)
    texts["sha256"] = model_file.digest(texts["header"], tensors)
    return save(tensors, metadata=texts)


def with_recipe(n_tensors: int = 0, **settings) -> bytes:
    """The good file with other settings, and more tensors, which hold no values."""
    tensors = {f"x{i}": torch.empty(0) for i in range(n_tensors)}
    return rewritten(tensors, recipe=parts()[1]["recipe"] | settings)


W = next(name for name, entry in parts()[0].items() if name.endswith("final_mapping.weight"))
DAMAGED, OLD = "SafetensorError", FILES / "version_4.safetensors"
# fmt: off
HOSTILE = {
    "pickle": (lambda: pickle.dumps(Bomb()), DAMAGED),
    "empty": (lambda: b"", DAMAGED),
    "no hash": (lambda: GOOD.read_bytes().replace(b"sha256", b"sha257"), "SHA-256"),
    "index of 2 GB": (lambda: packed(*parts()[::2], length=2**31), DAMAGED),
    "tensor beyond the end": (lambda: packed({W: dict(dtype="F32", shape=[2], data_offsets=[0, 8])}), DAMAGED),
    "shape larger than its bytes": (
        lambda: packed({W: dict(dtype="F32", shape=[10**9], data_offsets=[0, 8])}, bytes(8)), DAMAGED),
    "header nested deep": (lambda: packed({"__metadata__": dict(format="sims_kit", header="[" * 2**20)}), "Recursion"),
    "header that is a list": (lambda: packed({"__metadata__": dict(format="sims_kit", header='["genes", "classes"]')}),
                              "format version None"),
    "no texts": (lambda: packed({}), "not one that `save_model` wrote"),
    "another kind of file": (lambda: packed({"__metadata__": {"format": "pt"}}), "not one that `save_model` wrote"),
    "newer version": (lambda: rewritten(format_version=99), "newer sims_kit"),
    "another kind of model": (lambda: rewritten(kind="zoo"), "kind 'zoo'"),
    "integers for weights": (lambda: rewritten({W: torch.ones(2, 2, 2, dtype=torch.int64)}), "needs"),
    "weights of another shape": (lambda: rewritten({W: torch.ones(2, 2, 3)}), "needs"),
    "weights that are NaN": (lambda: rewritten({W: torch.full((2, 2, 2), torch.nan)}), "NaN"),
    "weights that lack": (lambda: rewritten({W: None}), "does not hold the tensors"),
    "path in a name": (lambda: rewritten({"../../etc/passwd": torch.ones(1)}), "does not hold the tensors"),
    "gene twice": (lambda: rewritten(genes=list("abcc")), "1 or more names, each once"),
    "other genes": (lambda: rewritten(genes=list("abcde")), "needs"),
    **{f"genes at {places}": (lambda places=places: rewritten({"network.genes": torch.tensor(places)}), "do not rise")
       for places in ([-1, 0, 1, 2], [0, 1, 2, 4], [0, 1, 1, 2], [3, 2, 1, 0])},
    "one class": (lambda: rewritten(classes=["B cell"]), "2 or more names"),
    "a hundred thousand classes": (lambda: rewritten(classes=list(map(str, range(100_000)))), "needs"),
    "metric that is text": (lambda: rewritten(test_metrics={"accuracy": "high"}), "could not convert string"),
    "provenance that is a list": (lambda: rewritten(provenance=["cells.h5ad"]), "provenance is"),
    "notes that are a number": (lambda: rewritten(notes=3), "notes is 3"),
    "other steps": (lambda: with_recipe(n_steps=2), "tensors of its network"),
    "setting that does not exist": (lambda: with_recipe(n_moons=2), "no setting 'n_moons'"),
    "absurd width": (lambda: with_recipe(n_d=10**12), "needs|RuntimeError"),
    "width beyond 64 bits": (lambda: with_recipe(n_d=10**30), "TypeError|RuntimeError|OverflowError"),
    "absurd depth": (lambda: with_recipe(n_steps=10**9), "layers or more"),
    "layers shared a million times": (lambda: with_recipe(3000, n_steps=1000, n_shared=1000), "layers or more"),
    "many tensors": (lambda: with_recipe(20_001), "more than the 20,000"),
    "a table of more than a million values": (
        lambda: rewritten(history={str(i): {str(i): 0.0} for i in range(1001)}), "more than a million values"),
    "validation cells of other lengths": (lambda: rewritten({model_file.CELLS[0]: torch.zeros(2, dtype=torch.int64)}),
                                          "calibration cells"),
    "validation cells of another type": (lambda: rewritten({model_file.CELLS[3]: torch.zeros(8)}), "out of range"),
    "validation cells of a class too many": (lambda: rewritten({model_file.CELLS[0]: torch.tensor([2] * 8)}),
                                             "out of range"),
    "validation cells that lack a part": (lambda: rewritten({model_file.CELLS[1]: None}), "calibration cells"),
    "version 4 without temperature": (lambda: rewritten(path=OLD, calibration={}), "temperature"),
    "version 4, temperature below 0": (lambda: rewritten(path=OLD, calibration={"temperature": -1.0}), "temperature"),
    "version 4 without a network": (lambda: rewritten(path=OLD, network=None), "NoneType"),
    "version 3, ten million values": (
        lambda: rewritten(path=FILES / "version_3.safetensors", genes=list(map(str, range(5000))),
                          classes=list(map(str, range(5000)))), "too small"),
}
# fmt: on


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, make, message):
    """Each is refused with one clear error; no code is run, and little memory taken."""
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_memory_stays_within_four_files(tmp_path):
    """Loading takes no more than four times the file: for 20,000 genes, measured in a process of its own."""
    model = SIMSClassifier(20_000, 10, genes=[f"gene {i}" for i in range(20_000)], classes=list("abcdefghij"))
    model.network.encoder.att_transformers[0].bn.bn.num_batches_tracked += 1  # as if it had been trained
    path = save_model(model, tmp_path / "model.safetensors")
    code = (
        "import sys; from sims_kit.model import load_model\n"
        "def kilobytes(key): return int(open('/proc/self/status').read().split(key + ':')[1].split()[0])\n"
        "load_model(sys.argv[1]); open('/proc/self/clear_refs', 'w').write('5'); before = kilobytes('VmRSS')\n"
        "model = load_model(sys.argv[2]); print(kilobytes('VmHWM') - before)"
    )
    command = [sys.executable, "-c", code, str(GOOD), str(path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024
    assert 1 < grown / path.stat().st_size < 4


# --- Where models come from


def test_addresses_and_names(tmp_path, monkeypatch):
    """An address needs its hash, a name is one of the registry's, and both lead to a checked file in the cache."""
    url, digest = "https://example.org/cortex.safetensors", hashlib.sha256(GOOD.read_bytes()).hexdigest()
    for known_hash in (None, "abc", 3):
        with pytest.raises(SettingError, match="64 hexadecimal digits"):
            load_model(url, known_hash=known_hash)
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path))
    with pytest.raises(FetchError, match="SIMS_KIT_OFFLINE"):
        load_model(url, known_hash=digest)
    (tmp_path / "models").mkdir()
    (file := tmp_path / "models" / f"{digest[:16]}.safetensors").write_bytes(GOOD.read_bytes())
    assert load_model(url, known_hash=f"sha256:{digest.upper()}").classes == load_model(GOOD).classes
    file.write_bytes(b"other")
    with pytest.raises(FetchError, match="SHA-256"):
        load_model(url, known_hash=digest)
    with pytest.raises(FileNotFoundError, match=r"no model file 'human-blod'.*'human-blood'"):
        load_model("human-blod")
    with pytest.raises(ModelFileError, match="is a folder"):
        load_model(".")


@pytest.mark.parametrize("name", ["human-blood", "human-pancreas", "mouse-immune"])
def test_ready_models(name, monkeypatch, tmp_path):
    """Each is small, says what it is worth, knows the Cell Ontology, and has its card in the docs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a folder of this name is in nobody's way
    model = load_model(name)
    (tmp_path / name).rmdir()
    assert (model_file.READY / f"{name}.safetensors").stat().st_size < 2_000_000
    assert set(model.provenance["ontology_ids"]) == set(model.classes) and model.novelty.is_calibrated
    assert "did not learn from" in model.metadata["notes"]
    assert f"- **notes**: {model.metadata['notes']}\n" in PAGE.read_text(encoding="utf-8")
    save_model(load_model(GOOD), name)  # a file of this name goes before
    assert load_model(name).classes == load_model(GOOD).classes


def test_checkpoints(make_cells, tmp_path):
    """A checkpoint of Lightning opens as the classifier it holds; one that is damaged or runs code is refused."""
    quiet = dict(verbose=False, logger=False, checkpoints=tmp_path / "run")
    model = sk.fit(make_cells(), "cell_type", max_epochs=2, recipe=dict(n_models=1, n_d=2, n_a=2), **quiet)
    path = next((tmp_path / "run").glob("*.ckpt"))
    opened = load_model(path)
    assert (opened.genes, opened.classes, opened.is_fitted) == (model.genes, model.classes, True)
    assert opened(torch.rand(5, len(model.genes))).shape == (5, 3)
    FLAG.unlink(missing_ok=True)
    good = torch.load(path, weights_only=True)
    types = (torch.int64, torch.float32, torch.float32, torch.bool)
    claimed = [torch.zeros(1, dtype=kind).expand(10**6) for kind in types]  # one value each
    for change, says in (
        ({"state_dict": Bomb()}, "neither a tensor"),
        ({"state_dict": Memory()}, "neither a tensor"),
        ({"state_dict": {}}, "too many for 0 tensors"),
        ({"sims_kit": good["sims_kit"] | {"calibration_cells": claimed}}, "more memory"),
    ):
        torch.save(good | change, path)
        with pytest.raises(ModelFileError, match=f"{says}.*checkpoints of a SIMSClassifier"):
            load_model(path)
    assert not FLAG.exists()
