"""What SIMS's explanations are worth, measured: truth, faithfulness, sufficiency, stability, known markers.

    python benchmarks/interpretation.py [--tasks sim-cortex pbmc68k mouse-immune] [--seeds 3] [--cells 200]
    python benchmarks/interpretation.py --report     # the page alone, from the tables that are there

Four fifths of the cells train as many models as there are seeds; the last fifth is explained and has genes taken away.
Tables go to benchmarks/measured_interpretation/.
"""

import argparse
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import scanpy as sc
import seaborn as sns
import torch
from anndata import AnnData
from matplotlib import pyplot as plt
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, auc, average_precision_score
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC
from study_page import ROOT, machine, markdown

import sims_kit as sk
from sims_kit.cells.matrix import log_normalised
from sims_kit.datasets.simulate import PRESETS, simulate

TABLES = ROOT / "benchmarks/measured_interpretation"
QUIET = dict(test=0, verbose=False, logger=False)
SIZES = (5, 10, 20, 50, 100, 200)  # genes, of sufficiency
KNOWN = pd.read_csv(ROOT / "benchmarks/known_markers.csv")  # from publications


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sim-cortex", *KNOWN["task"].unique()])
    parser.add_argument("--seeds", type=int, default=3, help="models of the default recipe, of four networks each")
    parser.add_argument("--cells", type=int, default=200, help="test cells that have genes taken away")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    for task in [] if arguments.report else arguments.tasks:
        (TABLES / task).mkdir(parents=True, exist_ok=True)
        for name, table in measure(task, arguments.seeds, arguments.cells).items():
            table.to_csv(TABLES / task / f"{name}.csv", index=False, float_format="%.5g")
    (ROOT / "benchmarks/INTERPRETATION.md").write_text(page())


def measure(task: str, n_seeds: int, n_cells: int) -> dict[str, pd.DataFrame]:
    """All tables of a task by name, and its figures."""
    cells = simulate(PRESETS[task]["fast"]) if task in PRESETS else sk.load(task)
    label = "cell_type" if task in PRESETS else cells.uns["sims_kit"]["label"]
    sizes = cells.obs[label].value_counts()
    cells = cells[cells.obs[label].isin(sizes.index[sizes > 10])].copy()
    parts = train_test_split(cells.obs_names, test_size=0.2, stratify=cells.obs[label], random_state=0)
    train, test = (cells[part].copy() for part in parts)
    models = [sk.fit(train, label, seed=seed, **QUIET) for seed in range(n_seeds)]
    model, few = models[0], test[:n_cells].copy()
    values = log_normalised(few, model.genes)
    own = {"integrated gradients": integrated_gradients(model, values), "linear SVM": svm_scores(model, few, values)}
    curves = pd.concat([sk.studies.faithfulness(model, few, *methods) for methods in ((), (own,))])
    rankings = rank_genes(model, train, label)
    gradients = integrated_gradients(model, log_normalised(train, model.genes))
    of_class = {name: gradients[(train.obs[label] == name).to_numpy()].mean(axis=0).A1 for name in model.classes}
    rankings["integrated gradients"] = pd.DataFrame(of_class, model.genes).T
    explained = sk.explain(model, test)
    row = {"task": task, "training_cells": train.n_obs, "test_cells": test.n_obs, "genes": len(model.genes)}
    row |= {"classes": len(model.classes), "test_accuracy": (explained.predicted == test.obs[label]).mean()}
    tables = {"setting": pd.DataFrame([row | {"genes_per_cell": explained.cells.nnz / test.n_obs}]), "curves": curves}
    if "type_factor" in cells.varm:
        factors = pd.DataFrame(cells.varm["type_factor"], cells.var_names, cells.uns["truth"]["types"]).T
        tables["truth"] = marker_recovery(rankings, factors.loc[model.classes, model.genes] > 1)
    tables["areas"] = areas(curves)
    tables["sufficiency"] = sufficiency(model, train, test, label, rankings)
    tables["stability"] = agreement(models, train, label)
    known = KNOWN.loc[KNOWN["task"] == task, ["class", "marker"]]
    if len(known):
        ranks = {name: ranking.rank(axis=1, ascending=False).stack() for name, ranking in rankings.items()}
        pairs = pd.MultiIndex.from_frame(known)
        tables["known_markers"] = known.assign(**{name: of_all[pairs].to_numpy() for name, of_all in ranks.items()})
    draw(task, tables, model, test)
    return tables


def rank_genes(model, train, label: str) -> dict[str, pd.DataFrame]:
    """Scores by method, classes x genes: class tables of SIMS, coefficients of linear classifiers, Wilcoxon's test."""
    explained, values = sk.explain(model, train, groupby=label), log_normalised(train, model.genes)
    cells = AnnData(values, train.obs[[label]].astype(str), pd.DataFrame(index=model.genes))
    tables = {"SIMS masks": explained.classes, "SIMS contributions": explained.class_contributions}
    linear = {"logistic regression": LogisticRegression(max_iter=1000), "linear SVM": LinearSVC(C=0.01, random_state=0)}
    for method, classifier in linear.items():
        tables[method] = pd.DataFrame(classifier.fit(values, cells.obs[label]).coef_, model.classes, model.genes)
    sc.tl.rank_genes_groups(cells, label, method="wilcoxon")
    scores = sc.get.rank_genes_groups_df(cells, None).pivot(index="group", columns="names", values="scores")
    return tables | {"Wilcoxon": scores.loc[model.classes, model.genes]}


