"""What SIMS's explanations are worth, measured: truth, faithfulness, sufficiency, stability, gene sets, known markers.

    python benchmarks/interpretation.py [--tasks sim-cortex pbmc68k mouse-immune] [--seeds 3] [--cells 200]
    python benchmarks/interpretation.py --report     # the page alone, from the tables that are there

Four fifths of the cells train as many models as there are seeds; the last fifth is explained and has genes taken away.
Tables go to benchmarks/measured_interpretation/, a folder per task; benchmarks/INTERPRETATION.md and the figures
docs/interpretation_*.png are made of them. The stress check also trains on simulated cortex in which one type alone is
stressed: a leak that it must find. Integrated gradients need `pip install 'sims_kit[peers]'`.
"""

import argparse
import copy
import platform
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from sklearn.model_selection import train_test_split

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS, simulate

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "benchmarks/measured_interpretation"
LEAKY = "L4 IT"  # the type that alone is stressed
KNOWN = {  # Zheng et al., Nature Communications 2017, doi 10.1038/ncomms14049; Villani et al., Science 2017 (dendritic)
    "pbmc68k": {
        "CD14+ Monocyte": ["LYZ", "S100A8", "S100A9", "FCN1"],
        "CD19+ B": ["CD79A", "CD79B", "MS4A1"],
        "CD34+": ["SOX4", "PRSS57"],
        "CD56+ NK": ["NKG7", "GNLY", "PRF1", "GZMB"],
        "CD8+ Cytotoxic T": ["CD8A", "GZMK", "GZMH", "CCL5"],
        "CD8+/CD45RA+ Naive Cytotoxic": ["CD8A", "CD8B", "CCR7"],
        "CD4+/CD25 T Reg": ["IL32", "TIGIT", "CD27"],
        "CD4+/CD45RO+ Memory": ["IL7R", "LTB", "S100A4"],
        "Dendritic": ["FCER1A", "CLEC10A", "CST3"],
    },
    # Tabula Muris Consortium, Nature 2018, doi 10.1038/s41586-018-0590-4; Klrb1c is the NK1.1 of sorting panels
    "mouse-immune": {
        "B cell": ["Cd79a", "Cd79b", "Ms4a1", "Cd19"],
        "T cell": ["Cd3d", "Cd3e", "Cd3g"],
        "NK cell": ["Nkg7", "Klrd1", "Gzma", "Ncr1", "Klrb1c"],
        "Monocyte": ["Ly6c2", "Csf1r", "Ccr2", "Lyz2"],
        "Granulocyte": ["S100a8", "S100a9", "Csf3r", "Retnlg"],
    },
}
QUIET = dict(test=0, verbose=False, logger=False, enable_progress_bar=False)


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sim-cortex", *KNOWN])
    parser.add_argument("--seeds", type=int, default=3, help="models of the default recipe, of four networks each")
    parser.add_argument("--cells", type=int, default=200, help="test cells that have genes taken away")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    for task in [] if arguments.report else arguments.tasks:
        started = time.perf_counter()
        for name, table in measure(task, arguments.seeds, arguments.cells).items():
            (TABLES / task).mkdir(parents=True, exist_ok=True)
            table.to_csv(TABLES / task / f"{name}.csv", index=False, float_format="%.5g")
        print(f"{task}: {time.perf_counter() - started:.0f} s")
    (ROOT / "benchmarks/INTERPRETATION.md").write_text(page())


def measure(task: str, n_seeds: int, n_cells: int) -> dict[str, pd.DataFrame]:
    """All tables of a task by name."""
    cells, label, markers = load(task)
    train, test = train_test_split(cells.obs_names, test_size=0.2, stratify=cells.obs[label], random_state=0)
    train, test = cells[train].copy(), cells[test].copy()
    models = [sk.fit(train, label, seed=seed, **QUIET) for seed in range(n_seeds)]
    model, few = models[0], test[: min(n_cells, test.n_obs)].copy()
    rankings = sk.evidence.rank_genes(model, train, label)
    curves = sk.evidence.faithfulness(model, few)
    tables = {"setting": setting(task, train, test, label, model)}
    if markers is not None:
        wanted, strength = (table.loc[model.classes, model.genes] for table in markers)
        tables["truth"] = sk.evidence.marker_recovery(rankings, wanted, strength=strength)
    tables["curves"] = curves
    areas = {value: sk.evidence.area_under(curves, value) for value in ("probability", "unchanged")}
    tables["areas"] = pd.concat(areas, names=["of"]).reset_index()
    tables["sufficiency"] = sk.evidence.sufficiency(model, train, test, label, rankings)
    tables |= again_and_again(models, train, label)
    tables |= stress(task, model, test, label)
    if task in KNOWN:
        tables["known_markers"] = known_markers(rankings, KNOWN[task])
    draw(task, tables, model, test)
    return tables


