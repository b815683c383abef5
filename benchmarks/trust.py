"""What SIMS's confidence is worth, measured: calibration, rejection, prediction sets, types never seen.

    python benchmarks/trust.py [--tasks pbmc68k sim-cortex] [--types 6] [--models results/trust]
    python benchmarks/trust.py --report      # the page alone, from the tables that are there

Trains the default recipe once per task, on the reference of fold 0, and asks it the query; then one network for each
type that is left out of the reference. Models are kept in --models and tables in benchmarks/measured_trust/; what is
there is not done again. benchmarks/TRUST.md, docs/reliability.png and docs/unseen_types.png are made of the tables.
CellTypist needs `pip install 'sims_kit[peers]'`.
"""

import argparse
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from trust_page import ALPHA, ERROR_RATES, N_DIVISIONS, ROOT, TABLES, page

import sims_kit as sk
from sims_kit import calibration
from sims_kit.annotation import predict_logits
from sims_kit.cells.loaders import query_batches
from sims_kit.errors import PeerError
from sims_kit.studies import TASKS, Folds, make_peer
from sims_kit.studies.store import slug
from sims_kit.studies.sweep import sweep

ACROSS = ("cell lines across plates", "cell lines across protocols", "sim-cortex across regions")  # not alike
LEFT_OUT = {  # types large and small, alone in their lineage and with close relatives
    "sim-cortex": ("VIP", "L4 IT", "Microglia", "PVALB", "OPC", "L5 ET"),
    "pbmc68k": ("CD19+ B", "CD56+ NK", "CD14+ Monocyte", "CD8+ Cytotoxic T", "Dendritic", "CD34+"),
    "worm-neurons": ("type 3", "type 4", "type 8", "type 10"),
    "mouse-immune": ("B cell", "NK cell", "Granulocyte"),
}
PEERS = ("logistic regression", "linear SVM, calibrated", "CellTypist")
QUIET = dict(test=0, seed=0, verbose=False, logger=False, enable_progress_bar=False)


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [name for name in TASKS if name != "cell lines across protocols"]  # the costliest, and as easy as plates
    parser.add_argument("--tasks", nargs="*", default=usual)
    parser.add_argument("--types", type=int, default=6, help="types to leave out of each of " + ", ".join(LEFT_OUT))
    parser.add_argument("--models", type=Path, default=ROOT / "results/trust", help="where fitted models lie")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    for task in () if arguments.report else arguments.tasks:
        if (TABLES / slug(task)).exists():
            continue
        tables = measure(task, arguments.models)
        (TABLES / slug(task)).mkdir(parents=True)
        for name, table in tables.items():
            table.to_csv(TABLES / slug(task) / f"{name}.csv", index=False, float_format="%.5g")
        print(f"{task}: {tables['summary'].to_dict('records')[0]}", flush=True)
    if not arguments.report:
        runs = [
            {"task": task, "left_out": name} for task, names in LEFT_OUT.items() for name in names[: arguments.types]
        ]
        sweep(runs, partial(unseen, models=arguments.models), TABLES / "unseen", desc="left-out types")
    (ROOT / "benchmarks/TRUST.md").write_text(page())


@cache
def fold(task: str):
    """Fold 0 of a task."""
    return Folds(TASKS[task])[0]


def fitted(task: str, models: Path, left_out: str = ""):
    """The model of a task, without a type if one is left out; and the cells that it was given."""
    reference = fold(task).reference
    recipe = "default"
    if left_out:
        reference = reference[reference.obs["label"] != left_out].copy()
        default = sk.RECIPES["default"]
        recipe = sk.Recipe(**{**vars(default), "network": {**default.network, "n_models": 1}})
    path = models / f"{slug(f'{task}-{left_out}-' + ('one' if left_out else 'default'))}.safetensors"
    if not path.exists() or not sk.load_model(path).novelty.is_calibrated:  # of an earlier version
        sk.save_model(sk.fit(reference, "label", recipe=recipe, **QUIET), path)
    return sk.load_model(path), reference


