"""Write docs/datasets.md, the page of all datasets, from data_registry.yaml; `make catalogue` runs this."""

from pathlib import Path

from sims_kit.datasets.catalogue import megabytes
from sims_kit.datasets.registry import ArchiveSource, DataFile, Dataset, SimulatedSource, read_registry

PAGE = Path(__file__).resolve().parents[1] / "docs/datasets.md"
INTRODUCTION = """# Datasets

<!-- Written by `make catalogue` from data_registry.yaml. Edit that file, not this page. -->

`sk.load(name)` gives any of these as an AnnData, cells x genes, with its labels; `sk.datasets.catalogue()` is this
list as a table.

- **bundled** datasets come with a package that is installed anyway, **simulated** ones are made on the spot:
  neither needs a network. `sk.load("sim-cortex", size="full")` gives the full size of a simulated one.
- **small** ones are a few megabytes each, with hashes that are checked at every loading.
- **full** ones are for a lab's server. Matrices of text are converted once, streamed, into a file of the cache, in
  under 2 GB of memory. Where no hash is known yet, that of the first download is noted and checked ever after.

Before a workshop, `python -m sims_kit.datasets fetch NAME ...` gets everything ready; `list` shows what is in the cache
and `verify` checks it. `SIMS_KIT_DATA` names the cache. Cite the publication of every dataset that you use.
"""


def page() -> str:
    """The page as Markdown."""
    datasets = read_registry().datasets
    header = "| name | tier | cells x genes | classes | what | download |\n|---|---|---|---|---|---|"
    rows = [
        f"| [{name}](#{name}) | {entry.tier} | {_number(entry.cells)} x {_number(entry.genes)} | "
        f"{_number(entry.classes)} | {entry.title} | {_download(entry)} |"
        for name, entry in datasets.items()
    ]
    sections = [_section(name, entry) for name, entry in datasets.items()]
    return "\n".join([INTRODUCTION, header, *rows, "", *sections])


def _section(name: str, entry: Dataset) -> str:
    facts = {
        "Cells": f"{entry.species}, {entry.tissue}; {entry.protocol}",
        "Size": _shape(entry),
        "Values": entry.state or "told from the values when they are used",
        "Done before publication": entry.preprocessing,
        "Labels": ", ".join(f"`{column}`" for column in (entry.label, *entry.other_labels)),
        "Sample": entry.sample and f"`{entry.sample}`",
        "Region": entry.region and f"`{entry.region}`",
        "Genes": {"none": "not named"}.get(entry.gene_ids, entry.gene_ids),
        "Left out": "; ".join(_filters(entry)),
        "Notes": entry.notes,
        "Same cells": ", ".join(f"[{other}](#{other})" for other in entry.alternatives),
        "Lessons": ", ".join(entry.lessons),
        "Version": entry.version,
        "Licence": entry.licence,
        "Citation": entry.citation + (f" [doi:{entry.doi}](https://doi.org/{entry.doi})" if entry.doi else ""),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items() if value]
    files = [line for file in entry.source.files for line in _file(entry, file)]
    return "\n".join([f"## {name}\n\n{entry.title}.\n", *lines, *files, ""])


def _shape(entry: Dataset) -> str:
    classes = f"{_number(entry.classes)} classes"
    if isinstance(entry.source, SimulatedSource):
        sizes = (f"{size} {shape.cells:,} x {shape.genes:,}" for size, shape in entry.source.sizes.items())
        return f"{', '.join(sizes)}; {classes}"
    return f"{_number(entry.cells)} cells x {_number(entry.genes)} genes; {classes}"


def _filters(entry: Dataset) -> list[str]:
    told = [f"all but `{column}` {', '.join(values)}" for column, values in entry.keep.items()]
    told += [f"`{column}` {', '.join(values)}" for column, values in entry.drop.items()]
    return told + ["cells without a label"] * entry.drop_unlabelled


def _file(entry: Dataset, file: DataFile) -> list[str]:
    size = "size unknown" if file.size is None else f"{file.size:,} bytes"
    sha256 = f"SHA-256 `{file.sha256}`" if file.sha256 else "hash noted at the first download"
    members = []
    if isinstance(entry.source, ArchiveSource):
        source = entry.source
        members = [f"`{member}`" for member in (*source.matrix, source.labels, source.genes) if member]
    return [
        f"- `{file.name}`: {size}, {sha256}",
        *(f"  - <{url}>" for url in file.urls),
        *([f"  - members {', '.join(members)}"] if members else []),
    ]


def _download(entry: Dataset) -> str:
    size = megabytes(entry)
    return "unknown" if size is None else f"{size:,.1f} MB" if size else "none"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
