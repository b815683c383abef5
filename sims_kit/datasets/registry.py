"""`data_registry.yaml`: one entry per dataset, checked against a schema before anything is fetched."""

import re
import reprlib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from sims_kit.errors import RegistryError, UnknownNameError, nearest


def _inside(member: str) -> str:
    """A path that does not lead out of the archive."""
    if ".." in member.split("/"):
        raise ValueError(f"{member!r} leads out of the archive.")
    return member


Text = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]
FileName = Annotated[str, Field(pattern=r"^[\w][\w .+-]*$")]  # no slash: a file stays inside the cache folder
Member = Annotated[str, Field(pattern=r"^[\w][\w .+/-]*$"), AfterValidator(_inside)]  # in an archive; never unpacked
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Doi = Annotated[str, Field(pattern=r"^10\.\d{4,9}/\S+$")]


class _Strict(BaseModel):
    """A model that refuses unknown keys, offers the nearest known one, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: object) -> object:
        for key in set(values) - set(cls.model_fields) if isinstance(values, dict) else ():
            found = f"{reprlib.repr(key)} with value {reprlib.repr(values[key])}"  # either may be endless
            raise ValueError(f"unknown key {found}. {nearest(key, cls.model_fields)}")
        return values


def _gene_pattern(pattern: str) -> str:
    """A regular expression with the group `symbol`, and perhaps the group `id`."""
    try:
        groups = set(re.compile(pattern).groupindex)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if "symbol" not in groups or groups - {"symbol", "id"}:
        raise ValueError(f"{pattern!r} must have a group (?P<symbol>...), and may have (?P<id>...).")
    return pattern


class DataFile(_Strict):
    """One file of a dataset: where it comes from and how it is recognised."""

    name: FileName
    urls: Annotated[tuple[Url, ...], Field(min_length=1)]  # in order of preference
    sha256: Sha256 | None  # null: not known yet
    size: PositiveInt | None  # bytes


class FilesSource(_Strict):
    """A matrix file and, where the labels lie apart from it, a label file, both in one cache folder."""

    kind: Literal["files"]
    folder: FileName
    matrix: DataFile
    labels: DataFile | None = None

    @property
    def files(self) -> list[DataFile]:
        """The matrix file, then the label file if there is one."""
        return [self.matrix] if self.labels is None else [self.matrix, self.labels]


class ArchiveSource(_Strict):
    """Members of a zip archive, which stays packed."""

    kind: Literal["archive"]
    folder: FileName
    archive: DataFile
    matrix: Annotated[list[Member], Field(min_length=1)]  # several of one shape are summed: exons and introns
    labels: Member | None = None
    genes: Member | None = None  # a table about the genes, in the order of the matrix

    @property
    def files(self) -> list[DataFile]:
        """The archive."""
        return [self.archive]


class ScanpySource(_Strict):
    """A dataset that the scanpy package carries itself: `scanpy.datasets.<function>()`."""

    kind: Literal["scanpy"]
    function: Text

    @property
    def files(self) -> list[DataFile]:
        """No file: nothing is downloaded."""
        return []


class Shape(_Strict):
    """The size of a simulated tissue."""

    cells: PositiveInt
    genes: PositiveInt


class SimulatedSource(_Strict):
    """Tissue that `sims_kit.datasets.simulated` makes under the name of the entry, in two sizes."""

    kind: Literal["simulated"]
    sizes: dict[Literal["fast", "full"], Shape]

    @property
    def files(self) -> list[DataFile]:
        """No file: nothing is downloaded."""
        return []


class Dataset(_Strict):
    """One entry of the registry. Cells, genes and classes are those after filtering; null where unknown."""

    title: Text
    version: Text
    tier: Literal["bundled", "simulated", "small", "full"]
    source: Annotated[FilesSource | ArchiveSource | ScanpySource | SimulatedSource, Field(discriminator="kind")]
    licence: Text
    citation: Text
    doi: Doi | None = None
    species: Text
    tissue: Text
    protocol: Text
    cells: PositiveInt | None
    genes: PositiveInt | None
    classes: PositiveInt | None
    orientation: Literal["cells_by_genes", "genes_by_cells"]
    state: Literal["counts", "normalised", "log-normalised"] | None  # null: told from the values when they are used
    layer: Text | None = None  # where the values lie when not in X: "raw" (where there is one), or the name of a layer
    label: Text  # the obs column with the cell types
    other_labels: list[Text] = []  # obs columns with coarser or finer types
    sample: Text | None = None  # the obs column with the donor or plate
    region: Text | None = None  # the obs column with the part of the tissue
    gene_ids: Literal["symbol", "ensembl", "entrez", "none"]
    gene_column: Text | None = None  # the column of var, or of the table of genes, that names the genes
    gene_pattern: Annotated[str, AfterValidator(_gene_pattern)] | None = None  # finds the symbol in a longer name
    keep: dict[str, list[str]] = {}  # obs column -> values of the cells to keep
    drop: dict[str, list[str]] = {}  # obs column -> values of the cells to leave out
    drop_unlabelled: bool = False  # leave out the cells without a label
    alternatives: list[Name] = []  # entries with the same cells from another server
    preprocessing: str = ""  # what was done to the values before publication
    notes: str = ""
    lessons: list[Text] = []  # the notebooks that use it


class Registry(_Strict):
    """The whole file."""

    schema_version: Literal[1]
    datasets: dict[Name, Dataset]

    @model_validator(mode="after")
    def _known_alternatives(self) -> "Registry":
        for name, entry in self.datasets.items():
            for other in set(entry.alternatives) - set(self.datasets):
                raise ValueError(f"entry {name!r}, key 'alternatives': {other!r}. {nearest(other, self.datasets)}")
        return self

    def __getitem__(self, name: str) -> Dataset:
        """The entry called `name`; `UnknownNameError` offers the nearest names."""
        if name not in self.datasets:
            raise UnknownNameError("dataset", name, self.datasets)
        return self.datasets[name]


def registry_path() -> Path:
    """`data_registry.yaml` inside the installed package, else at the root of the repository."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / "data_registry.yaml").is_file():
            return folder / "data_registry.yaml"
    raise RegistryError(
        f"data_registry.yaml is neither in {package} nor in {package.parent}. "
        "The installation is not complete: install sims_kit again."
    )


