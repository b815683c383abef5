"""What SIMS's explanations are worth, measured: truth, faithfulness, sufficiency, stability, gene sets, known markers.

    python benchmarks/interpretation.py [--tasks sim-cortex pbmc68k mouse-immune] [--seeds 3] [--cells 200]
    python benchmarks/interpretation.py --report     # the page alone, from the tables that are there

Four fifths of the cells train as many models as there are seeds; the last fifth is explained and has genes taken away.
Tables go to benchmarks/measured_interpretation/, a folder per task; benchmarks/INTERPRETATION.md and the figures
docs/interpretation_*.png are made of them. The stress check also trains on simulated cortex in which one type alone is
stressed: a leak that it must find. Integrated gradients need `pip install 'sims_kit[peers]'`.
"""

import argparse

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, auc
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC
from study_page import ROOT, machine, markdown

import sims_kit as sk
from sims_kit.cells.matrix import log_normalised
from sims_kit.datasets.simulate import PRESETS, simulate

TABLES = ROOT / "benchmarks/measured_interpretation"
QUIET = dict(test=0, verbose=False, logger=False)
LEAKY = "L4 IT"  # the type that alone is stressed
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
    train, test = split(cells, label)
    models = [sk.fit(train, label, seed=seed, **QUIET) for seed in range(n_seeds)]
    model, few = models[0], test[:n_cells].copy()
    values = log_normalised(few, model.genes)
    own = {"integrated gradients": integrated_gradients(model, values), "linear SVM": svm_scores(model, few, values)}
    curves = pd.concat([sk.studies.faithfulness(model, few, *methods) for methods in ((), (own,))])
    rankings = sk.studies.rank_genes(model, train, label)
    gradients = integrated_gradients(model, log_normalised(train, model.genes))
    of_class = {name: gradients[(train.obs[label] == name).to_numpy()].mean(axis=0).A1 for name in model.classes}
    rankings["integrated gradients"] = pd.DataFrame(of_class, model.genes).T
    explained = sk.explain(model, test)
    row = {"task": task, "training_cells": train.n_obs, "test_cells": test.n_obs, "genes": len(model.genes)}
    row |= {"classes": len(model.classes), "test_accuracy": (explained.predicted == test.obs[label]).mean()}
    tables = {"setting": pd.DataFrame([row | {"genes_per_cell": explained.cells.nnz / test.n_obs}]), "curves": curves}
    if "type_factor" in cells.varm:
        factors = pd.DataFrame(cells.varm["type_factor"], cells.var_names, cells.uns["truth"]["types"]).T
        wanted = factors.loc[model.classes, model.genes] > 1
        tables["truth"] = sk.studies.marker_recovery(rankings, wanted)
    tables["areas"] = areas(curves)
    tables["sufficiency"] = sufficiency(model, train, test, label, rankings)
    tables |= agreement(models, train, label) | stress(task, model, test, label)
    known = KNOWN.loc[KNOWN["task"] == task, ["class", "marker"]]
    if len(known):
        ranks = {name: ranking.rank(axis=1, ascending=False).stack() for name, ranking in rankings.items()}
        pairs = pd.MultiIndex.from_frame(known)
        tables["known_markers"] = known.assign(**{name: of_all[pairs].to_numpy() for name, of_all in ranks.items()})
    draw(task, tables, model, test)
    return tables


def split(cells, label: str) -> list:
    """Four fifths to train, one to test."""
    parts = train_test_split(cells.obs_names, test_size=0.2, stratify=cells.obs[label], random_state=0)
    return [cells[part].copy() for part in parts]


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


