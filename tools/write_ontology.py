"""Write sims_kit/datasets/cell_ontology.tsv from the Cell Ontology as CELLxGENE's ontology guide has it.

python tools/write_ontology.py CL-ontology-v2026-03-26.json  # unpacked, of chanzuckerberg/cellxgene-ontology-guide
"""

import json
import re
import sys
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "sims_kit/datasets/cell_ontology.tsv"
OF_MANY_KINDS = (  # labels of terms that are left out as parents
    "(?!antibody).* (secreting|accumulating|signaling) cell|((eukaryotic|(single |a|bi|multi)?nucleate|motile"
    "|circulating|secretory|exocrine|contractile|electrically (active|responsive)|precursor|progenitor|supporting"
    "|excretory|.*ploid) )?cell"
)
HEAD = """\
# Cell Ontology, {}: every term that is not obsolete, its label, and the terms that it is a kind of. Left out
# as parents are terms for what cells of many kinds do or are, such as "secretory cell"; their parents stand there.
# Tan et al. (2026), doi:10.1038/s41597-026-07173-8, CC BY 4.0. Definitions and synonyms are left out.
# Written by tools/write_ontology.py from the file of https://github.com/chanzuckerberg/cellxgene-ontology-guide.
"""


def main(path: Path) -> None:
    """Write a line per term: id, label, and the ids of its parents with blanks between them."""
    terms = json.loads(path.read_text(encoding="utf-8"))

    def parents(term: str) -> set[str]:
        direct = {name for name, distance in terms[term]["ancestors"].items() if distance == 1}
        skipped = {name for name in direct if re.fullmatch(OF_MANY_KINDS, terms[name]["label"])}
        return (direct - skipped).union(*map(parents, skipped))

    kept = sorted(term for term in terms if not terms[term]["deprecated"])
    lines = ["\t".join([term, terms[term]["label"], " ".join(sorted(parents(term)))]) + "\n" for term in kept]
    TABLE.write_text(HEAD.format(path.stem.removeprefix("CL-ontology-")) + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
