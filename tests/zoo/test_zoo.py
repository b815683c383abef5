"""The zoo: published models come back the same, from a folder, the web or the Hub, and nothing else does."""

import http.server
import json
import sys
import threading
from functools import partial
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

import sims_kit as sk
from sims_kit.errors import FetchError, LabelError, ModelFileError, RegistryError, SettingError, UnknownNameError

QUIET = dict(enable_progress_bar=False, logger=False, verbose=False)


@pytest.fixture(scope="module")
def cells(make_cells):
    """Cells to train on and to examine with."""
    cells = make_cells(n_cells=300)
    cells.uns["sims_kit"] = {"dataset": "toy", "sha256": ["ab" * 32]}
    return cells


@pytest.fixture(scope="module")
def model(cells, tmp_path_factory):
    """A small model that learned from the first two hundred."""
    folder, network = tmp_path_factory.mktemp("fit"), {"n_models": 1, "n_d": 8, "n_a": 8}
    options = dict(max_epochs=4, test=0, model_params={"network": network}, default_root_dir=folder, **QUIET)
    return sk.fit(cells[:200].copy(), "cell_type", **options)


@pytest.fixture
def zoo(model, cells, tmp_path):
    """A zoo with one model, examined on the last hundred cells."""
    folder, options = tmp_path / "zoo", dict(cells=cells[200:].copy(), label="cell_type", licence="CC0-1.0")
    sk.zoo.publish(model, folder, name="toy", title="Made-up cells.", notes="For tests.", **options)
    return folder


@pytest.fixture
def served(zoo, tmp_path, monkeypatch):
    """The zoo at an address on this machine, with an empty cache."""
    monkeypatch.delenv("SIMS_KIT_OFFLINE", raising=False)
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=zoo)
    handler.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def same(one, other) -> bool:
    """Whether two models have the same numbers."""
    return all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())


def test_list_and_load(model, zoo):
    """A published model is listed with what a user asks for first, and comes back the same."""
    row = sk.zoo.list(zoo).loc["toy"]
    assert (row["genes"], row["classes"], row["datasets"]) == (60, model.classes, ["toy"])
    assert row["licence"] == "CC0-1.0" and row["gene_kind"] == "symbol" and 0 < row["median_f1"] <= 1
    loaded = sk.zoo.load("toy", zoo)
    assert same(loaded, model) and loaded.about["notes"] == "For tests."
    assert loaded.provenance["files"][0]["sha256"] == ["ab" * 32]


def test_where_the_zoo_is(model, tmp_path, monkeypatch):
    """Without `source`, the environment variable names the zoo, else it lies in the cache."""
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path))
    sk.zoo.publish(model, tmp_path / "zoo", name="in-cache")
    assert list(sk.zoo.list().index) == ["in-cache"]
    sk.zoo.publish(model, tmp_path / "mine", name="in-mine")
    monkeypatch.setenv("SIMS_KIT_ZOO", str(tmp_path / "mine"))
    assert list(sk.zoo.list().index) == ["in-mine"] and same(sk.zoo.load("in-mine"), model)


def test_card_tells_what_scikit_learn_finds(model, zoo, cells):
    """Metrics of each class and the confusion matrix are those of scikit-learn; data, genes and limits are there."""
    card, query = (zoo / "toy.md").read_text(), cells[200:].copy()
    sk.annotate(query, model)
    truth, found = query.obs["cell_type"].astype(str), query.obs["sims_label"].astype(str)
    for label, f1, row in zip(
        model.classes, f1_score(truth, found, average=None), confusion_matrix(truth, found), strict=True
    ):
        assert f"| {label} | {(truth == label).sum()} |" in card and f"| {f1:.3f} |" in card
        assert f"| {label} | {' | '.join(map(str, row))} |" in card
    top = sk.explain(model, query).top_genes(5)
    for part in ("sk.zoo.load('toy')", "toy", "abababababab", "For tests.", "CC0-1.0", *top["class_0"]):
        assert part in card
    assert "It knows 3 classes" in card and "20 validation cells" in card and "counts" in card


def test_card_without_cells_says_so(model, tmp_path):
    """Without cells the card has no numbers, and says that it has none."""
    card = sk.zoo.publish(model, tmp_path, name="bare").read_text()
    assert "not measured on test cells" in card and "accuracy" not in card


def test_publish_again(model, zoo):
    """The same name again gets the new model; the old file stays, and other models are not touched."""
    before = set(zoo.iterdir())
    sk.zoo.publish(model, zoo, name="other")
    sk.zoo.publish(model, zoo, name="toy", notes="Second edition.")
    assert sk.zoo.load("toy", zoo).about["notes"] == "Second edition." and before <= set(zoo.iterdir())
    assert list(sk.zoo.list(zoo).index) == ["other", "toy"]
    assert not [path for path in zoo.iterdir() if path.name.startswith(".toy")]


