"""The zoo's three verbs: list, load, publish; and models of the Hugging Face Hub."""

import os
import re
from pathlib import Path

import anndata as ad
import pandas as pd

from sims_kit.datasets.checksums import file_hash
from sims_kit.datasets.fetch import is_offline
from sims_kit.errors import FetchError, SettingError
from sims_kit.files import written_whole
from sims_kit.model import SIMSClassifier, load_model, save_model
from sims_kit.model.file import fitted_model
from sims_kit.zoo.card import examine, write_card
from sims_kit.zoo.index import ZooModel, add_to_index, model_file, read_index, zoo_source

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
HUB = re.compile(r"(?:hf:)?([\w.-]+/[\w.-]+)(?:/([\w.-]+\.safetensors))?")
HUB_FILE = "model.safetensors"
COLUMNS = ["title", "datasets", "genes", "gene_kind", "classes", "accuracy", "median_f1", "licence", "saved", "size"]


def list_models(source: str | os.PathLike | None = None) -> pd.DataFrame:
    """The models of a zoo, one row each.

    Parameters
    ----------
    source
        A folder or an address on the web; by default that of the environment variable `SIMS_KIT_ZOO`, else the folder
        ``zoo`` in the cache.

    Returns
    -------
    DataFrame, indexed by name
        title, datasets, genes (their number), gene_kind, classes, accuracy and median_f1 (on the test cells of the
        card), licence, saved (the date), size (bytes).

    Raises
    ------
    FetchError
        There is no zoo, or it cannot be reached.
    RegistryError
        Its index is damaged.
    """
    models = read_index(zoo_source(source)).models
    rows = {name: {column: getattr(entry, column) for column in COLUMNS} for name, entry in models.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("model")


def load_published(name: str, source: str | os.PathLike | None = None) -> SIMSClassifier:
    """A model of a zoo, or of the Hugging Face Hub, ready to annotate.

    Parameters
    ----------
    name
        A name of `list`; or ``"owner/repository"`` on the Hub, whose ``model.safetensors`` is taken, or
        ``"owner/repository/other.safetensors"``. The Hub needs the package `huggingface_hub`.
    source
        As in `list`.

    Raises
    ------
    UnknownNameError
        There is no such model; the nearest names are offered.
    FetchError
        It cannot be had, or is not the one that was published.
    ModelFileError
        The file is no model. Nothing in it is run, wherever it comes from.
    SettingError
        The Hub was asked for and `huggingface_hub` is not installed.
    """
    if not isinstance(name, str):
        raise SettingError(f"load takes the name of a model as text, not an object of type {type(name).__name__}.")
    if source is None and (on_hub := HUB.fullmatch(name)):
        return load_model(_from_hub(on_hub[1], on_hub[2] or HUB_FILE))
    return load_model(model_file(zoo_source(source), name))


def publish(
    model: SIMSClassifier | str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str,
    cells: ad.AnnData | None = None,
    label: str | None = None,
    title: str = "",
    licence: str | None = None,
    notes: str | None = None,
) -> Path:
    """Put a model into a zoo: its file, its card, and an entry in the index.

    Serve the folder from any web server, or share it as it is. A name that is there already gets the new model; the
    file of the old one stays, since files carry a piece of their hash in their names.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one.
    folder
        Of the zoo; made if it does not exist.
    name
        Small letters, digits and hyphens, such as ``"pbmc-2026"``.
    cells, label
        Labelled cells that the model did not learn from, and the `obs` column of their labels: the card then has
        metrics of each class, the confusion matrix and the top genes.
    title
        What the model is for, in a sentence.
    licence, notes
        As in `save_model`.

    Returns
    -------
    pathlib.Path
        The card.

    Raises
    ------
    SettingError
        If the name has other letters, the model was not fitted, or only one of `cells` and `label` is given.
    UnknownNameError, LabelError, GeneError, DataError
        As the cells are examined.
    """
    if not NAME.fullmatch(name):
        raise SettingError(f"name={name!r}: small letters, digits and hyphens only, such as 'pbmc-2026'.")
    if (cells is None) != (label is None):
        raise SettingError("cells and label belong together: the cells to examine the model on, and their obs column.")
    model, folder = fitted_model(model), Path(folder).expanduser()
    exam = None if cells is None else examine(model, cells, label)
    file = _save(model, folder, name, licence=licence, notes=notes)
    published = load_model(file)  # what others will get
    card = folder / f"{name}.md"
    with written_whole(card) as part:
        part.write_text(write_card(name, published, exam, title), encoding="utf-8")
    scores = model.test_metrics if exam is None else exam.scores
    files = [entry for entry in model.provenance.get("files", []) if isinstance(entry, dict)]
    entry = ZooModel(
        file=file.name,
        sha256=file_hash(file),
        size=file.stat().st_size,
        card=card.name,
        title=title,
        datasets=[str(entry.get("dataset") or entry.get("file", "")) for entry in files],
        genes=model.input_dim,
        gene_kind=published.about["gene_kind"],
        classes=model.classes,
        accuracy=None if scores is None else scores["accuracy_micro"],
        median_f1=None if scores is None else scores["median_f1"],
        licence=published.about["licence"],
        saved=published.about["saved"],
    )
    add_to_index(folder, name, entry)
    return card


def _save(model: SIMSClassifier, folder: Path, name: str, **about: str | None) -> Path:
    """The model's file, named after its content."""
    unnamed = save_model(model, folder / f".{name}.{os.getpid()}.safetensors", **about)
    return unnamed.replace(folder / f"{name}-{file_hash(unnamed)[:8]}.safetensors")


def _from_hub(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise SettingError(
            f"Models of the Hugging Face Hub, such as {repository!r}, need a package that is not installed. "
            "Install it with: pip install huggingface_hub"
        ) from error
    try:
        return Path(hf_hub_download(repository, file, local_files_only=is_offline()))
    except (HfHubHTTPError, OSError, ValueError) as error:
        hint = " SIMS_KIT_OFFLINE forbids the network." if is_offline() else ""
        raise FetchError(
            f"{file} of {repository!r} could not be had from the Hugging Face Hub: {error}{hint}"
        ) from error
