"""Tissue cultures, measured: whether SIMS's masks avoid stress genes, and whether its labels are robust to stress.

    python benchmarks/study_inference.py [--seeds 2] [--methods "SIMS, default" "linear SVM"] [--jobs 2]
    python benchmarks/study_inference.py --report     # the page and figures alone, from the tables that are there

Simulated organoids, whose types and stress are known, are labelled by methods that have learned from simulated cortex
(thesis section 0.3.7). Tables go to benchmarks/measured_studies/inference/, those of single runs to runs/ there, so
that a restart goes on; benchmarks/STUDIES_INFERENCE.md, docs/organoid_stress.png and docs/organoid_inference.png are
made of them. CellTypist needs `pip install 'sims_kit[peers]'`.
"""

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from scipy.stats import hypergeom

import sims_kit as sk

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "benchmarks/measured_studies/inference"
SIMS = "SIMS, one network"  # the default recipe with one of its four networks, in a quarter of the time
METHODS = ("linear SVM", "logistic regression", "SIMS, thesis", "CellTypist", "marker voting by cluster")
BLIND = ("linear SVM", "logistic regression")  # run without the stress genes, too, as SIMS is
INHIBITORY = {"major_type": {"GABAergic": ["VIP", "SST", "PVALB", "LAMP5", "PAX6"]}}  # as in figure 0.20
N_STRESS = len(sk.evidence.STRESS_GENES)
POINT = 1.0  # percentage points of accuracy: a smaller loss is none


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="tissues, each with a training of its own")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"beside {SIMS}; six at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    if not arguments.report:
        measure_stress(arguments.methods, arguments.seeds, arguments.jobs)
        measure_organoid()
    tables = {file.stem: pd.read_csv(file, keep_default_na=False, na_values=[""]) for file in TABLES.glob("*.csv")}
    draw(tables)
    (ROOT / "benchmarks/STUDIES_INFERENCE.md").write_text(page(tables))


def measure_stress(methods: list[str], n_seeds: int, n_jobs: int) -> None:
    """The stress test, with and without the stress genes."""
    options = dict(seeds=range(n_seeds), folder=TABLES / "runs", n_jobs=n_jobs)
    tables = [sk.studies.stress_test((SIMS, *methods), **options)]
    tables += [sk.studies.stress_test((SIMS, *BLIND), knows_stress_genes=False, **options)]
    write("stress_test", pd.concat(tables))


def measure_organoid() -> None:
    """The study of one organoid, as an analyst would run it; then the truth is put beside the inferred shares."""
    started = time.process_time()
    primary, organoid = sk.load("sim-cortex"), sk.load("sim-organoid")
    settings = dict(recipe=sk.studies.make_peer(SIMS).recipe, verbose=False, enable_progress_bar=False)
    found = sk.studies.inference(primary, organoid, expected=INHIBITORY, **settings)
    truth = 100 * organoid.obs.groupby("donor", observed=True)["cell_type"].value_counts(normalize=True)
    pairs = zip(found.composition["sample"], found.composition["class"], strict=True)
    write("composition", found.composition.assign(true_percent=[truth.get(pair) for pair in pairs]))
    for name in ("confidence", "expected", "unexpected", "stress"):
        write(name, getattr(found, name))
    write("cells", found.cells[["tissue", "sample", "label", "confidence"]])
    called = found.cells[found.cells["tissue"] == "culture"]
    right = called["best_label"].to_numpy() == organoid.obs["cell_type"].astype(str).to_numpy()
    known = (called["label"] != "Unknown").to_numpy()
    row = {"primary_accuracy": found.test_scores["accuracy_micro"], "organoid_accuracy": right.mean()}
    row |= {"organoid_accuracy_of_known": right[known].mean(), "genes": len(found.model.genes)}
    row |= {f"{tissue}_verdict": check.verdict for tissue, check in found.checks.items()}
    row |= {f"{tissue}_stress_genes": len(check.genes) for tissue, check in found.checks.items()}
    row |= {f"{tissue}_with_weight": (check.genes["weight"] > 0).sum() for tissue, check in found.checks.items()}
    write("setting", pd.DataFrame([row | {"cpu_seconds": time.process_time() - started}]))