def load(task: str):
    """Cells without classes of ten cells or fewer, their label, and true markers with their strength, if known."""
    if task in PRESETS:
        cells = simulate(PRESETS[task]["fast"])
        return cells, "cell_type", sk.evidence.simulated_markers(cells)
    cells = sk.load(task)
    label = cells.uns["sims_kit"]["label"]
    sizes = cells.obs[label].value_counts()
    return cells[cells.obs[label].isin(sizes.index[sizes > 10])].copy(), label, None


def setting(task: str, train, test, label: str, model) -> pd.DataFrame:
    """What was measured on, and how well the model does there."""
    called = sk.annotate(test, model, copy=True).obs["sims_label"].astype(str)
    right = (called == test.obs[label].astype(str)).mean()
    explained = sk.explain(model, test)
    row = {"task": task, "training_cells": train.n_obs, "test_cells": test.n_obs, "genes": len(model.genes)}
    row |= {"classes": len(model.classes), "test_accuracy": right}
    return pd.DataFrame([row | {"genes_per_cell": explained.cells.nnz / test.n_obs}])


def again_and_again(models: list, train, label: str) -> dict[str, pd.DataFrame]:
    """Agreement between seeds: of single networks, of whole models, and of means over more and more networks."""
    one, whole, tables = {}, {}, {}
    for seed, model in enumerate(models):
        whole[str(seed)] = sk.explain(model, train, groupby=label)
        for number, network in enumerate(single_networks(model)):
            one[f"{seed}, network {number}"] = sk.explain(network, train, groupby=label)
    for measure, attribute in (("contributions", "class_contributions"), ("masks", "classes")):
        singles = {name: getattr(found, attribute) for name, found in one.items()}
        pairs = sk.evidence.stability(singles)
        pairs = pairs[pairs["first"].str.split(",").str[0] != pairs["second"].str.split(",").str[0]]  # other seeds
        joint = sk.evidence.stability({name: getattr(found, attribute) for name, found in whole.items()})
        both = pd.concat({"one network": pairs, "model of four": joint}, names=["of"])
        tables[f"stability_{measure}"] = both.reset_index(level=0)
        tables[f"consensus_{measure}"] = sk.evidence.members_for_stability(singles)
    return tables


def single_networks(model) -> list:
    """Each network of a model as a model of its own."""
    found = []
    for network in model.network.members:
        single = copy.copy(model)
        single._modules = {**model._modules, "network": network}
        found.append(single)
    return found


def stress(task: str, model, test, label: str) -> dict[str, pd.DataFrame]:
    """The stress set on this model and, on simulated cortex, on one that a stressed type was trained into."""
    checks = {task: check(model, test, label)}
    if task == "sim-cortex":
        leaky = simulate(PRESETS[task]["fast"], stress_strength=1.0, stress_types=(LEAKY,))
        train, held_out = train_test_split(leaky.obs_names, test_size=0.2, stratify=leaky.obs[label], random_state=0)
        other = sk.fit(leaky[train].copy(), label, seed=0, **QUIET)
        checks[f"{LEAKY} alone stressed"] = check(other, leaky[held_out].copy(), label)
    found = {name: one for name, one in checks.items() if one is not None}
    if not found:
        return {}
    overall = pd.DataFrame([one.overall for one in found.values()], index=pd.Index(found, name="model")).reset_index()
    overall["verdict"] = [one.verdict for one in found.values()]
    classes = pd.concat({name: one.classes for name, one in found.items()}, names=["model"]).reset_index()
    return {"stress": overall, "stress_classes": classes}


def check(model, cells, label: str):
    """The stress set, in the case of the model's gene names; None where the genes have no member of it."""
    known = {gene.upper(): gene for gene in model.genes}
    genes = [known[gene] for gene in sk.evidence.STRESS_GENES if gene in known]
    if not genes:
        return None
    return sk.evidence.check_gene_set(sk.explain(model, cells, groupby=label), cells, genes)


def known_markers(rankings: dict[str, pd.DataFrame], known: dict[str, list[str]]) -> pd.DataFrame:
    """The rank (1: first) of each marker among all genes of its class, by each method."""
    rows = []
    for label, genes in known.items():
        for gene in genes:
            ranks = {name: table.loc[label].rank(ascending=False)[gene] for name, table in rankings.items()}
            rows.append({"class": label, "marker": gene} | ranks)
    return pd.DataFrame(rows)