def marker_recovery(rankings: dict[str, pd.DataFrame], markers: pd.DataFrame) -> pd.DataFrame:
    """The share of true markers among the first ten genes of each class, and the average precision of all genes."""
    rows = []
    for method, ranking in rankings.items():
        for name, true in markers.iterrows():
            scores = ranking.loc[name]
            precision, area = true[scores.nlargest(10).index].mean(), average_precision_score(true, scores[true.index])
            rows.append((method, name, true.sum(), precision, area))
    return pd.DataFrame(rows, columns=["method", "class", "n_markers", "precision_at_k", "auprc"])


def integrated_gradients(model, values: sparse.csr_matrix) -> sparse.csr_matrix:
    """By captum, from a cell without expression, of the predicted class's logit against the mean of all classes."""
    from captum.attr import IntegratedGradients  # an optional package

    def against_mean(cells, predicted):
        logits = model(cells)
        return logits.gather(1, predicted)[:, 0] - logits.mean(dim=1)

    parts = []
    for start in range(0, values.shape[0], 64):  # dense, with 512 points on the way at once: 41 MB at 20,000 genes
        dense = torch.from_numpy(values[start : start + 64].toarray())
        with torch.no_grad():
            predicted = model.eval()(dense).argmax(dim=1, keepdim=True)
        options = dict(additional_forward_args=(predicted,), n_steps=50, internal_batch_size=512)
        parts.append(IntegratedGradients(against_mean).attribute(dense, **options).numpy())
    return at_places(values, np.concatenate(parts))


def svm_scores(model, cells, values: sparse.csr_matrix) -> sparse.csr_matrix:
    """Weights of the predicted class, of an SVM fitted to the model's predictions, times the value."""
    predicted = sk.annotate(cells, model, copy=True).obs["sims_label"].astype(str)
    svm = LinearSVC(C=0.01, random_state=0).fit(values, predicted)
    weights = np.vstack([-svm.coef_, svm.coef_]) if len(svm.coef_) == 1 else svm.coef_
    return at_places(values, values.toarray() * weights[np.searchsorted(svm.classes_, predicted)])


def at_places(values: sparse.csr_matrix, scores: np.ndarray) -> sparse.csr_matrix:
    """Dense scores at the places of the values."""
    rows = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    return sparse.csr_matrix((scores[rows, values.indices], values.indices, values.indptr), values.shape)


