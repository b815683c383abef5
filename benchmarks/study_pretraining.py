"""Whether masked pretraining pays: few labels, short training, another tissue, and real cells.

    python benchmarks/study_pretraining.py [--studies labels lengths transfer pbmc68k] [--seeds 3] [--runs FOLDER]
    python benchmarks/study_pretraining.py --report     # the page alone, from the rows that are there

One network in place of the default's four, and half its steps, so that all of it takes a quarter of an hour of one
core. Each run is kept in FOLDER as soon as it is done, and a second call goes on from there. Rows go to
benchmarks/measured_studies/pretraining/; benchmarks/STUDIES_PRETRAINING.md and docs/pretraining.png are made of them.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from sims_kit.studies.pretraining import RANDOM, PretrainingStudy, summarised

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS, simulate

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks/measured_studies/pretraining"
DEFAULT = sk.RECIPES["default"]
RECIPE = replace(DEFAULT, network={**DEFAULT.network, "n_models": 1}, training_steps=500)
PRETRAINING = dict(batch_size=64, model_params={"training_steps": 800})
STUDIES = {  # what is varied in each
    "labels": dict(proportions=(0.01, 0.03, 0.1, 0.3, 1.0)),
    "few labels": dict(proportions=(0.01, 0.03)),  # with more seeds: which cells have labels matters most here
    "lengths": dict(proportions=(0.1,), lengths=(0.05, 0.2, 1.0)),
    "pbmc68k": dict(proportions=(0.03, 0.1, 0.3, 1.0)),
    "transfer": dict(proportions=(0.01, 0.1)),
    "regions": dict(proportions=(0.01, 0.1)),
}
MORE_SEEDS = 2
TITLES = {
    "labels": "simulated cortex, one region",
    "few labels": "the same, few labels, more seeds",
    "lengths": "simulated cortex, 10 % of labels",
    "pbmc68k": "pbmc68k",
    "transfer": "simulated organoid, from cortex",
    "regions": "simulated cortex, eight regions",
}


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default=ROOT / "results/pretraining", help="where runs are kept")
    parser.add_argument("--report", action="store_true", help="write the page, run nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    for name in [] if arguments.report else arguments.studies:
        started = time.perf_counter()
        study = run(name, arguments.seeds, Path(arguments.runs))
        ROWS.mkdir(parents=True, exist_ok=True)
        study.curves.to_csv(_file(name), index=False, float_format="%.5g")
        print(f"{name}: {time.perf_counter() - started:.0f} s")
    studies = {name: summarised(pd.read_csv(_file(name))) for name in STUDIES if _file(name).exists()}
    draw(studies).savefig(ROOT / "docs/pretraining.png", dpi=150)
    (ROOT / "benchmarks/STUDIES_PRETRAINING.md").write_text(page(studies))


def _file(name: str) -> Path:
    return ROWS / f"{name.replace(' ', '_')}.csv"


def run(name: str, n_seeds: int, folder: Path) -> PretrainingStudy:
    """One study."""
    seeds = range(n_seeds + MORE_SEEDS * (name == "few labels"))
    options = dict(recipe=RECIPE, seeds=seeds, folder=folder, pretrain_settings=PRETRAINING, **STUDIES[name])
    if name == "pbmc68k":
        cells = sk.load(name)
        return sk.studies.pretraining(cells, cells.uns["sims_kit"]["label"], **options)
    cortex = PRESETS["sim-cortex"]["fast"]
    if name in ("labels", "few labels", "lengths"):  # types are what varies most
        return sk.studies.pretraining(simulate(cortex, regions=("MTG",)), "cell_type", **options)
    if name == "regions":  # here regions do, by the genes that they shift
        return sk.studies.pretraining(simulate(cortex), "cell_type", **options)
    organoid = simulate(PRESETS["sim-organoid"]["fast"])
    return sk.studies.pretraining(organoid, "cell_type", source=simulate(cortex), **options)


def draw(studies: dict[str, PretrainingStudy]) -> plt.Figure:
    """Accuracy by labels for each tissue; by length of training, and by step."""
    figure = plt.figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 3)
    wanted = [name for name in ("labels", "pbmc68k", "transfer") if name in studies]
    for ax, name in zip(panels[0], wanted, strict=False):
        sk.plotting.label_efficiency(studies[name].scores, ax=ax).set_title(TITLES[name])
    if "lengths" in studies:
        lengths = studies["lengths"]
        sk.plotting.label_efficiency(lengths.scores, against="steps", ax=panels[1, 0]).set_title(TITLES["lengths"])
        whole = lengths.curves[lengths.curves["length"] == 1]
        sk.plotting.learning_speed(whole, ax=panels[1, 1]).set_title("the same, as it trains")
    if "regions" in studies:
        sk.plotting.label_efficiency(studies["regions"].scores, ax=panels[1, 2]).set_title(TITLES["regions"])
    for ax in panels.ravel():
        if not ax.has_data():
            ax.set_axis_off()
        elif ax.get_legend() is not None:
            ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def page(studies: dict[str, PretrainingStudy]) -> str:
    """The page as Markdown, of the rows that are there."""
    parts = [
        "# What masked pretraining is worth",
        "Written by `python benchmarks/study_pretraining.py`; do not edit. A fifth of each cell's genes is hidden and "
        f"asked for; then a classifier starts from the encoder. One network, {RECIPE.training_steps} steps where the "
        "recipe is free to choose, no validation cells. Test cells are fixed, a fifth, and neither training nor "
        "pretraining sees them. Intervals are 95 %, Student's t over seeds, paired where it says gain: with three "
        "seeds they are wide, and a gain counts here only if its interval is above 0.",
        "![What pretraining is worth](../docs/pretraining.png)",
        "## The thesis's claims",
        claims(studies),
    ]
    for name, study in studies.items():
        parts += [f"## {TITLES[name][0].upper()}{TITLES[name][1:]}", described(study), gains_table(study)]
    return "\n\n".join(parts) + "\n"


def claims(studies: dict[str, PretrainingStudy]) -> str:
    """Section 0.4 of the thesis, sentence by sentence: our numbers, and under which conditions they hold."""
    lines = ["| thesis claim | our data | holds |", "|---|---|---|"]
    for name, study in studies.items():
        gains = study.gains[study.gains["score"] == "accuracy"]
        for start, table in gains[gains["length"] == 1].groupby("start", sort=False):
            found = "; ".join(f"{row.n_labelled} labels: {interval(row)}" for row in table.itertuples())
            lines.append(f"| pretraining improves accuracy ({TITLES[name]}; {start}) | {found} | {verdict(table)} |")
        for start, table in gains.groupby("start", sort=False):
            found = "; ".join(
                f"{row.n_labelled} labels{f', {row.length:.0%} of the steps' if row.length < 1 else ''}: {faster(row)}"
                for row in table.itertuples()
            )
            fast = (table["speedup"] > 1.2) & (table["n_reached"] == table["n_seeds"])
            lines.append(f"| it shortens training ({TITLES[name]}; {start}) | {found} | {share(fast, table)} |")
    return "\n".join(lines)


def interval(row) -> str:
    """A gain with its interval."""
    return f"{row.gain:+.3f} ({row.low:+.3f} to {row.high:+.3f})"


def faster(row) -> str:
    """How many times fewer steps, and in how many seeds the accuracy of random weights was reached at all."""
    reached = "" if row.n_reached == row.n_seeds else f", reached in {row.n_reached:.0f} of {row.n_seeds:.0f} seeds"
    return (f"{row.speedup:.1f} x{reached}") if row.n_reached else "not reached"


def verdict(table: pd.DataFrame) -> str:
    """Whether gains are above 0: everywhere, nowhere, or with how many labels."""
    worse = table[table["high"] < 0]
    text = share(table["low"] > 0, table)
    return text + (f"; worse with {', '.join(map(str, worse['n_labelled']))} labels" if len(worse) else "")


def share(holds: pd.Series, table: pd.DataFrame) -> str:
    """Yes, no, or where."""
    if holds.all() or not holds.any():
        return "yes" if holds.all() else "no"
    names = [
        f"{row.n_labelled}{f' ({row.length:.0%} of the steps)' if row.length < 1 else ''}"
        for row in table[holds.to_numpy()].itertuples()
    ]
    return f"with {', '.join(names)} labels"


def described(study: PretrainingStudy) -> str:
    """What was pretrained on, and how well hidden genes are found."""
    runs = study.runs[study.runs["start"] != RANDOM].drop_duplicates(["start", "seed"])
    lines = [
        f"- {start}: {table['n_pretrained'].iloc[0]:,} cells; the encoder explains {table['explained'].mean():.1%} of "
        "the variance of hidden genes, on cells held back."
        for start, table in runs.groupby("start", sort=False)
    ]
    return "\n".join(lines)


def gains_table(study: PretrainingStudy) -> str:
    """Scores of each start, and what pretraining adds."""
    lines = [
        "| start | labels | steps | accuracy | gain | macro F1 | gain | steps to its end | fewer steps to the end of "
        "random weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ["start", "proportion", "length"]
    gains = study.gains.set_index([*keys, "score"])
    to_end = study.runs.groupby(keys)["steps_to_end"].mean()
    for row in study.scores.itertuples():
        key = (row.start, row.proportion, row.length)
        cells = [row.start, f"{row.n_labelled:,} ({row.proportion:.0%})", f"{row.steps:,}", f"{row.accuracy:.3f}"]
        if row.start == RANDOM:
            cells += ["", f"{row.macro_f1:.3f}", "", f"{to_end[key]:.0f}", ""]
        else:
            of_accuracy, of_f1 = gains.loc[(*key, "accuracy")], gains.loc[(*key, "macro_f1")]
            cells += [interval(of_accuracy), f"{row.macro_f1:.3f}", interval(of_f1), f"{to_end[key]:.0f}"]
            cells += [faster(of_accuracy)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