def test_from_the_web(model, served, zoo, monkeypatch):
    """A model is downloaded once, its hash checked; the index is asked for each time, and kept for offline use."""
    assert same(sk.zoo.load("toy", served), model)
    sk.zoo.publish(model, zoo, name="newer")
    assert list(sk.zoo.list(served).index) == ["newer", "toy"]
    monkeypatch.setenv("SIMS_KIT_OFFLINE", "1")
    assert same(sk.zoo.load("toy", served), model)
    with pytest.raises(FetchError, match="SIMS_KIT_OFFLINE"):
        sk.zoo.load("newer", served)


def test_web_that_fails(served, zoo):
    """Another file, a missing one and a missing index are told; a copy of the index serves when the server is gone."""
    (file,) = zoo.glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"!")
    with pytest.raises(FetchError, match="SHA-256"):
        sk.zoo.load("toy", served)
    file.unlink()
    with pytest.raises(FetchError, match="404"):
        sk.zoo.load("toy", served)
    (zoo / "zoo.json").unlink()
    with pytest.warns(UserWarning, match="using the copy"):
        assert list(sk.zoo.list(served).index) == ["toy"]
    with pytest.raises(FetchError, match="could not be downloaded"):
        sk.zoo.list(f"{served}/nowhere")


INDEXES = {
    "no JSON": ("{", "zoo.json is no index"),
    "another version": ('{"version": 2}', "version"),
    "path in a file's name": (dict(file="../../secret.safetensors"), "models.toy.file"),
    "absolute path": (dict(file="/etc/passwd"), "models.toy.file"),
    "path in a card's name": (dict(card="../card.md"), "models.toy.card"),
    "no hash": (dict(sha256=""), "models.toy.sha256"),
    "size that is text": (dict(size="large"), "models.toy.size"),
    "unknown key": (dict(run="rm -rf"), "models.toy.run"),
    "nested deep": ("[" * 100_000, "zoo.json is no index"),
}


@pytest.mark.parametrize(("change", "message"), INDEXES.values(), ids=INDEXES)
def test_hostile_indexes(zoo, change, message):
    """An index that is damaged or leads out of its folder is refused with the key."""
    if isinstance(change, dict):
        index = json.loads((zoo / "zoo.json").read_text())
        index["models"]["toy"] |= change
        change = json.dumps(index)
    (zoo / "zoo.json").write_text(change)
    for call in (sk.zoo.list, partial(sk.zoo.load, "toy")):
        with pytest.raises(RegistryError, match=message):
            call(zoo)


def test_index_with_a_path_for_a_name(zoo):
    """A model cannot be called by a path."""
    index = json.loads((zoo / "zoo.json").read_text())
    index["models"]["../toy"] = index["models"]["toy"]
    (zoo / "zoo.json").write_text(json.dumps(index))
    with pytest.raises(RegistryError, match=r"\.\./toy"):
        sk.zoo.list(zoo)


def test_bad_calls(model, zoo, cells, tmp_path):
    """Unknown and impossible names, changed files, and cells without labels are told."""
    (file,) = zoo.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(FetchError, match=r"Model toy.*SHA-256"):
        sk.zoo.load("toy", zoo)
    with pytest.raises(UnknownNameError, match="Did you mean 'toy'"):
        sk.zoo.load("toys", zoo)
    with pytest.raises(FetchError, match="There is no zoo"):
        sk.zoo.list(tmp_path / "nowhere")
    for options, error, message in (
        (dict(name="../toy"), SettingError, "small letters"),
        (dict(name="toy", cells=cells), SettingError, "belong together"),
        (dict(name="toy", cells=cells, label="celltype"), UnknownNameError, "'cell_type'"),
        (dict(name="toy", cells=cells[:0].copy(), label="cell_type"), LabelError, "None of 0 cells"),
    ):
        with pytest.raises(error, match=message):
            sk.zoo.publish(model, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_hub(model, zoo, tmp_path, monkeypatch):
    """Names of the Hub go through huggingface_hub; without it, and without the file, the error says what to do."""
    (path,) = zoo.glob("*.safetensors")
    asked = []

    def hf_hub_download(repository, file, local_files_only):
        asked.append((repository, file, local_files_only))
        if repository == "lab/none":
            raise OSError("404 Client Error")
        return str(path if repository == "lab/model" else tmp_path / "pickled")

    (tmp_path / "pickled").write_bytes(b"\x80\x04K\x01.")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SettingError, match="pip install huggingface_hub"):
        sk.zoo.load("lab/model")
    module = ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    errors = SimpleNamespace(HfHubHTTPError=OSError)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    assert same(sk.zoo.load("lab/model"), model) and same(sk.zoo.load("hf:lab/model/b.safetensors"), model)
    assert asked == [("lab/model", "model.safetensors", True), ("lab/model", "b.safetensors", True)]
    with pytest.raises(FetchError, match=r"lab/none.*404"):
        sk.zoo.load("lab/none")
    with pytest.raises(ModelFileError, match="no pickle"):
        sk.zoo.load("lab/pickled")


def test_list_is_a_table_also_when_empty(tmp_path):
    """A zoo without models is a table without rows."""
    (tmp_path / "zoo.json").write_text("{}")
    pd.testing.assert_index_equal(sk.zoo.list(tmp_path).index, pd.Index([], name="model"), exact=False)
