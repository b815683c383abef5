"""Simulated tissue: its counts follow the settings, and the truth that it carries is true."""

import hashlib
import math
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from sims_kit.cells.normalise import normalise
from sims_kit.datasets.simulate import (
    CORTEX,
    PRESETS,
    STRESS_GENES,
    VALUES_PER_CHUNK,
    Simulation,
    SimulationSettings,
    simulate,
    simulated,
    true_factors,
)
from sims_kit.errors import SettingError, UnknownNameError

TREE = {"neuron": ("A", "B", "C"), "glia": ("D", "E")}
ONE_TYPE = {"cell": ("A",)}
PLAIN = dict(  # nothing varies but the types: mean and variance of a count can be written down
    n_cells=2_000,
    n_genes=600,
    tree=TREE,
    class_skew=0.0,
    lib_loc=math.log(20_000),
    lib_scale=0.0,
    donors=("a",),
    bcv_df=1e6,
)


def class_means(adata, column="cell_type"):
    """Mean counts and number of cells per level: two tables, genes x levels and one row."""
    codes = adata.obs[column].cat.codes.to_numpy()
    members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    n = np.asarray(members.sum(axis=1)).ravel()
    return (members @ adata.X).toarray().T / n, n


def standardised(adata, column, log_factors, **settings):
    """Errors of observed log ratios to the first level, over their standard errors (gamma-Poisson, delta method)."""
    s = SimulationSettings(**settings)
    means, n = class_means(adata, column)
    well_seen = (means.min(axis=1) > 3) & (adata.var["base_mean"] < 0.01)
    means, log_factors = means[well_seen], log_factors[well_seen]
    error = np.log(means / means[:, :1])[:, 1:] - (log_factors - log_factors[:, :1])[:, 1:]
    error -= np.median(error, axis=0)  # depth is shared by all genes: what markers gain, the others lose
    squared = (1 / means + (s.bcv_common + s.bcv_trend / np.sqrt(means)) ** 2) / n
    return error / np.sqrt(squared[:, :1] + squared[:, 1:])


def by_cell(adata, values):
    """Sums over the genes of each cell."""
    return np.asarray(adata.X[:, values].sum(axis=1)).ravel()


def test_same_seed_same_tissue():
    """Settings and seed alone decide every count and every truth; another seed gives another tissue."""
    one, two, other = (simulate(n_cells=60, n_genes=1_000, doublet_rate=0.2, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one.obs, two.obs)
    pd.testing.assert_frame_equal(one.var, two.var)
    assert (one.X != two.X).nnz == 0
    assert (one.X != other.X).nnz > 1_000
    assert list(one.var["marker_of"]) != list(other.var["marker_of"])


def test_counts_are_those_of_every_machine():
    """A fingerprint of counts from all streams: it differs only if numpy draws other numbers, or the code does."""
    cells = simulate(n_cells=100, n_genes=1_000, stress_strength=1, doublet_rate=0.2, ambient_fraction=0.1, seed=7)
    counts = cells.X.astype("<i4").toarray()
    assert hashlib.sha256(counts.tobytes()).hexdigest()[:16] == "a90667ad0178e245"


def test_matrix_is_counts_in_csr():
    """The matrix is sparse, float32 and whole; names of cells and genes are unique; stress genes bear their names."""
    cells = simulate(n_cells=100, n_genes=1_000)
    assert isinstance(cells.X, sp.csr_matrix) and cells.X.dtype == np.float32
    assert (cells.X.data == np.round(cells.X.data)).all() and cells.X.data.min() >= 1
    assert cells.obs_names.is_unique and cells.var_names.is_unique
    assert set(cells.var_names[cells.var["is_stress_gene"]]) == set(STRESS_GENES)


def test_markers_differ_by_the_stated_factor():
    """Between any type and the first, each gene differs by the true factors, with errors of the expected size."""
    cells = simulate(**PLAIN)
    z = standardised(cells, "cell_type", np.log(true_factors(cells).to_numpy()), **PLAIN)
    assert z.size > 500 and np.abs(z).max() < 5
    assert 0.9 < z.std() < 1.1


def test_truth_agrees_with_itself():
    """`marker_of`, level and strength say in one column each what the table of factors says for all types."""
    cells = simulate(n_genes=1_000, n_cells=50)
    factors, settings = true_factors(cells), SimulationSettings(n_genes=1_000, n_cells=50)
    for gene in cells.var.itertuples():
        path = [gene.marker_of in (of, major) for of, major in zip(settings.types, settings.major_types, strict=True)]
        np.testing.assert_array_equal(factors.loc[gene.Index], np.where(path, gene.marker_strength, 1))
        assert (gene.marker_level == "type") == (gene.marker_of in settings.types)
    counts = cells.var["marker_of"].value_counts()
    assert (counts[list(settings.types)] == 15).all() and (counts[list(CORTEX)] == 20).all()
    assert not (cells.var["is_stress_gene"] & (cells.var["marker_of"] != "")).any()
    major_of = {cell_type: major for major, types in CORTEX.items() for cell_type in types}
    assert (cells.obs["cell_type"].astype(str).map(major_of) == cells.obs["major_type"].astype(str)).all()


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0])
def test_class_sizes_follow_the_skew(skew):
    """The k-th type has a share like k to the minus skew, within rounding, and every type has a cell."""
    settings = SimulationSettings(n_cells=5_000, class_skew=skew)
    sizes = Simulation(settings).obs["cell_type"].value_counts()[list(settings.types)].to_numpy()
    shares = np.arange(1, 20) ** -skew
    np.testing.assert_allclose(sizes, 1 + (5_000 - 19) * shares / shares.sum(), atol=1)
    assert sizes.sum() == 5_000 and sizes.min() >= 1