@cache
def read_registry(path: Path | None = None) -> Registry:
    """Read and check a registry file, once per path.

    Parameters
    ----------
    path
        A registry file; by default the one that sims_kit carries.

    Raises
    ------
    RegistryError
        The file is not YAML or breaks the schema. The message names the file and, for each mistake, the
        entry, the key, the value and what is allowed.
    """
    path = registry_path() if path is None else Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:  # no UTF-8, a date that is none, too deep
        raise RegistryError(f"{path} cannot be read as YAML: {error}") from error
    try:
        return Registry.model_validate(content)
    except ValidationError as error:
        mistakes = "\n".join(f"  {_describe(mistake)}" for mistake in error.errors())
        raise RegistryError(f"{path} does not follow the schema:\n{mistakes}") from error


def _describe(mistake: dict) -> str:
    """One mistake that pydantic found, as `entry, key: value: what is allowed`."""
    where, value = list(mistake["loc"]), mistake["input"]
    place = []
    if where[:1] == ["datasets"] and len(where) > 1:
        place.append(f"entry {where[1]!r}")
        where = [part for part in where[2:] if part != "[key]"]  # pydantic's own mark, as is the kind of a source
        where = where[:1] + where[2:] if where[:1] == ["source"] else where
    if where:
        place.append(f"key {'.'.join(map(str, where))!r}")
    allowed = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] in ("missing", "value_error") or isinstance(value, dict | list):
        return f"{', '.join(place) or 'top level'}: {allowed}"
    return f"{', '.join(place) or 'top level'}: value {value!r}: {allowed}"