def write(name: str, table: pd.DataFrame) -> None:
    """Keep a table."""
    TABLES.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLES / f"{name}.csv", index=False, float_format="%.5g")


def draw(tables: dict[str, pd.DataFrame]) -> None:
    """The two figures."""
    table = tables["stress_test"]
    known, blind = table[table["knows_stress_genes"]], table[~table["knows_stress_genes"]]
    figure, axes = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
    sk.plotting.stress_curves(known, ax=axes[0])
    sk.plotting.stress_curves(table[table["method"].isin(blind["method"])], ax=axes[1])
    lowest = min(ax.get_ylim()[0] for ax in axes)
    titles = ("Labels of organoid cells under stress", "The same, with and without stress genes in the reference")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left")
        ax.set_ylim(lowest, 1)
    figure.savefig(ROOT / "docs/organoid_stress.png", dpi=110)

    figure, axes = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    sk.plotting.composition(tables["composition"], ax=axes[0])
    sk.plotting.confidence_shift(tables["cells"], tables["confidence"]["threshold"].iloc[0], ax=axes[1])
    for ax, title in zip(axes, ("Inferred types, 95 % intervals", "How sure the model is"), strict=True):
        ax.set_title(title, loc="left")
        ax.legend(frameon=False, fontsize=9, loc="lower right" if ax is axes[0] else "upper left")
    figure.savefig(ROOT / "docs/organoid_inference.png", dpi=110)
    plt.close("all")


def page(tables: dict[str, pd.DataFrame]) -> str:
    """The page as Markdown, of the tables that are there."""
    stress, setting = tables["stress_test"], tables["setting"].iloc[0]
    losses = {seed: sk.studies.stress_losses(own, against=SIMS) for seed, own in stress.groupby("seed")}
    losses = pd.concat(losses, names=["seed"]).reset_index(level=0)
    composition = tables["composition"].dropna(subset="true_percent")
    inside = composition["true_percent"].between(composition["percent_low"], composition["percent_high"])
    worst = (composition["percent"] - composition["true_percent"]).abs().max()
    parts = [
        "# Tissue cultures: masks and stress",
        "Written by `python benchmarks/study_inference.py`; do not edit. Methods learn from `sim-cortex` (2,500 cells, "
        "2,000 genes, 19 types) and label `sim-organoid`: other donors, another protocol, and a programme of "
        f"{setting['culture_stress_genes']} stress genes in every cell, independent of its type. The "
        f"tissue is simulated: types are known, and real stress may do more than raise these genes. "
        f"Tissues: {stress['seed'].nunique()}, each with training of its own; slashes divide the values "
        "of each.",
        "## The thesis's claims (section 0.3.7)",
        "\n".join(["| claim | our data | holds? |", "|---|---|---|", *claims(stress, losses)]),
        "## Accuracy against the strength of the stress",
        "![accuracy of every method against the strength of the stress](../docs/organoid_stress.png)",
        "Mean accuracy, and percentage points lost against no stress. Strength 1 is that of `sim-organoid`, where a "
        f"stress gene is twice as high; at {stress['stress_strength'].max():g}, stress genes have "
        f"up to {stress['stress_counts_percent'].max():.0f} % of all counts.",
        losses_table(losses),
        f"Points lost more than {SIMS} loses, on the same tissues, at the strongest stress:",
        more_table(losses),
        "## What the masks look at",
        "Mask weight of the stress genes in the organoid, mean over tissues; of as many genes of all, the share would "
        f"be {100 * setting['culture_stress_genes'] / setting['genes']:.1f} %.",
        masks_table(stress),
        f"{SIMS}, against sets of equally expressed genes (`sk.evidence.check_gene_set`), on the primary "
        f"test set: {setting['primary_verdict']} In the organoid: {setting['culture_verdict']} "
        f"{setting['culture_with_weight']} of the {setting['culture_stress_genes']} have some weight.",
        "## One organoid, as an analyst sees it",
        f"`sk.studies.inference` with {SIMS}, strength 1: accuracy {setting['primary_accuracy']:.3f} in the "
        f"primary test set and {setting['organoid_accuracy']:.3f} in the organoid "
        f"({setting['organoid_accuracy_of_known']:.3f} of the cells that are not Unknown).",
        "![types inferred in two samples with intervals and true shares; distributions of confidence]"
        "(../docs/organoid_inference.png)",
        confidence_table(tables["confidence"]),
        f"Of {len(inside)} inferred shares, {inside.sum()} have the true share in their 95 % interval; the largest "
        f"error is {worst:.1f} points. Intervals are of drawing cells (Wilson) and know nothing of wrong calls.",
        "Cells known beforehand to be inhibitory, as those of figure 0.20:",
        expected_table(tables["expected"]),
        f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, torch "
        f"{version('torch').split('+')[0]}, scikit-learn {version('scikit-learn')}, scanpy {version('scanpy')}.",
    ]
    return "\n\n".join(parts) + "\n"