def test_smallest_tissue_has_each_type_once():
    """As many cells as types is enough."""
    assert (Simulation(SimulationSettings(n_cells=19)).obs["cell_type"].value_counts() == 1).all()


def test_library_sizes_are_log_normal():
    """Without variation between cells of a type, log library sizes have the location and scale asked for."""
    cells = simulate(n_cells=4_000, n_genes=600, tree=TREE, lib_loc=9, lib_scale=0.5, bcv_common=0, bcv_trend=0)
    library = np.log(np.asarray(cells.X.sum(axis=1)).ravel())
    assert library.mean() == pytest.approx(9, abs=5 * 0.5 / math.sqrt(4_000))
    assert library.std() == pytest.approx(0.5, rel=0.06)


def test_variance_follows_the_bcv():
    """Each gene's variance over cells of one type is the mean plus the squared mean times the squared BCV."""
    cells = simulate(**PLAIN | dict(tree=ONE_TYPE, bcv_common=0.3, bcv_trend=0.5))
    counts = cells.X.toarray()
    counts = counts[:, (counts.mean(axis=0) > 1) & (counts.mean(axis=0) < 100)]
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    expected = mean + mean**2 * (0.3 + 0.5 / np.sqrt(mean)) ** 2
    assert len(mean) > 200
    assert np.median(variance / expected) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["donor", "region", "protocol"])
def test_shifts_have_the_stated_size(kind):
    """Levels differ by the true shifts, those spread by the scale, and a level's name alone decides its shift."""
    settings = PLAIN | {"tree": ONE_TYPE, f"{kind}s": ("a", "b", "c"), f"{kind}_fac_scale": 0.3}
    cells = simulate(**settings)
    shifts = np.log(cells.varm[f"{kind}_shift"])
    np.testing.assert_allclose(shifts.std(axis=0), 0.3, rtol=0.15)
    z = standardised(cells, kind, shifts, **settings)
    assert z.size > 200 and np.abs(z).max() < 5
    assert 0.9 < z.std() < 1.1
    elsewhere = Simulation(SimulationSettings(**settings | {f"{kind}s": ("c", "other"), "tissue": "elsewhere"}))
    np.testing.assert_array_equal(elsewhere.varm[f"{kind}_shift"][:, 0], cells.varm[f"{kind}_shift"][:, 2])


def test_stress_is_independent_of_identity():
    """Every type is stressed alike, about the strength asked for, and types, libraries and donors are untouched."""
    calm, stressed = (Simulation(SimulationSettings(n_cells=5_000, stress_strength=s)).obs for s in (0.0, 2.0))
    pd.testing.assert_frame_equal(calm.drop(columns="stress"), stressed.drop(columns="stress"))
    assert (calm["stress"] == 0).all()
    of_type = stressed.groupby("cell_type", observed=True)["stress"].agg(["mean", "size"])
    z = (of_type["mean"] - 2) / (1 / np.sqrt(of_type["size"]))  # gamma of shape 4: its deviation is half its mean
    assert np.abs(z).max() < 4


