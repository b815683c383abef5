"""The index of a zoo: which models there are, where, and how they are recognised."""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from sims_kit.datasets import cache_folder
from sims_kit.datasets.checksums import file_hash
from sims_kit.datasets.download import plain_problem
from sims_kit.datasets.fetch import fetch, fetch_fresh
from sims_kit.datasets.registry import DataFile, FileName, Name, Sha256
from sims_kit.errors import FetchError, RegistryError, UnknownNameError
from sims_kit.files import written_whole

INDEX = "zoo.json"
LARGEST_INDEX = 2**24  # bytes


class ZooModel(BaseModel):
    """One model: its files and what a list shows of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: FileName
    sha256: Sha256
    size: PositiveInt  # bytes
    card: FileName
    title: str = ""
    datasets: list[str] = []
    genes: PositiveInt
    gene_kind: str | None = None
    classes: list[str]
    accuracy: float | None = None  # on the test cells of its card
    median_f1: float | None = None
    licence: str | None = None
    saved: str


class ZooIndex(BaseModel):
    """All models of a zoo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    models: dict[Name, ZooModel] = {}

    def __getitem__(self, name: str) -> ZooModel:
        """The entry called `name`; `UnknownNameError` offers the nearest names."""
        if name not in self.models:
            raise UnknownNameError("model of the zoo", name, self.models)
        return self.models[name]


def zoo_source(source: str | os.PathLike | None) -> str | Path:
    """The address or the folder of a zoo."""
    source = source or os.environ.get("SIMS_KIT_ZOO") or cache_folder() / "zoo"
    if str(source).startswith(("http://", "https://")):
        return str(source).rstrip("/")
    return Path(source).expanduser()


def read_index(source: str | Path) -> ZooIndex:
    """The index at an address or in a folder.

    Raises
    ------
    FetchError
        If there is none, or it cannot be reached and no copy is in the cache.
    RegistryError
        If it breaks the schema; the message names the entry and the key.
    """
    if isinstance(source, str):
        path = fetch_fresh(f"{source}/{INDEX}", _folder(source), INDEX, most=LARGEST_INDEX)
    else:
        path = source / INDEX
    if not path.is_file():
        raise FetchError(
            f"There is no zoo in {str(source)!r}: it has no {INDEX}. Name one with source= or the environment variable "
            "SIMS_KIT_ZOO, or begin one with sims_kit.zoo.publish(model, folder)."
        )
    if path.stat().st_size > LARGEST_INDEX:
        raise RegistryError(f"{path} has {path.stat().st_size:,} bytes; the most that is read is {LARGEST_INDEX:,}.")
    try:
        return ZooIndex.model_validate_json(path.read_bytes())
    except ValidationError as error:
        told = "\n".join(f"  {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()[:5])
        raise RegistryError(f"{path} is no index of a zoo:\n{told}") from error


def model_file(source: str | Path, name: str) -> Path:
    """The file of a model, downloaded first if the zoo is on the web; its size and hash are checked each time.

    Raises
    ------
    UnknownNameError
        There is no such model; the nearest names are offered.
    FetchError
        The file cannot be had, or is not the one that was published.
    """
    entry = read_index(source)[name]
    if isinstance(source, str):
        address = f"{source}/{entry.file}"
        file = DataFile(name=entry.file, urls=(address,), sha256=entry.sha256, size=entry.size)
        return fetch(f"model {name}", _folder(source), file)
    path = source / entry.file
    if wrong := plain_problem(path) or _difference(path, entry):
        raise FetchError(f"Model {name}: the file {path} {wrong}. Publish the model again, or copy the zoo anew.")
    return path


def _difference(path: Path, entry: ZooModel) -> str | None:
    found = file_hash(path)
    return None if found == entry.sha256 else f"has SHA-256 {found}, expected {entry.sha256}"


def add_to_index(folder: Path, name: str, entry: ZooModel) -> None:
    """Add or replace one entry of a folder's index; of several processes one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".zoo.lock"):
        index = read_index(folder) if (folder / INDEX).exists() else ZooIndex()
        models = dict(sorted({**index.models, name: entry}.items()))
        content = ZooIndex(models=models).model_dump(mode="json")
        with written_whole(folder / INDEX) as part:
            part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _folder(address: str) -> str:
    """The folder in the cache for a zoo on the web."""
    return f"zoo-{sha256(address.encode()).hexdigest()[:12]}"
