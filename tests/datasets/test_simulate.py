"""Simulated tissue: counts follow Splatter's model, random streams are independent, and the truth is true."""

import hashlib
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets.simulate import PRESETS, Simulation, SimulationSettings, simulate
from sims_kit.errors import SettingError, UnknownNameError

# Only the types vary, so that mean and variance of each count can be written down.
PLAIN = dict(n_cells=2_000, n_genes=600, tree={"neuron": ("A", "B", "C"), "glia": ("D", "E")}, class_skew=0.0)
PLAIN |= dict(lib_loc=np.log(20_000), lib_scale=0.0, donors=("a",), bcv_df=1e6)
ONE_TYPE = PLAIN | dict(tree={"cell": ("A",)})
# SHA-256 of 200 cells with doublets: another one means that the code or numpy draws other numbers.
FINGERPRINTS = {"sim-cortex": "8c70cc7b1db76d10", "sim-mouse": "ab040b865f11f938", "sim-organoid": "671a36434174ff49"}
REFUSED = {  # message: settings
    "n_cells = .* an integer from 19": [dict(n_cells=18), dict(n_cells=100.0)],
    "n_genes = .* Raise n_genes or lower de_prob": [dict(n_genes=300), dict(de_prob=0.1)],
    "de_prob = 1.5; expected a number from 0 to 1": [dict(de_prob=1.5), dict(major_de_prob=1.5)],
    "e.* = .* from 0 to 1": [dict(doublet_rate=-0.1), dict(doublet_rate=np.nan), dict(stress_strength=11)],
    "s = .* none repeated": [dict(donors=()), dict(regions="MTG"), dict(protocols=("10x", "10x"))],
    "(tree|A) = .* names": [dict(tree=tree) for tree in ({}, {"A": ()}, {"A": "VIP"}, {"A": ("A", "B")})],
    "stress_types = .* types of the tree": [dict(stress_types=("Pvalb",))],
}


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_every_machine(name):
    """Name and seed decide every count, in CSR float32; another seed gives other counts and markers."""
    one, two = (simulate(name, seed=seed, n_cells=200, doublet_rate=0.2) for seed in (7, 8))
    assert hashlib.sha256(one.X.astype("<i4").toarray().tobytes()).hexdigest()[:16] == FINGERPRINTS[name]
    assert one.X.format == "csr" and one.X.dtype == np.float32 and (one.X != two.X).nnz > 1_000
    assert list(one.var["marker_of"]) != list(two.var["marker_of"])


@pytest.mark.parametrize("change", [{"tissue": "b"}, {"stress_strength": 2}, {"donors": ["x", "donor_3"]}])
def test_streams_are_independent(change):
    """Other cells, stress or donors leave genes, markers and the shifts of donors of the same name as they were."""
    before, after = (simulate(n_cells=50, n_genes=800, **settings) for settings in ({}, change))
    pd.testing.assert_frame_equal(before.var, after.var)
    np.testing.assert_array_equal(before.varm["type_factor"], after.varm["type_factor"])
    donor = [list(cells.uns["truth"]["donors"]).index("donor_3") for cells in (before, after)]
    np.testing.assert_array_equal(before.varm["donor_shift"][:, donor[0]], after.varm["donor_shift"][:, donor[1]])
    assert (before.X != after.X).nnz > 500


@pytest.mark.parametrize("kind", ["type", "donor", "region", "protocol"])
def test_genes_differ_by_the_true_factors(kind):
    """Log ratios of means are those of the true factors, with the standard error of the gamma-Poisson model."""
    shift = {f"{kind}s": ("a", "b", "c"), f"{kind}_fac_scale": 0.3}
    s = SimulationSettings(**(PLAIN if kind == "type" else ONE_TYPE | shift))
    cells, table = simulate(s), "type_factor" if kind == "type" else f"{kind}_shift"
    codes, factors = cells.obs["cell_type" if kind == "type" else kind].cat.codes.to_numpy(), cells.varm[table]
    assert kind == "type" or np.log(factors).std() == pytest.approx(0.3, rel=0.1)
    n, means = np.bincount(codes), np.stack([cells.X[codes == code].mean(axis=0).A1 for code in np.unique(codes)], 1)
    well_seen = (means.min(axis=1) > 3) & (cells.var["base_mean"] < 0.01)
    means, factors = means[well_seen], factors[well_seen]
    error = np.log(means / means[:, :1])[:, 1:] - np.log(factors / factors[:, :1])[:, 1:]
    error -= np.median(error, axis=0)  # all genes share the library size: what markers gain, the others lose
    squared = (1 / means + (s.bcv_common + s.bcv_trend / np.sqrt(means)) ** 2) / n
    z = error / np.sqrt(squared[:, :1] + squared[:, 1:])
    assert z.size > 200 and np.abs(z).max() < 5 and 0.9 < z.std() < 1.1


def test_sizes_and_variance():
    """Class sizes follow k ** -skew, library sizes are log-normal, and variance follows the BCV."""
    for skew, n_cells in ((0.0, 5_000), (1.0, 5_000), (2.0, 5_000), (1.0, 19)):
        sizes = Simulation(SimulationSettings(n_cells=n_cells, class_skew=skew)).uns["truth"]["cells_per_type"]
        shares = np.arange(1, 20) ** -skew
        np.testing.assert_allclose(sizes, 1 + (n_cells - 19) * shares / shares.sum(), atol=1)
        assert sizes.sum() == n_cells and sizes.min() >= 1
    library = np.log(simulate(**PLAIN | dict(lib_loc=9, lib_scale=0.5, bcv_common=0, bcv_trend=0)).X.sum(axis=1))
    assert library.mean() == pytest.approx(9, abs=0.06) and library.std() == pytest.approx(0.5, rel=0.06)
    counts = simulate(**ONE_TYPE, bcv_common=0.3, bcv_trend=0.5).X.toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    mean, variance = mean[seen := (mean > 1) & (mean < 100)], variance[seen]
    assert np.median(variance / (mean + (0.3 * mean + 0.5 * np.sqrt(mean)) ** 2)) == pytest.approx(1, abs=0.03)