def test_stress_genes_rise_as_stated():
    """Against the genes without a part in it, stress genes rise by their factor to the power of the cell's stress."""
    cells = simulate(**PLAIN | dict(stress_strength=1.0, bcv_common=0.0, bcv_trend=0.0))
    stress_genes, silent = cells.var["is_stress_gene"].to_numpy(), (cells.var["marker_of"] == "").to_numpy()
    silent &= ~stress_genes
    var, stress = cells.var[stress_genes], cells.obs["stress"].to_numpy()
    base = cells.var["base_mean"].to_numpy()
    expected = var["stress_factor"].to_numpy() ** stress[:, None] @ var["base_mean"] / base[silent].sum()
    found = by_cell(cells, stress_genes) / by_cell(cells, silent)
    slope = np.polyfit(np.log(expected), np.log(found), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)


def test_stress_may_leak_into_one_type():
    """Where types are named, they alone are stressed."""
    obs = Simulation(SimulationSettings(n_cells=500, stress_strength=1, stress_types=("VIP",))).obs
    assert set(obs.loc[obs["stress"] > 0, "cell_type"]) == {"VIP"}
    assert (obs.loc[obs["cell_type"] == "VIP", "stress"] > 0).all()


def test_doublets_are_sums_of_two_cells():
    """A doublet is the cell it would have been plus another of the type it names; other cells stay as they were."""
    settings = PLAIN | dict(lib_loc=math.log(3_000))
    single, double = (simulate(**settings, doublet_rate=rate) for rate in (0.0, 0.2))
    doublet = double.obs["is_doublet"].to_numpy()
    added = (double.X - single.X).tocsr()
    assert doublet.mean() == pytest.approx(0.2, abs=0.05) and not single.obs["is_doublet"].any()
    assert added.data.min() >= 0 and added[~doublet].nnz == 0
    assert added[doublet].sum(axis=1).mean() == pytest.approx(3_000, rel=0.05)
    second = double.obs["doublet_with"].astype(str).to_numpy()
    assert set(second[~doublet]) == {""}
    for cell_type in double.uns["truth"]["types"]:
        marked = (double.var["marker_of"] == cell_type).to_numpy()
        of_type, of_others = (
            added[doublet & chosen][:, marked].mean() for chosen in (second == cell_type, second != cell_type)
        )
        assert of_type > 1.5 * of_others, cell_type


def test_ambient_counts_come_on_top():
    """Ambient RNA adds a share of the library size to each cell, from the genes that the whole tissue expresses."""
    settings = PLAIN | dict(lib_loc=math.log(3_000))
    clean, soiled = (simulate(**settings, ambient_fraction=fraction) for fraction in (0.0, 0.2))
    added = (soiled.X - clean.X).tocsr()
    per_cell = np.asarray(added.sum(axis=1)).ravel()
    assert added.data.min() >= 0
    assert per_cell.mean() == pytest.approx(600, abs=5 * math.sqrt(600 / 2_000))
    assert per_cell.var() == pytest.approx(600, rel=0.2)  # Poisson
    of_genes = np.asarray(added.sum(axis=0)).ravel(), np.asarray(clean.X.sum(axis=0)).ravel()
    assert np.corrcoef(*of_genes)[0, 1] > 0.9