def areas(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean height of each curve over log(1 + number of genes)."""
    rows = []
    for (method, curve), points in curves.sort_values("n_genes").groupby(["method", "curve"], sort=False):
        places = np.log1p(points["n_genes"])
        heights = {of: auc(places, points[of]) / np.ptp(places) for of in ("probability", "unchanged")}
        rows += [(of, method, curve, height) for of, height in heights.items()]
    long = pd.DataFrame(rows, columns=["of", "method", "curve", "area"])
    return long.pivot(index=["of", "method"], columns="curve", values="area").reset_index()


def sufficiency(model, train, test, label: str, rankings: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy with the genes of best rank in any class alone: of the model, and of a logistic regression on them."""
    learned, seen = (log_normalised(cells, model.genes) for cells in (train, test))
    rows = []
    for method, ranking in rankings.items():
        ranks = ranking.rank(axis=1, ascending=False)
        order = pd.DataFrame({"best": ranks.min(), "mean": ranks.mean()}).sort_values(["best", "mean"], kind="stable")
        for n in (size for size in SIZES if size <= len(model.genes)):
            genes = np.sort(pd.Index(model.genes).get_indexer(order.index[:n]))
            alone = seen @ sparse.diags(np.isin(np.arange(len(model.genes)), genes).astype(np.float32))
            with torch.no_grad():
                called = model.eval()(torch.from_numpy(alone.toarray())).argmax(dim=1).numpy()
            fresh = LogisticRegression(max_iter=1000).fit(learned[:, genes], train.obs[label])
            answers = {"model": np.asarray(model.classes)[called], "logistic regression": fresh.predict(seen[:, genes])}
            rows += [(method, n, name, accuracy_score(test.obs[label], found)) for name, found in answers.items()]
    return pd.DataFrame(rows, columns=["method", "n_genes", "classifier", "accuracy"])


def agreement(models: list, train, label: str) -> pd.DataFrame:
    """Rank-biased overlap of the first hundred genes of each class, of each two seeds."""
    rows, found = [], [sk.explain(model, train, groupby=label) for model in models]
    for measure, attribute in (("contributions", "class_contributions"), ("masks", "classes")):
        for name in found[0].classes.index:
            ranked = [getattr(one, attribute).loc[name].nlargest(100) for one in found]
            ranked = [list(genes.index[genes > 0]) for genes in ranked]
            rows += [(measure, name, rank_biased_overlap(*pair)) for pair in combinations(ranked, 2)]
    return pd.DataFrame(rows, columns=["measure", "class", "rbo"])


def rank_biased_overlap(first: list, second: list) -> float:
    """Overlap of two rankings, 0 to 1 (Webber, Moffat and Zobel 2010, doi:10.1145/1852102.1852106, equation 32)."""
    short, long = sorted((first, second), key=len)
    if not len(short):
        return np.nan
    p, depths = 0.9, np.arange(1, len(long) + 1)
    common = np.array([len(set(short[:depth]) & set(long[:depth])) for depth in depths])
    beyond = np.maximum(depths - len(short), 0) * common[len(short) - 1] / len(short)  # the short one is taken to go on
    agreement = (common + beyond) / depths
    return float(agreement @ p**depths * (1 - p) / p + agreement[-1] * p ** len(long))


def draw(task: str, tables: dict[str, pd.DataFrame], model, test) -> None:
    """The figures of a task."""
    curves, pairs = tables["curves"], tables["stability"].query("measure == 'contributions'")
    drawn = curves[curves["method"] != "linear SVM"]
    looks = dict(hue="method", style="method", markers=True, dashes=False, palette="colorblind")
    grid = sns.relplot(drawn, kind="line", x="n_genes", y="probability", col="curve", height=3.6, **looks)
    grid.set(xscale="symlog", ylim=(0, 1.03))
    figures = {"faithfulness": grid.axes}
    if "truth" in tables:
        figures["truth"] = sns.stripplot(tables["truth"], x="auprc", y="method", ax=plt.subplots()[1])
    figures["stability"] = sns.stripplot(pairs, x="rbo", y="class", ax=plt.subplots(layout="constrained")[1])
    why = sk.explain_cell(model, test, name := test.obs_names[0])
    figures["cell"] = sk.plotting.cell_genes(why.genes)
    figures["cell"].set_title(f"{name}: {why.label} ({why.probability:.0%})")
    for kind, axes in figures.items():
        np.ravel(axes)[0].figure.savefig(ROOT / f"docs/interpretation_{task}_{kind}.png", dpi=110, bbox_inches="tight")
    plt.close("all")


def page() -> str:
    """The page as Markdown, of the tables that are there."""
    parts = [
        "# What the explanations are worth",
        "Written by `python benchmarks/interpretation.py`; do not edit. Models of the default recipe, trained on four "
        "fifths of the cells; genes are taken away from cells of the last fifth, and what comes out of the network is "
        "compared with the whole cell. Methods that need labels or a fit of their own have the training cells.",
        machine("captum", "scanpy"),
    ]
    for folder in sorted(TABLES.iterdir(), key=lambda folder: folder.name != "sim-cortex"):
        tables = {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")}
        parts += [f"## {folder.name}", *sections(folder.name, tables)]
    return "\n\n".join(parts) + "\n"


def sections(task: str, tables: dict[str, pd.DataFrame]) -> list[str]:
    """The sections of a task: a heading, a table and a figure each."""
    row = tables["setting"].iloc[0]
    parts = [
        f"{row.training_cells:,} cells to train on, {row.test_cells:,} to test, {row.genes:,} genes, {row.classes} "
        f"classes; test accuracy {row.test_accuracy:.3f}; the masks pass {row.genes_per_cell:.0f} genes of a cell."
    ]
    wide = tables["areas"].pivot(index="method", columns="of", values=["deletion", "insertion"])
    wide.columns = [f"{curve}, {value}" for curve, value in wide.columns]
    stable = tables["stability"].groupby("measure")[["rbo"]].mean()
    enough = tables["sufficiency"].pivot(index=["classifier", "method"], columns="n_genes", values="accuracy")
    found = {
        "Faithfulness: area over log(1 + genes) of deletion (lower is better) and insertion": ("faithfulness", wide),
        "Sufficiency: accuracy with only so many genes": (None, enough),
        "Stability: rank-biased overlap (p = .9) between seeds": ("stability", stable),
    }
    if "truth" in tables:
        truth = tables["truth"].groupby("method", sort=False)[["precision_at_k", "auprc"]].mean()
        found = {"Truth: are the ten first genes true markers? Mean over classes": ("truth", truth)} | found
    if "known_markers" in tables:
        ranks = tables["known_markers"].set_index(["class", "marker"])
        found["Known markers: their rank among all genes of the class (1: first)"] = (None, ranks)
    for heading, (kind, frame) in (found | {"One cell": ("cell", None)}).items():
        parts += [f"### {heading}"] + ([] if frame is None else [markdown(frame.reset_index())])
        parts += [f"![{kind}](../docs/interpretation_{task}_{kind}.png)"] * (kind is not None)
    return parts


if __name__ == "__main__":
    main()