def claims(stress: pd.DataFrame, losses: pd.DataFrame) -> list[str]:
    """A row for each claim, and whether it holds."""
    losses = losses[losses["stress_strength"] > 0]
    known, blind = losses[losses["knows_stress_genes"]], losses[~losses["knows_stress_genes"]]
    strongest = losses["stress_strength"].max()
    final = known[known["stress_strength"] == strongest]
    sims, without = (part[part["method"] == SIMS] for part in (known, blind))
    as_published = of_sims(stress).query("stress_strength == 1")
    rows = [avoids(method, own) for method, own in as_published.groupby("method", sort=False)]
    rows += [withstands(sims), outdoes(final)]
    rows += [needs_no_filter(final[final["method"] == SIMS], without[without["stress_strength"] == strongest])]
    return [f"| {' | '.join(row)} |" for row in rows]


def of_sims(stress: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that have masks, and that know the stress genes."""
    return stress[stress["knows_stress_genes"]].dropna(subset="stress_mask_percent")


def avoids(method: str, own: pd.DataFrame) -> tuple[str, str, str]:
    """Whether no stress gene has weight in the masks, and how likely that is of any genes."""
    used, passed = own["stress_genes_in_masks"].max(), round(own["genes_in_masks"].mean())
    text = f"{method} (accuracy {own['accuracy'].mean():.3f}): {used:.0f} of {N_STRESS} have weight, "
    text += f"{own['stress_mask_percent'].mean():.1f} % of it, among the {passed:,} genes of 2,000 that masks pass"
    holds = "no"
    if used == 0:
        p = hypergeom.pmf(0, 2000, N_STRESS, passed)
        text += f"; of {N_STRESS} genes at random, none would be there with p = {p:.2f}"
        holds = "yes" if p < 0.05 else "yes, as by chance"
    return "no stress gene has weight in the masks", text, holds


def withstands(sims: pd.DataFrame) -> tuple[str, str, str]:
    """Up to which strength stress costs SIMS less than a point, in every tissue."""
    costs = sims.groupby("stress_strength")["lost_points"].max() >= POINT
    borne = costs.index[~costs.cummax()].max()
    lost = "; ".join(f"{each(own, 'lost_points')} at {strength:g}" for strength, own in sims.groupby("stress_strength"))
    holds = "no" if pd.isna(borne) else f"up to strength {borne:g}: under {POINT:g} point"
    return "labels are robust to stress", f"{SIMS} loses points of accuracy: {lost}", holds


def outdoes(final: pd.DataFrame) -> tuple[str, str, str]:
    """Whether SIMS loses less than the other methods under the strongest stress, in every tissue."""
    others = final[~final["method"].str.startswith("SIMS")]
    more = others.groupby("method", sort=False)["lost_more_points"].agg(["min", "max"])
    worse, better = more.index[more["min"] > 0], more.index[more["max"] < 0]
    rest = more.index.difference([*worse, *better], sort=False)
    text = f"at strength {final['stress_strength'].iloc[0]:g} it loses less than: {names(worse)}; more than: "
    text += f"{names(better)}; now more, now less than: {names(rest)}"
    holds = "yes" if len(worse) == len(more) else "no" if len(better) else "not shown"
    return "more robust than methods that have no masks", text, holds


def needs_no_filter(seeing: pd.DataFrame, blind: pd.DataFrame) -> tuple[str, str, str]:
    """Whether taking the stress genes out would bring nothing, as it must if masks left them alone."""
    gain = seeing["lost_points"].mean() - blind["lost_points"].mean()
    text = f"at strength {seeing['stress_strength'].iloc[0]:g} {SIMS} loses {each(seeing, 'lost_points')} points with "
    text += f"them, and {each(blind, 'lost_points')} when they are taken out of the reference"
    return "stress genes need not be taken out, as masks do not use them", text, "no" if gain > POINT else "yes"


def each(rows: pd.DataFrame, name: str) -> str:
    """The value of each tissue."""
    return " / ".join(f"{value:.1f}".replace("-0.0", "0.0") for value in rows.sort_values("seed")[name])


def names(methods: pd.Index) -> str:
    """Methods in a sentence."""
    return ", ".join(methods) if len(methods) else "none"


def points(row: pd.Series, name: str) -> str:
    """Percentage points with their interval."""
    value, low, high = (row[f"{name}{ending}"] for ending in ("", "_low", "_high"))
    return f"{value:.1f}" if pd.isna(low) else f"{value:.1f} ({low:.1f} to {high:.1f})"


def losses_table(losses: pd.DataFrame) -> str:
    """A row for each method, a column for each strength."""
    strengths = sorted(losses["stress_strength"].unique())
    lines = ["| method | " + " | ".join(f"strength {strength:g}" for strength in strengths) + " |"]
    lines += ["|---" * (1 + len(strengths)) + "|"]
    for (method, knows), own in losses.groupby(["method", "knows_stress_genes"], sort=False):
        by_strength = [own[own["stress_strength"] == strength] for strength in strengths]
        cells = [f"{rows['accuracy'].mean():.3f}; {each(rows, 'lost_points')}" for rows in by_strength]
        cells[0] = cells[0].split(";")[0]
        lines.append(f"| {method}{'' if knows else ', stress genes left out'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def more_table(losses: pd.DataFrame) -> str:
    """What each method loses beyond SIMS under the strongest stress."""
    last = losses[losses["stress_strength"] == losses["stress_strength"].max()]
    lines = ["| method | more points lost |", "|---|---|"]
    for (method, knows), own in last.groupby(["method", "knows_stress_genes"], sort=False):
        if method != SIMS or not knows:
            left_out = "" if knows else ", stress genes left out"
            lines.append(f"| {method}{left_out} | {each(own, 'lost_more_points')} |")
    return "\n".join(lines)


def masks_table(stress: pd.DataFrame) -> str:
    """Shares that the stress genes hold, by recipe and strength."""
    known = of_sims(stress)
    lines = ["| method | strength | mask weight, % | contributions, % | stress genes with weight | genes with weight |"]
    lines += ["|---" * 6 + "|"]
    for (method, strength), own in known.groupby(["method", "stress_strength"], sort=False):
        mean = own.mean(numeric_only=True)
        shares = f"{mean['stress_mask_percent']:.2f} | {mean['stress_contribution_percent']:.2f}"
        numbers = f"{mean['stress_genes_in_masks']:.0f} | {mean['genes_in_masks']:.0f}"
        lines.append(f"| {method} | {strength:g} | {shares} | {numbers} |")
    return "\n".join(lines)


def confidence_table(table: pd.DataFrame) -> str:
    """Confidence and Unknown of each sample."""
    lines = ["| tissue, sample | cells | mean confidence | shift | Unknown, % |", "|---" * 5 + "|"]
    for _, row in table.iterrows():
        low, high = row["confidence_shift_low"], row["confidence_shift_high"]
        shift = f"{row['confidence_shift']:+.3f} ({low:+.3f} to {high:+.3f})" if row["tissue"] == "culture" else ""
        unknown = points(row, "unknown_percent")
        name = f"{row['tissue']}, {row['sample']}"
        lines.append(f"| {name} | {row['n_cells']:,} | {row['mean_confidence']:.3f} | {shift} | {unknown} |")
    return "\n".join(lines)


def expected_table(table: pd.DataFrame) -> str:
    """Cells of known origin."""
    lines = ["| cells | allowed | cells | Unknown | consistent, % of the others |", "|---" * 5 + "|"]
    for _, row in table.iterrows():
        known = f"{row['column']} = {row['value']}"
        share = points(row, "consistent_percent")
        lines.append(f"| {known} | {row['allowed']} | {row['n_cells']:,} | {row['n_unknown']} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