def draw(task: str, tables: dict[str, pd.DataFrame], model, test) -> None:
    """The figures of a task."""
    curves = tables["curves"]
    figures = {"faithfulness": sk.plotting.faithfulness_curves(curves[curves["method"] != "linear SVM"])}
    if "truth" in tables:
        figures["truth"] = sk.plotting.marker_recovery(tables["truth"])
    whole = tables["stability_contributions"]
    figures["stability"] = sk.plotting.stability(whole[whole["of"] == "model of four"])
    figures["consensus"] = sk.plotting.consensus_size(tables["consensus_contributions"])
    name = test.obs_names[0]
    why = sk.explain_cell(model, test, name)
    figures["cell"] = sk.plotting.cell_genes(why.genes)
    figures["cell"].set_title(f"{name}: {why.label} ({why.probability:.0%})")
    if "stress_classes" in tables:
        last = tables["stress"]["model"].iloc[-1]
        classes = tables["stress_classes"].query("model == @last").set_index("class")
        figures["stress"] = sk.plotting.gene_set_weight(classes, "contribution")
        figures["stress"].set_title(last)
    for kind, axes in figures.items():
        np.ravel(axes)[0].figure.savefig(ROOT / f"docs/interpretation_{task}_{kind}.png", dpi=110)
    plt.close("all")


def page() -> str:
    """The page as Markdown, of the tables that are there."""
    parts = [
        "# What the explanations are worth",
        "Written by `python benchmarks/interpretation.py`; do not edit. Models of the default recipe, trained on four "
        "fifths of the cells; genes are taken away from cells of the last fifth, and what comes out of the network is "
        "compared with the whole cell. Methods that need labels or a fit of their own have the training cells.",
        f"{platform.processor() or platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
        f"torch {version('torch').split('+')[0]}, captum {version('captum')}, scanpy {version('scanpy')}.",
    ]
    for folder in sorted(TABLES.iterdir(), key=lambda folder: folder.name != "sim-cortex"):
        tables = {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")}
        parts += [f"## {folder.name}", *sections(folder.name, tables)]
    return "\n\n".join(parts) + "\n"


def sections(task: str, tables: dict[str, pd.DataFrame]) -> list[str]:
    """The sections of a task."""
    row = tables["setting"].iloc[0]
    parts = [
        f"{row.training_cells:,} cells to train on, {row.test_cells:,} to test, {row.genes:,} genes, {row.classes} "
        f"classes; test accuracy {row.test_accuracy:.3f}; the masks pass {row.genes_per_cell:.0f} genes of a cell."
    ]

    def picture(kind: str) -> str:
        return f"![{kind}](../docs/interpretation_{task}_{kind}.png)"

    if "truth" in tables:
        columns = ["precision_at_k", "auprc", "spearman"]
        found = tables["truth"].groupby("method", sort=False)[columns].mean()
        parts += ["### Truth: are the genes the true markers? Mean over classes, ten first genes", table(found)]
        parts += [picture("truth")]
    parts += ["### Faithfulness: genes taken away (deletion, lower is better) or alone kept (insertion, higher)"]
    areas = tables["areas"].pivot(index="method", columns="of", values=["deletion", "insertion"])
    areas.columns = [f"{curve}, {value}" for curve, value in areas.columns]
    parts += ["Area under the curve over log(1 + genes).", table(areas), picture("faithfulness")]
    parts += ["### Sufficiency: accuracy with only so many genes"]
    wide = tables["sufficiency"].pivot(index=["classifier", "method"], columns="n_genes", values="accuracy")
    parts += [table(wide)]
    parts += ["### Stability: rank-biased overlap (p = .9) of class tables between seeds, mean over pairs and classes"]
    rows = {}
    for measure in ("contributions", "masks"):
        pairs = tables[f"stability_{measure}"].groupby("of")["rbo"].mean()
        sizes = tables[f"consensus_{measure}"].groupby("n_members")["rbo"].mean()
        rows[measure] = {f"{of}": value for of, value in pairs.items()}
        rows[measure] |= {f"mean of {size} networks": value for size, value in sizes.items()}
    parts += [table(pd.DataFrame(rows).T), picture("stability"), picture("consensus")]
    if "stress" in tables:
        parts += ["### Gene set: stress (glycolysis, ER stress)"]
        stress = tables["stress"].set_index("model")
        parts += [f"- {name}: {verdict}" for name, verdict in stress["verdict"].items()]
        parts += [picture("stress")]
    if "known_markers" in tables:
        parts += ["### Known markers: their rank among all genes of the class (1: first)"]
        parts += [table(tables["known_markers"].set_index(["class", "marker"]), "{:.0f}")]
    return [*parts, "### One cell", picture("cell")]


def table(frame: pd.DataFrame, form: str = "{:.3f}") -> str:
    """A Markdown table."""
    frame = frame.reset_index()
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|---" * frame.shape[1] + "|"]
    for row in frame.itertuples(index=False):
        lines.append(
            "| " + " | ".join("" if v != v else form.format(v) if isinstance(v, float) else str(v) for v in row) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
