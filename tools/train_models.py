"""Train the ready models that `sims_kit.load_model(name)` knows, and write docs/models.md below its introduction.

Each is trained on all its studies; what its card says of a study is from a model that was trained without it.
"""

from pathlib import Path

import pandas as pd
import yaml
from anndata import AnnData

import sims_kit as sk
from sims_kit.datasets.ontology import COLUMN
from sims_kit.model.file import READY

PAGE = READY.parents[1] / "docs/models.md"
REJECT = 0.1
SCORES = ["cells", "accuracy", "mean recall of the types", f"labelled with reject={REJECT}", "errors among these"]
MOST_GENES = 5000  # of the file; of more, those that most cells express
MODELS = yaml.safe_load(Path(__file__).with_name("models.yaml").read_text(encoding="utf-8"))


def read(name: str, facts: dict) -> AnnData:
    """The cells of a dataset whose label is one of the model's types, under the names of these."""
    cells, label = sk.load(name), sk.datasets.catalogue().loc[name, "label"]
    of_class = {own: label for label, (_, *names) in facts["types"].items() for own in names}
    cells.obs["cell_type"] = cells.obs[label].astype(str).map(of_class)
    cells.obs[COLUMN] = cells.obs["cell_type"].map({label: term for label, (term, *_) in facts["types"].items()})
    for column, value in (facts["studies"].get(name) or {}).items():
        cells = cells[cells.obs[column] == value]
    return cells[cells.obs["cell_type"].notna()].copy()


def fit(studies: dict[str, AnnData], genes: list[str]) -> sk.SIMSClassifier:
    """A model by the default recipe, but its networks read half as many genes of each class: half the size."""
    return sk.fit([*studies.values()], "cell_type", genes=genes, recipe={"genes_per_class": 50}, verbose=False)


def scores(model: sk.SIMSClassifier, cells: AnnData, species: str | None = None) -> list[float]:
    """What `SCORES` names, of the cells whose type the model knows."""
    cells = cells[cells.obs["cell_type"].isin(model.classes)].copy()
    sk.annotate(cells, model, species=species)
    found = sk.metrics.score(cells.obs["cell_type"], cells.obs["sims_label"])
    sk.annotate(cells, model, species=species, reject=REJECT)
    kept = cells.obs[cells.obs["sims_label"] != "Unknown"].astype(str)
    wrong = (kept["sims_label"] != kept["cell_type"]).mean()
    return [cells.n_obs, found["accuracy_micro"], found["recall_macro"], len(kept) / cells.n_obs, wrong]


def main() -> None:
    """Train each model, score it across studies, write its file and its section of the page."""
    sections = [PAGE.read_text(encoding="utf-8").partition("\n## ")[0].rstrip()]
    for name, facts in MODELS.items():
        studies = {study: read(study, facts) for study in facts["studies"]}
        genes = sorted(set.intersection(*(set(cells.var_names) for cells in studies.values())))
        expressed = sum(cells[:, genes].X.getnnz(axis=0) for cells in studies.values())
        genes = sorted(pd.Series(expressed, genes).nlargest(MOST_GENES).index)
        rows = {}
        for left_out, cells in studies.items():
            if others := {study: cells for study, cells in studies.items() if study != left_out}:
                rows[left_out] = scores(fit(others, genes), cells)
        model = fit(studies, genes)
        for other in facts.get("human", ()):
            rows[f"{other}, by orthologs"] = scores(model, read(other, facts), species="human")
        found = "; ".join(f"{row[1]:.2f} / {row[2]:.2f} on {study}" for study, row in rows.items())
        entries = sk.datasets.catalogue().loc[list(studies)]
        notes = f"Accuracy / mean recall of the types on studies that it did not learn from: {found}. It does not know "
        notes = f"{facts['tissue']}. {notes}{facts['unknown']} Cells: {' '.join(entries['citation'])}"
        licence = "MIT; the cells: " + "; ".join(sorted(set(entries["licence"])))
        path = sk.save_model(model, READY / f"{name}.safetensors", licence=licence, notes=notes)
        lines = [f"| {study} | {n:,} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
                 for study, (n, *values) in rows.items()]  # fmt: skip
        tested = "Tested on studies that the model, or one trained without the study, did not learn from"
        title = f"\n## {name}\n\n{facts['tissue'].capitalize()}. {tested}; only types that it knows count:\n"
        head = ["| study | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
        card = [line for line in sk.load_model(path).card().splitlines()[2:] if " on test cells**" not in line]
        sections += [title, *head, *lines, "", *card]
    PAGE.write_text("\n".join(sections) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