def measure(task: str, models: Path) -> dict[str, pd.DataFrame]:
    """All tables of a task by name: summary, reliability, coverage by class, and divisions of the held-out cells."""
    model, reference = fitted(task, models)
    names = pd.Index(model.classes)
    logits = logits_of(model, fold(task).query)
    truth = names.get_indexer(fold(task).truth)
    row = {"task": task, "n_classes": len(names), "n_validation": len(model.calibration_cells.labels)}
    row |= {"n_test": len(truth), "temperature": model.temperature.item()}
    row["accuracy"] = (logits.argmax(1) == truth).mean()
    bins = []
    for name, values in (("before", logits * model.temperature.item()), ("after", logits)):
        confidence, right = confidences(values, truth)
        row[f"error_{name}"] = calibration.expected_calibration_error(confidence, right)
        row[f"floor_{name}"], row[f"floor_high_{name}"] = calibration_floor(confidence)
        row[f"confidence_{name}"] = confidence.mean()
        bins.append(calibration.reliability_table(confidence, right).assign(group=name))
    kept = model.calibration_cells
    for rate in ERROR_RATES:
        row |= rejection(kept.confidence, kept.correct, *confidences(logits, truth), rate)
    tables = {"bins": pd.concat(bins)}
    for name, by_class in (("marginal", False), ("by_class", True)):
        limits = quantiles(kept.nonconformity, kept.labels, len(names), by_class=by_class)
        sets = calibration.nonconformity(logits) <= limits
        tables[f"coverage_{name}"] = table = coverage_table(sets, np.asarray(fold(task).truth), names)
        row |= {f"coverage_{name}": table["coverage"].iloc[-1], f"size_{name}": table["mean_size"].iloc[-1]}
        row[f"empty_{name}"] = table["empty"].iloc[-1]
    if task not in ACROSS:
        module = sk.DataModule(reference, None, "label", test=0, seed=0, verbose=False)
        held_out = reference[module.split.validation]
        both = np.concatenate([logits_of(model, held_out), logits]) * model.temperature.item()
        labels = np.concatenate([names.get_indexer(held_out.obs["label"]), truth])
        tables["divisions"] = divisions(both, labels, held_out.n_obs)
    return {"summary": pd.DataFrame([row])} | tables


def divisions(logits: np.ndarray, labels: np.ndarray, n_calibration: int) -> pd.DataFrame:
    """What many divisions of the held-out cells into calibration and test cells find; a row per division and score.

    Training has seen neither the validation cells, which decide nothing in the default recipe, nor the query, so any
    of them may calibrate. One division of a few hundred cells says little; their mean is what to expect.
    """
    random, rows, cells = np.random.default_rng(0), [], np.arange(len(labels))
    for number in range(N_DIVISIONS):
        order = random.permutation(cells)
        own, other = order[:n_calibration], order[n_calibration:]
        values = logits / calibration.fit_temperature(logits[own], labels[own])
        confidence, right = confidences(values, labels)
        row = {"division": number, "error": calibration.expected_calibration_error(confidence[other], right[other])}
        for rate in ERROR_RATES:
            row |= rejection(confidence[own], right[own], confidence[other], right[other], rate)
        for score in ("lac", "aps", "raps"):
            scores = nonconformity(values, score)
            for name, by_class in (("marginal", False), ("by_class", True)):
                limits = quantiles(scores[own, labels[own]], labels[own], logits.shape[1], by_class=by_class)
                sets = scores[other] <= limits
                found = {"coverage": sets[np.arange(len(other)), labels[other]].mean(), "size": sets.sum(1).mean()}
                rows.append(row | {"score": score, "kind": name} | found | {"empty": (~sets.any(1)).mean()})
    return pd.DataFrame(rows)


def calibration_floor(confidence: np.ndarray) -> tuple[float, float]:
    """Mean and 95th percentile of the calibration error that chance alone gives to confidences that are right."""
    draws = np.random.default_rng(0).random((200, len(confidence))) < confidence
    errors = [calibration.expected_calibration_error(confidence, right) for right in draws]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))


def nonconformity(logits: np.ndarray, score: str) -> np.ndarray:
    """Scores of each class, (cells, classes): "lac", "aps" (Romano et al. 2020), "raps" (Angelopoulos et al. 2021)."""
    if score == "lac":
        return calibration.nonconformity(logits)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    values = np.cumsum(ordered, axis=1) - ordered / 2  # all more probable classes and half of its own
    if score == "raps":
        values += 0.01 * np.maximum(np.arange(1, logits.shape[1] + 1) - 2, 0)  # from the third class on
    return np.take_along_axis(values, np.argsort(order, axis=1), axis=1)


def quantiles(scores: np.ndarray, labels: np.ndarray, n_classes: int, *, by_class: bool) -> np.ndarray:
    """Scores up to which classes belong into a set: one of each class, or the same for all."""
    if by_class:
        return calibration.conformal_quantiles(scores, labels, n_classes, ALPHA)
    return np.full(n_classes, np.quantile(scores, 1 - ALPHA, method="weibull"))


