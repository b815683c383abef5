"""Write sims_kit/datasets/cell_ontology.tsv from the Cell Ontology as CELLxGENE's ontology guide has it.

python tools/write_ontology.py CL-ontology-v2026-03-26.json  # unpacked, of chanzuckerberg/cellxgene-ontology-guide
"""

import json
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "sims_kit/datasets/cell_ontology.tsv"
HEAD = """\
# Cell Ontology, {}: every term that is not obsolete, its label, and the terms that it is directly a kind of.
# Tan et al. (2026), doi:10.1038/s41597-026-07173-8, CC BY 4.0. Definitions and synonyms are left out.
# Written by tools/write_ontology.py from the file of https://github.com/chanzuckerberg/cellxgene-ontology-guide.
"""


def main(path: Path) -> None:
    """Write a line per term: id, label, and the ids of its parents with blanks between them."""
    lines = [HEAD.format(path.stem.removeprefix("CL-ontology-"))]
    for term, facts in sorted(json.loads(path.read_text(encoding="utf-8")).items()):
        if not facts["deprecated"]:
            parents = sorted(name for name, distance in facts["ancestors"].items() if distance == 1)
            lines.append("\t".join([term, facts["label"], " ".join(parents)]) + "\n")
    TABLE.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