def agreement(models: list, train, label: str) -> dict[str, pd.DataFrame]:
    """Rank-biased overlap between seeds: of single networks, of whole models, and of means over more networks."""
    singles = []
    for model in models:
        ones = (alone(model, place) for place in range(model.recipe.n_models))
        singles += [sk.explain(one, train, groupby=label) for one in ones]
    whole = [sk.explain(model, train, groupby=label) for model in models]
    n, tables, random = len(singles) // len(models), {}, np.random.default_rng(0)
    for measure, attribute in (("contributions", "class_contributions"), ("masks", "classes")):
        ones = [getattr(found, attribute) for found in singles]
        pairs = sk.studies.stability(ones)
        pairs = pairs[pairs["first"] // n != pairs["second"] // n]  # of other seeds
        joint = sk.studies.stability([getattr(found, attribute) for found in whole])
        parts = pd.concat({"one network": pairs, "model of four": joint}, names=["of"])
        tables[f"stability_{measure}"] = parts.reset_index(level=0)
        rows = []
        for size in range(1, len(ones) // 2 + 1):
            for draw in range(20):
                order = random.permutation(len(ones))
                means = [sum(ones[i] for i in own) / size for own in (order[:size], order[size : 2 * size])]
                rows.append((size, draw, sk.studies.stability(means)["rbo"].mean()))
        tables[f"consensus_{measure}"] = pd.DataFrame(rows, columns=["n_members", "draw", "rbo"])
    return tables


def alone(model, place: int):
    """A model of one of its networks; the chosen genes and their scale are those of all."""
    options = dict(genes=model.genes, classes=model.classes, recipe=model.recipe.changed(n_models=1))
    single, state = sk.SIMSClassifier(model.input_dim, model.output_dim, **options), model.state_dict()
    for name, part in state.items():
        if name.startswith("network.") and part.dim() and not name.endswith((".genes", ".scale", ".shift")):
            state[name] = part.chunk(model.recipe.n_models)[place]
    single.load_state_dict({name: state[name] for name in single.state_dict()})
    single.set_facts(model.facts())
    return single.eval()


def stress(task: str, model, test, label: str) -> dict[str, pd.DataFrame]:
    """The stress genes in this model and, on simulated cortex, in one that a stressed type was trained into."""
    pairs = {task: (model, test)}
    if task == "sim-cortex":
        train, held_out = split(simulate(PRESETS[task]["fast"], stress_strength=1.0, stress_types=(LEAKY,)), label)
        pairs[f"{LEAKY} alone stressed"] = sk.fit(train, label, **QUIET), held_out
    checks = {}
    for name, (of, cells) in pairs.items():
        genes = [gene for gene in of.genes if gene.upper() in sk.studies.STRESS_GENES]  # the mouse's in its own case
        if genes:
            checks[name] = sk.studies.check_gene_set(sk.explain(of, cells, groupby=label), cells, genes)
    return {"stress": pd.concat(checks, names=["model"]).reset_index()} if checks else {}


def draw(task: str, tables: dict[str, pd.DataFrame], model, test) -> None:
    """The figures of a task."""
    curves, pairs = tables["curves"], tables["stability_contributions"]
    drawn = curves[curves["method"] != "linear SVM"]
    looks = dict(hue="method", style="method", markers=True, dashes=False, palette="colorblind")
    grid = sns.relplot(drawn, kind="line", x="n_genes", y="probability", col="curve", height=3.6, **looks)
    grid.set(xscale="symlog", ylim=(0, 1.03))
    figures = {"faithfulness": grid.axes}
    if "truth" in tables:
        figures["truth"] = sns.stripplot(tables["truth"], x="auprc", y="method", ax=plt.subplots()[1])
    whole = pairs[pairs["of"] == "model of four"]
    figures["stability"] = sns.stripplot(whole, x="rbo", y="class", ax=plt.subplots(layout="constrained")[1])
    consensus = tables["consensus_contributions"]
    figures["consensus"] = sns.lineplot(consensus, x="n_members", y="rbo", errorbar=("pi", 90), ax=plt.subplots()[1])
    why = sk.explain_cell(model, test, name := test.obs_names[0])
    figures["cell"] = sk.plotting.cell_genes(why.genes)
    figures["cell"].set_title(f"{name}: {why.label} ({why.probability:.0%})")
    if "stress" in tables:
        last = tables["stress"][tables["stress"]["model"] == tables["stress"]["model"].iloc[-1]]
        types = last.set_index("class").drop("overall")
        ax = figures["stress"] = plt.subplots(figsize=(8, 0.22 * len(types) + 1), layout="constrained")[1]
        ax.hlines(types.index, types["low"], types["high"], color="0.7", linewidth=5, label="random sets, 95 %")
        ax.plot(types["expected"], types.index, "|", color="0.5", label="their mean")
        for is_small, marker, words in ((False, "o", "the set"), (True, "D", "the set, p < 0.05")):
            marked = types[(types["p"] < 0.05) == is_small]
            ax.plot(marked["share"], marked.index, marker, label=words)
        ax.invert_yaxis()
        ax.set_xlabel("share of the set among the top genes")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
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
    rows = {}
    for measure in ("contributions", "masks"):
        sizes = tables[f"consensus_{measure}"].groupby("n_members")["rbo"].mean()
        rows[measure] = tables[f"stability_{measure}"].groupby("of")["rbo"].mean().to_dict()
        rows[measure] |= {f"mean of {size} networks": value for size, value in sizes.items()}
    wide = tables["areas"].pivot(index="method", columns="of", values=["deletion", "insertion"])
    wide.columns = [f"{curve}, {value}" for curve, value in wide.columns]
    enough = tables["sufficiency"].pivot(index=["classifier", "method"], columns="n_genes", values="accuracy")
    found = {
        "Faithfulness: area over log(1 + genes) of deletion (lower is better) and insertion": ("faithfulness", wide),
        "Sufficiency: accuracy with only so many genes": (None, enough),
        "Stability: rank-biased overlap (p = .9) between seeds": ("stability", pd.DataFrame(rows).T),
        "Stability of means over networks": ("consensus", None),
    }
    if "truth" in tables:
        truth = tables["truth"].groupby("method", sort=False)[["precision_at_k", "auprc"]].mean()
        found = {"Truth: are the ten first genes true markers? Mean over classes": ("truth", truth)} | found
    if "share" in tables.get("stress", ()):
        found["Gene set: stress genes among the first hundred"] = ("stress", tables["stress"].set_index("model"))
    if "known_markers" in tables:
        ranks = tables["known_markers"].set_index(["class", "marker"])
        found["Known markers: their rank among all genes of the class (1: first)"] = (None, ranks)
    for heading, (kind, frame) in (found | {"One cell": ("cell", None)}).items():
        parts += [f"### {heading}"] + ([] if frame is None else [markdown(frame.reset_index())])
        parts += [f"![{kind}](../docs/interpretation_{task}_{kind}.png)"] * (kind is not None)
    return parts


if __name__ == "__main__":
    main()