def coverage_table(sets: np.ndarray, truth: np.ndarray, classes: pd.Index) -> pd.DataFrame:
    """How often sets hold the true class, and their sizes: a row per true class, and at the end one for all cells."""
    column, sizes, rows = classes.get_indexer(truth), sets.sum(axis=1), []
    covered = sets[np.arange(len(truth)), column] & (column >= 0)
    groups = {name: truth == name for name in pd.Series(truth).value_counts().index}
    for name, own in (groups | {"all cells": np.ones(len(truth), dtype=bool)}).items():
        low, high = calibration.share_interval(int(covered[own].sum()), int(own.sum()))
        row = {"class": name, "n_cells": own.sum(), "coverage": covered[own].mean(), "coverage_low": low}
        row |= {"coverage_high": high, "mean_size": sizes[own].mean(), "empty": (sizes[own] == 0).mean()}
        rows.append(row | {"single": (sizes[own] == 1).mean(), "several": (sizes[own] > 1).mean()})
    return pd.DataFrame(rows)


def rejection(confidence, correct, test_confidence, test_correct, rate: float) -> dict[str, float]:
    """A threshold chosen on the first cells, tried on the second."""
    found = calibration.rejection_threshold(confidence, correct, error_rate=rate)
    answered = test_confidence >= found.threshold
    wrong = float((~test_correct[answered]).mean()) if answered.any() else np.nan
    name = f"{rate:g}"
    return {f"lowest_{name}": found.lowest_error_rate, f"answered_{name}": answered.mean(), f"wrong_{name}": wrong}


def unseen(task: str, left_out: str, models: Path) -> pd.DataFrame:
    """How well scores tell a type that was left out from those that were not: a row per method."""
    model, reference = fitted(task, models, left_out)
    whole, query = fold(task).reference, fold(task).query
    more = whole[whole.obs["label"] == left_out].copy()
    truth = np.concatenate([fold(task).truth == left_out, np.ones(more.n_obs, dtype=bool)])
    module = sk.DataModule(reference, None, "label", test=0, seed=0, verbose=False)
    training = reference[module.split.train].copy()
    scores = sims_scores(model, training, [query, more])
    for name in PEERS:
        try:
            peer = make_peer(name)
            peer.fit(reference, "label", seed=0)
        except PeerError as error:
            print(error)
            continue
        found = [peer.predict(cells).probabilities.max(axis=1) for cells in (query, more)]
        scores[f"{name}, maximum probability"] = -np.concatenate(found)
    rows = {"method": list(scores), "auroc": [roc_auc_score(truth, values) for values in scores.values()]}
    return pd.DataFrame(rows).assign(n_unseen=truth.sum(), n_known=(~truth).sum())


def sims_scores(model, training, parts: list) -> dict[str, np.ndarray]:
    """SIMS's own scores of the cells of all parts, higher where a cell is less like any class."""
    logits, unseen = (np.concatenate(found) for found in zip(*(outputs(model, cells) for cells in parts), strict=True))
    probabilities = softmax(logits.astype(np.float64), axis=1)
    classes = pd.Index(model.classes).get_indexer(training.obs["label"])
    own, _ = embedding(model, training)
    other, energy = (np.concatenate(f) for f in zip(*(embedding(model, cells) for cells in parts), strict=True))
    unit, other_unit = (values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-9) for values in (own, other))
    neighbours = NearestNeighbors(n_neighbors=min(10, len(unit))).fit(unit)
    means = np.stack([own[classes == number].mean(axis=0) for number in range(len(model.classes))])
    within = LedoitWolf(assume_centered=True).fit(own - means[classes])
    return {
        "SIMS, unseen score": unseen,
        "SIMS, maximum probability": calibration.nonconformity(logits).min(axis=1),
        "SIMS, entropy": -(probabilities * np.log(probabilities.clip(1e-300))).sum(axis=1),
        "SIMS, energy": energy,
        "SIMS, Mahalanobis distance": np.min([within.mahalanobis(other - mean) for mean in means], axis=0),
        "SIMS, distance to neighbours": neighbours.kneighbors(other_unit)[0][:, -1],
    }


@torch.no_grad()
def embedding(model, cells) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer of all networks adds up, decisions and evidence, (cells, values); and the energy, (cells,).

    The energy (Liu et al., NeurIPS 2020) is minus the logarithm of the summed exponentials of a network's logits.
    """
    batches, *_ = query_batches(cells, model.genes)
    found, energies = [], []
    for batch in batches:
        steps = [(network, network.steps(batch.cells)) for network in model.network.members]
        found.append(torch.cat([part for _, own in steps for step in own for part in step[1:]], dim=1))
        energies.append(-sum(network.logits_of(own).logsumexp(1) for network, own in steps) / len(steps))
    return torch.cat(found).numpy().astype(np.float64), torch.cat(energies).numpy()


def outputs(model, cells) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits and unseen scores."""
    batches, *_ = query_batches(cells, model.genes)
    return tuple(found.numpy() for found in predict_logits(model, batches))


def logits_of(model, cells) -> np.ndarray:
    """Calibrated logits."""
    return outputs(model, cells)[0]


def confidences(logits: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the predicted class, and whether it is the true one."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == truth


if __name__ == "__main__":
    main()