def test_chunks_bound_the_memory():
    """Of a tissue that would fill 1.6 GB dense, a chunk takes a bounded part; chunks put together are the tissue."""
    simulation = Simulation(SimulationSettings(n_cells=200_000, n_genes=2_000))
    tracemalloc.start()
    chunk = next(simulation.chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chunk.shape == (VALUES_PER_CHUNK // 2_000, 2_000)
    assert peak < 8 * 8 * VALUES_PER_CHUNK  # eight arrays of float64
    settings = SimulationSettings(n_cells=2_500, n_genes=2_000)
    chunks = list(Simulation(settings).chunks())
    assert [part.shape[0] for part in chunks] == [2_000, 500]
    assert (sp.vstack(chunks) != simulate(settings).X).nnz == 0
    assert (chunks[0][:500] != chunks[1]).nnz > 1_000  # each chunk draws anew


def test_truth_survives_h5ad(tmp_path):
    """Written and read again, counts, truth and table of factors are the same."""
    cells = simulate(n_cells=60, n_genes=1_000, doublet_rate=0.1, stress_strength=1)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (again.X != cells.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, cells.obs, check_categorical=False)
    pd.testing.assert_frame_equal(again.var, cells.var, check_categorical=False)
    pd.testing.assert_frame_equal(true_factors(again), true_factors(cells))
    assert again.uns["truth"].keys() == cells.uns["truth"].keys()
    for key, value in cells.uns["truth"].items():
        np.testing.assert_array_equal(again.uns["truth"][key], value)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("n_cells", 18, "from 19 to"),
        ("n_cells", 100.0, "whole number"),
        ("n_genes", 300, "at most 150"),
        ("seed", -1, "from 0 to"),
        ("de_prob", 1.5, "from 0 to 1"),
        ("de_prob", 0.1, "at most 1,000"),
        ("doublet_rate", -0.1, "from 0 to 1"),
        ("ambient_fraction", math.nan, "from 0 to 1"),
        ("mean_shape", 0, "from 0.001 to"),
        ("lib_scale", -1, "from 0 to 5"),
        ("lib_loc", 2_000, "from -20 to 20"),
        ("stress_strength", "strong", "number from 0 to 10"),
        ("stress_strength", True, "number from 0 to 10"),
        ("bcv_df", math.inf, "from 0.001 to"),
        ("tree", {}, "one or more names"),
        ("tree", {"neuron": ()}, "one or more names"),
        ("tree", {"neuron": "VIP"}, "tuples of types"),
        ("tree", {"neuron": ("A", "A")}, "none twice"),
        ("tree", {"A": ("A", "B")}, "none twice"),
        ("tree", ["A", "B"], "mapping"),
        ("donors", (), "one or more names"),
        ("regions", "MTG", "one or more names"),
        ("protocols", ("10x", "10x"), "none twice"),
        ("stress_types", ("Pvalb",), "names of the tree"),
    ],
)
def test_impossible_setting_is_refused(setting, value, allowed):
    """The message names the setting or what it makes impossible, the value, and what is allowed."""
    with pytest.raises(SettingError) as caught:
        SimulationSettings(**{setting: value})
    message = str(caught.value)
    assert allowed in message
    assert setting in message or "neuron" in message


def test_unknown_names_are_refused():
    """A misspelt setting, tissue or size is named, and the nearest offered."""
    with pytest.raises(UnknownNameError, match="n_cells"):
        simulate(ncells=100)
    with pytest.raises(UnknownNameError, match="'sim-cortex'"):
        simulated("sim-cortx")
    with pytest.raises(UnknownNameError, match="'full'"):
        simulated("sim-cortex", "ful")


def test_presets_are_as_promised():
    """19 types in eight regions, 42 types, and an organoid with the cortex's identities under stress and shift."""
    for size in ("fast", "full"):
        cortex, mouse, organoid = (PRESETS[name][size] for name in ("sim-cortex", "sim-mouse", "sim-organoid"))
        assert (len(cortex.types), len(cortex.regions), len(mouse.types)) == (19, 8, 42)
        assert (cortex.types, cortex.n_genes) == (organoid.types, organoid.n_genes)
        assert cortex.stress_strength == 0 < organoid.stress_strength
        assert not set(cortex.protocols) & set(organoid.protocols)
    cortex, organoid = (Simulation(PRESETS[name]["fast"]) for name in ("sim-cortex", "sim-organoid"))
    pd.testing.assert_frame_equal(cortex.var, organoid.var)
    np.testing.assert_array_equal(cortex.varm["type_factor"], organoid.varm["type_factor"])
    assert (cortex.obs["cell_type"].astype(str).to_numpy() != organoid.obs["cell_type"].astype(str).to_numpy()).any()


def test_settings_of_a_preset_can_be_changed():
    """A preset with other cell numbers and regions keeps its genes, and refuses a setting that there is not."""
    few = simulated("sim-cortex", n_cells=60, regions=("MTG", "V1C"))
    assert few.n_obs == 60 and set(few.obs["region"]) == {"MTG", "V1C"}
    np.testing.assert_array_equal(few.var["base_mean"], Simulation(PRESETS["sim-cortex"]["fast"]).var["base_mean"])
    with pytest.raises(UnknownNameError, match="n_cells"):
        simulated("sim-cortex", ncells=60)


def test_types_of_the_cortex_are_neither_easy_nor_hopeless():
    """A linear SVM on log-normalised counts tells between 90 % and 97 % of test cells of `sim-cortex` rightly."""
    cells = simulated("sim-cortex")
    values, labels = normalise(cells.X, "counts"), cells.obs["cell_type"].astype(str).to_numpy()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    svm = LinearSVC(C=0.01, random_state=0).fit(values[train], labels[train])
    assert 0.90 <= svm.score(values[test], labels[test]) <= 0.97