def test_tables_of_truth_agree(tmp_path):
    """Columns of genes and cells agree with factors and tree, and all of the truth survives a file."""
    cells = simulate(n_genes=1_000, n_cells=60, doublet_rate=0.1, stress_strength=1)
    factors, truth, tree = cells.varm["type_factor"], cells.uns["truth"], SimulationSettings().tree
    assert list(truth["types"][:4]) == ["IT", "VIP", "Oligodendrocyte", "L4 IT"]
    for gene, of_types in zip(cells.var.itertuples(), factors, strict=True):
        path = [gene.marker_of in pair for pair in zip(truth["types"], truth["major_types"], strict=True)]
        np.testing.assert_array_equal(of_types, np.where(path, gene.marker_strength, 1))
        assert gene.marker_level == ("major type" if gene.marker_of in tree else "type" if gene.marker_of else "")
    assert cells.var["marker_of"].value_counts().to_dict() == SimulationSettings(n_genes=1_000).n_markers | {"": 655}
    stress_genes = cells.var[cells.var["is_stress_gene"]]
    assert set(stress_genes.index) == set(SimulationSettings.stress_genes) and set(stress_genes["marker_of"]) == {""}
    assert all(cell.cell_type in tree[cell.major_type] for cell in cells.obs.itertuples())
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.varm["type_factor"], factors)
    assert all(np.array_equal(again.uns["truth"][name], value) for name, value in truth.items())


def test_stress():
    """Stress has the stated mean in all types or in those named, and raises the stress genes by its factors."""
    obs = Simulation(SimulationSettings(n_cells=5_000, stress_strength=2.0)).obs
    means = obs.groupby("cell_type", observed=True)["stress"].agg(["mean", "size"])
    assert (np.abs(means["mean"] - 2) * np.sqrt(means["size"]) < 4).all()  # the standard deviation is 1
    obs = Simulation(SimulationSettings(n_cells=500, stress_strength=1, stress_types=("VIP",))).obs
    assert ((obs["stress"] > 0) == (obs["cell_type"] == "VIP")).all()
    cells = simulate(**PLAIN, stress_strength=1.0, bcv_common=0.0, bcv_trend=0.0)
    var, stressed = cells.var, cells.var["is_stress_gene"].to_numpy()
    silent = (var["marker_of"] == "").to_numpy() & ~stressed
    rise = var["stress_factor"].to_numpy()[stressed] ** cells.obs["stress"].to_numpy()[:, None]
    expected = rise @ var["base_mean"][stressed] / var["base_mean"][silent].sum()
    found = (cells.X[:, stressed].sum(axis=1) / cells.X[:, silent].sum(axis=1)).A1
    assert np.polyfit(np.log(expected), np.log(found), 1) == pytest.approx([1, 0], abs=0.1)


def test_doublets_come_on_top():
    """A doublet adds a cell of the type that it names."""
    clean, double = simulate(**PLAIN), simulate(**PLAIN, doublet_rate=0.2)
    doublet, second, added = double.obs["is_doublet"], double.obs["doublet_with"], (double.X - clean.X).toarray()
    assert added.min() == added[~doublet].max() == 0 and set(second[~doublet]) == {""} and 0.15 < doublet.mean() < 0.25
    assert added[doublet].sum(axis=1).mean() == pytest.approx(20_000, rel=0.05)
    for name in double.uns["truth"]["types"]:
        markers = added[:, double.var["marker_of"] == name].mean(axis=1)
        assert markers[second == name].mean() > 1.5 * markers[doublet & (second != name)].mean(), name


def test_chunks_bound_the_memory():
    """Dense arrays are as large as a chunk, not as the tissue, and chunks differ."""
    chunks = Simulation(SimulationSettings(n_cells=20_000)).chunks()
    tracemalloc.start()
    first, second = next(chunks), next(chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first.shape == (2_000, 2_000) and (first != second).nnz > 1_000
    assert peak < 6 * 32e6  # six dense arrays of a chunk; the tissue has 320 MB


@pytest.mark.parametrize("expected", REFUSED)
def test_impossible_settings_are_refused(expected):
    """The message names the setting and says what was expected."""
    for settings in REFUSED[expected]:
        with pytest.raises(SettingError, match=expected):
            SimulationSettings(**settings)


@pytest.mark.parametrize("size", ["fast", "full"])
def test_presets(size):
    """Cortex and organoid share types and genes, but not protocol and stress; unknown names are refused."""
    cortex, mouse, organoid = (PRESETS[name][size] for name in ("sim-cortex", "sim-mouse", "sim-organoid"))
    assert cortex.stress_strength == 0 < organoid.stress_strength and not {*cortex.protocols} & {*organoid.protocols}
    assert [gene.upper() for gene in mouse.stress_genes] == list(cortex.stress_genes)
    few, other = (simulate(name, size=size, n_cells=60) for name in ("sim-cortex", "sim-organoid"))
    assert (few.n_vars, len(cortex.types), len(cortex.regions), len(mouse.types)) == (cortex.n_genes, 19, 8, 42)
    np.testing.assert_array_equal(few.varm["type_factor"], other.varm["type_factor"])
    with pytest.raises(UnknownNameError, match="'sim-cortex'"):
        simulate("sim-cortx", size=size)
