"""Write docs/datasets.md, the page of all datasets, below its introduction; `make catalogue` runs this."""

from pathlib import Path

from sims_kit.datasets.registry import DataFile, Dataset, read_registry

PAGE = Path(__file__).resolve().parents[1] / "docs/datasets.md"


def page() -> str:
    """The page as Markdown; its introduction, above the table, stays as it is."""
    registry = read_registry()
    header = "| name | tier | cells x genes | classes | what | download |\n|---|---|---|---|---|---|"
    rows, sections = [], []
    for name, entry in (registry.datasets | registry.tables).items():
        classes = _number(entry.classes) if entry.label else "none"
        size = f"{entry.tier} | {_number(entry.cells)} x {_number(entry.genes)} | {classes}"
        size = "table | |" if name in registry.tables else size
        rows.append(f"| [{name}](#{name}) | {size} | {entry.title} | {_download(entry)} |")
        sections.append(_section(name, entry))
    introduction = PAGE.read_text(encoding="utf-8").partition(header)[0]
    return introduction + "\n".join([header, *rows, "", *sections])


def _section(name: str, entry: Dataset) -> str:
    is_table = bool(entry.source.columns)
    left_out = [f"all but `{column}` {', '.join(values)}" for column, values in entry.keep.items()]
    left_out += [f"`{column}` {', '.join(values)}" for column, values in entry.drop.items()]
    left_out += ["cells without a label"] * entry.drop_unlabelled
    facts = {
        "Species": is_table and entry.species,
        "Columns": ", ".join(f"`{column}`" for column in entry.source.columns),
        "Cells": not is_table and f"{entry.species}, {entry.tissue}; {entry.protocol}",
        "Size": not is_table and _shape(entry),
        "Values": not is_table and (entry.state or "recognised from the values when they are used"),
        "Done before publication": entry.preprocessing,
        "Labels": ", ".join(f"`{column}`" for column in (entry.label, *entry.other_labels) if column),
        **{key.title(): f"`{value}`" for key in ("sample", "condition", "region") if (value := getattr(entry, key))},
        "Genes": not is_table and {"none": "not named"}.get(entry.gene_ids, entry.gene_ids),
        "Left out": "; ".join(left_out),
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
    classes = f"{_number(entry.classes)} classes" if entry.label else "no labels"
    sizes = [f"{size} {shape['cells']:,} x {shape['genes']:,}" for size, shape in (entry.source.sizes or {}).items()]
    return f"{', '.join(sizes) or f'{_number(entry.cells)} cells x {_number(entry.genes)} genes'}; {classes}"


def _file(entry: Dataset, file: DataFile) -> list[str]:
    size = "size unknown" if file.size is None else f"{file.size:,} bytes"
    sha256 = f"SHA-256 `{file.sha256}`" if file.sha256 else "no hash is published"
    source, members = entry.source, []
    if source.archive:
        members = [f"`{member}`" for member in (*source.matrix, source.labels, source.genes) if member]
    elif source.object and file == source.matrix:
        members = [f"`{source.object}`"]
    lines = [f"- `{file.name}`: {size}, {sha256}", *(f"  - <{url}>" for url in file.urls)]
    return lines + [f"  - {', '.join(members)}"] * bool(members)


def _download(entry: Dataset) -> str:
    sizes = [file.size for file in entry.source.files]
    return "unknown" if None in sizes else f"{sum(sizes) / 1e6:,.1f} MB" if sizes else "none"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
