"""A model's card: what it was made of, how well it does on cells that it did not learn from, and what it cannot do."""

from typing import NamedTuple

import anndata as ad
import pandas as pd

from sims_kit import metrics
from sims_kit.annotation import annotate
from sims_kit.cells.genes import USABLE
from sims_kit.cells.matrix import label_text
from sims_kit.errors import LabelError, UnknownNameError
from sims_kit.explanation import explain
from sims_kit.model import SIMSClassifier
from sims_kit.model.about import SHOWN

WIDEST = 20  # classes of a confusion matrix that is shown whole; of more, the most frequent mistakes
TOP_GENES = 5
FEW = 25  # test cells of a class: fewer say little
EXPLAINED = 2000  # cells at most for the top genes


class Exam(NamedTuple):
    """A model measured on labelled cells."""

    scores: pd.Series
    """As of `sims_kit.metrics.score`."""
    classes: pd.DataFrame
    """As of `sims_kit.metrics.per_class`."""
    confusion: pd.DataFrame
    """Cells by true label (rows) and predicted label (columns)."""
    genes: pd.DataFrame
    """Ranks x classes: the genes that speak most for each class."""


def examine(model: SIMSClassifier, cells: ad.AnnData, label: str) -> Exam:
    """Measure a model on cells that it did not learn from.

    Raises
    ------
    UnknownNameError
        There is no such `obs` column.
    LabelError
        No cell has a label that the model knows.
    GeneError, DataError
        As `annotate` raises them.
    """
    if label not in cells.obs:
        raise UnknownNameError("obs column", label, cells.obs.columns)
    truth = label_text(cells.obs[label])
    known = truth.isin(model.classes).to_numpy()
    if not known.any():
        raise LabelError(f"None of {len(truth):,} cells has a label in {label!r} that is a class of the model.")
    cells, truth = cells[known].copy(), truth[known]
    annotate(cells, model, key_added="card")
    found = cells.obs["card_label"].astype(str)
    probabilities = pd.DataFrame(cells.obsm["card_probabilities"], columns=model.classes)
    explained = explain(model, cells[:: max(1, cells.n_obs // EXPLAINED)].copy())
    return Exam(
        metrics.score(truth, found, probabilities),
        metrics.per_class(truth, found),
        pd.crosstab(truth.rename("true label"), found.rename("predicted")),
        explained.top_genes(TOP_GENES),
    )


def write_card(name: str, model: SIMSClassifier, exam: Exam | None, title: str = "") -> str:
    """The card as Markdown.

    Parameters
    ----------
    name
        In the zoo.
    model
        As loaded from its file, so that date, licence and notes are known.
    exam
        From `examine`; None where there were no cells, which the card then says.
    title
        What it is for, in a sentence.
    """
    about, provenance = model.about, model.provenance
    parts = [
        f"# {name}",
        title,
        f"Labels cells with one of {model.output_dim} classes by {model.input_dim:,} genes"
        f"{_kind(about.get('gene_kind'))}: {', '.join(model.classes)}.",
        f"```python\nimport sims_kit as sk\n\nsk.annotate(query, sk.zoo.load({name!r}))\n```",
        "## Data",
        _data(provenance),
        "## How good is it?",
        *(_measured(exam) if exam else ["It was not measured on test cells for this card."]),
        "## Limits",
        _limits(model, exam),
        "## Made",
        f"{about.get('saved', '')}, with {', '.join(f'{k} {v}' for k, v in about.get('versions', {}).items())}. "
        f"Licence: {about.get('licence') or 'not stated'}.",
        about.get("notes", ""),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _kind(kind: str | None) -> str:
    return f" ({kind} names)" if kind else ""


def _data(provenance: dict) -> str:
    files = [file for file in provenance.get("files", []) if isinstance(file, dict)]
    if not files:
        return "The model does not say what it was trained on."
    rows = pd.DataFrame(
        {
            "data": [file.get("dataset") or file.get("file", "") for file in files],
            "cells": [file.get("cells") for file in files],
            "genes": [file.get("genes") for file in files],
            "matrix": [file.get("state", "") for file in files],
            "SHA-256": [", ".join(found[:12] for found in file.get("sha256", [])) or "not known" for file in files],
        }
    )
    parts = ", ".join(f"{n:,} {part}" for part, n in provenance.get("cells", {}).items())
    return (
        f"{_table(rows)}\n\nLabels: `{provenance.get('class_label')}`. Cells: {parts}. Seed {provenance.get('seed')}."
    )


def _measured(exam: Exam) -> list[str]:
    shown = ", ".join(f"{text} {exam.scores[name]:.3f}" for name, text in SHOWN.items())
    error = f"expected calibration error {exam.scores['calibration_error']:.3f}"
    classes = exam.classes.rename(columns={"support": "cells"}).reset_index()
    genes = [{"class": label, "genes": ", ".join(map(str, found))} for label, found in exam.genes.items()]
    return [
        f"On {int(exam.confusion.to_numpy().sum()):,} cells that it did not learn from: {shown}, {error}.",
        _table(classes[["class", "cells", "precision", "recall", "f1"]]),
        *_confusion(exam.confusion),
        "## Genes",
        "Those that speak most for each class, by their mean contribution to its logit:",
        _table(pd.DataFrame(genes)),
    ]


def _confusion(confusion: pd.DataFrame) -> list[str]:
    if max(confusion.shape) <= WIDEST:
        return ["Cells by true label (rows) and predicted label (columns):", _table(confusion.reset_index())]
    pairs = confusion.stack()
    wrong = pairs[[true != found for true, found in pairs.index]].nlargest(WIDEST)
    return ["The most frequent mistakes:", _table(wrong[wrong > 0].rename("cells").reset_index())]


def _limits(model: SIMSClassifier, exam: Exam | None) -> str:
    told = [
        f"- It knows {model.output_dim} classes. A cell of another type gets the nearest of them, unless you ask for "
        "`reject=` or `alpha=`.",
        f"- A query needs at least {USABLE:.0%} of its genes, in the same kind of ids and of the same species.",
        "- Tissues, protocols and laboratories that it was not trained on are harder: measure it on some cells of your "
        "own before you rely on it.",
    ]
    if model.calibration_cells is None:
        told.append("- Its confidences were not calibrated on held-out cells.")
    else:
        n_cells = len(model.calibration_cells.labels)
        told.append(f"- Its confidences were calibrated on {n_cells:,} validation cells of the same data.")
    if exam is not None and len(few := exam.classes.index[exam.classes["support"] < FEW]):
        told.append(f"- Fewer than {FEW} test cells, so that its numbers say little: {', '.join(few)}.")
    return "\n".join(told)


def _table(rows: pd.DataFrame) -> str:
    """A Markdown table."""
    texts = rows.map(lambda field: f"{field:.3f}" if isinstance(field, float) else str(field))
    lines = [list(map(str, rows.columns)), ["---"] * rows.shape[1], *texts.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(field.replace("|", "\\|") for field in line) + " |" for line in lines)
