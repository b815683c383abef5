"""The Cell Ontology (Tan et al. 2026, doi:10.1038/s41597-026-07173-8): cell types, and the broader types they are."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

COLUMN = "cell_type_ontology_term_id"  # of obs, in CELLxGENE's files


@cache
def read_terms() -> dict[str, tuple[str, list[str]]]:
    """The label of each term, and the ids of those that it is a kind of, by its id; see the head of the table."""
    text = Path(__file__).with_name("cell_ontology.tsv").read_text(encoding="utf-8")
    lines = (line.split("\t") for line in text.splitlines() if not line.startswith("#"))
    return {term: (label, parents.split()) for term, label, parents in lines}


@cache
def lineage(term: str) -> frozenset[str]:
    """The term and all that it is a kind of; of an unknown term, itself.

    >>> "CL:0000084" in lineage("CL:0000624")  # a CD4 T cell is a T cell
    True
    """
    return frozenset([term]).union(*map(lineage, read_terms().get(term, ("", []))[1]))


def common_term(terms: Collection[str]) -> str | None:
    """The narrowest term that all of these are, or are a kind of; None where there is none.

    >>> common_term(["CL:0000624", "CL:0000625"])  # CD4 and CD8 T cells are mature alpha-beta T cells
    'CL:0000791'
    """
    shared = frozenset.intersection(*map(lineage, terms)) if len(terms) else ()
    return max(shared, key=_depth, default=None)


def ontology_paths(classes: Sequence[str], ids: Mapping[str, str]) -> tuple[list[list[str]], dict[str, str]]:
    """For each class its name and those of the broader types that hold other classes too, narrowest first.

    `ids` has the term of each class; without one, a class that has the label of a term stands for it. Of several terms
    that hold the same classes, the narrowest is there. The ids of all names come second.

    >>> ontology_paths(["CD4 T", "CD8 T", "B"], {"CD4 T": "CL:0000624", "CD8 T": "CL:0000625", "B": "CL:0000236"})[0][2]
    ['B', 'lymphocyte']
    """
    terms = read_terms()
    term_of = {label.casefold(): term for term, (label, _) in terms.items()}
    found = {name: term for name in classes if (term := ids.get(name) or term_of.get(name.casefold()))}
    groups = {}  # classes, and the narrowest term that holds exactly these
    for term in sorted(terms.keys() & frozenset().union(*map(lineage, found.values())), key=_depth):
        groups[frozenset(name for name, own in found.items() if term in lineage(own))] = term
    groups = {held: term for held, term in groups.items() if len(held) > 1}
    of_one = {term: name for name, term in found.items() if [*found.values()].count(term) == 1}
    names = {term: of_one.get(term, terms[term][0]) for term in groups.values()}
    names |= {term: f"{name} ({term})" for term, name in names.items() if name in classes and term not in of_one}
    order = sorted(groups.items(), key=lambda group: (-len(group[0]), _depth(group[1])), reverse=True)
    paths = [[name, *(names[term] for held, term in order if name in held and names[term] != name)] for name in classes]
    return paths, found | {names[term]: term for term in groups.values()}


def _depth(term: str) -> tuple[int, str]:
    """Terms sorted by it have broader ones first."""
    return len(lineage(term)), term
