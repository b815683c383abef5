"""Simulated tissue whose truth is known: gamma-Poisson counts after Splatter, with cell types in a tree of two levels.

The model is that of Splatter (Zappia, Phipson and Oshlack 2017, Genome Biology 18:174, doi 10.1186/s13059-017-1305-0),
and settings bear the paper's names where it has them (``mean.shape`` as `mean_shape`). New here: markers at two levels,
class sizes that fall off, donors, regions and protocols, a stress programme, doublets and ambient RNA.

Every part draws from a stream of its own, named by the seed and the part. So two tissues of one seed share genes,
markers and the shift of a protocol of the same name, and switching on doublets changes no other cell.
"""

import math
import numbers
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.errors import SettingError, UnknownNameError

VALUES_PER_CHUNK = 4_000_000  # cells x genes held dense at once: 32 MB as float64, 160 MB with intermediates
SHIFTS = ("donor", "region", "protocol")
RANGES = {  # of the settings with this ending, the first that fits
    **{"mean_shape": (1e-3, 1e3), "mean_rate": (1e-3, 1e3), "bcv_df": (1e-3, 1e6)},
    **{"_prob": (0, 1), "_rate": (0, 1), "_fraction": (0, 1), "_loc": (-20, 20), "_scale": (0, 5)},
    **{"n_cells": (1, 10**9), "n_genes": (2, 10**6), "seed": (0, 2**63 - 1), "": (0, 10)},
}

# Glycolysis and stress of the endoplasmic reticulum; Bhaduri et al. (2020, Nature 578, 142-148) name the first three.
_STRESS = """PGK1 ARCN1 GORASP2 ALDOA ALDOC ENO1 ENO2 GAPDH GPI HK2 LDHA PDK1 PFKFB3 PFKP PGAM1 PKM SLC2A1 TPI1 BNIP3
VEGFA ATF3 ATF4 ATF6 CALR CANX CREB3L2 DDIT3 DNAJB9 DNAJC3 EDEM1 EIF2AK3 ERN1 HERPUD1 HSP90B1 HSPA5 HYOU1 PDIA3 PDIA4
PDIA6 PPP1R15A SDF2L1 SEC61B SEL1L TRIB3 XBP1"""
STRESS_GENES = tuple(_STRESS.split())

# Classes and subclasses as in the Allen Institute's human multiple cortical areas and mouse cortex and hippocampus.
CORTEX = {
    "Glutamatergic": ("IT", "L4 IT", "L5/6 IT Car3", "L6 CT", "L6b", "L5/6 NP", "L5 ET"),
    "GABAergic": ("VIP", "SST", "PVALB", "LAMP5", "PAX6"),
    "Non-neuronal": ("Oligodendrocyte", "Astrocyte", "OPC", "Microglia", "Endothelial", "Pericyte", "VLMC"),
}
MOUSE = {
    "Glutamatergic": (
        *("L4/5 IT CTX", "L2/3 IT CTX", "L6 CT CTX", "L6 IT CTX", "L5 IT CTX", "DG", "L5 PT CTX", "CA1-ProS", "Car3"),
        *("L5/6 NP CTX", "L6b CTX", "L2/3 IT PPP", "CA3", "SUB-ProS", "L4 RSP-ACA", "L2/3 IT ENTl", "L3 IT ENT"),
        *("L6b/CT ENT", "L5/6 IT TPE-ENT", "CT SUB", "NP SUB", "L2 IT ENTm", "L6 IT ENTl", "L2/3 IT RHP", "L5 PPP"),
        *("L2 IT ENTl", "NP PPP", "CA2-IG-FC"),
    ),
    "GABAergic": ("Vip", "Sst", "Pvalb", "Lamp5", "Sncg", "Sst Chodl", "Meis2"),
    "Non-neuronal": ("Astro", "Oligo", "Endo", "Micro-PVM", "SMC-Peri", "VLMC", "CR"),
}


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What a simulated tissue is like. Factors are on the natural scale, `*_loc` and `*_scale` on the log scale."""

    n_cells: int = 2_000
    n_genes: int = 2_000
    tissue: str = "tissue"  # names the cells; another name gives other cells of the same identities
    tree: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(CORTEX))  # major type -> types, by size
    class_skew: float = 1.0  # the k-th commonest type has a share like k ** -class_skew; 0: all alike
    mean_shape: float = 0.6  # base means: gamma, Splatter's default shape
    mean_rate: float = 0.3
    out_prob: float = 0.05  # outlier genes, raised over the median mean by a log-normal factor
    out_fac_loc: float = 4.0
    out_fac_scale: float = 0.5
    lib_loc: float = 8.5  # library size, counts per cell: log-normal
    lib_scale: float = 0.4
    de_prob: float = 0.015  # share of all genes that mark one type
    major_de_prob: float = 0.02  # share that marks one major type
    de_fac_loc: float = 1.0  # a marker's factor is exp |normal(loc, scale)|, thus at least 1
    de_fac_scale: float = 0.4
    bcv_common: float = 0.2  # biological coefficient of variation: (common + trend / sqrt(mean)) * spread of the gene
    bcv_trend: float = 0.5  # 1 in Splatter, which is more than the datasets of the registry have
    bcv_df: float = 60.0  # degrees of freedom of that spread, from an inverse chi-square
    donors: tuple[str, ...] = ("donor_1", "donor_2", "donor_3", "donor_4")
    regions: tuple[str, ...] = ("region_1",)
    protocols: tuple[str, ...] = ("protocol_1",)
    donor_fac_scale: float = 0.1  # a donor multiplies each gene by exp normal(0, scale); the same for the others
    region_fac_scale: float = 0.2
    protocol_fac_scale: float = 0.4
    stress_strength: float = 0.0  # mean of obs["stress"]; 0: no stress
    stress_fac_loc: float = 0.7  # a stress gene rises by exp(|normal(loc, scale)| * stress): twofold at stress 1
    stress_fac_scale: float = 0.2
    stress_types: tuple[str, ...] = ()  # types that alone are stressed; none named: all, independent of identity
    stress_genes: tuple[str, ...] = STRESS_GENES
    doublet_rate: float = 0.0  # share of cells to which the counts of a second one are added
    ambient_fraction: float = 0.0  # ambient counts added to a cell, as a share of its library size
    gene_prefix: str = "SIM"  # of the made-up symbols
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.tree, Mapping) or not all(
            isinstance(types, tuple | list) for types in self.tree.values()
        ):
            raise SettingError(f"tree = {self.tree!r}; expected a mapping from major types to tuples of types.")
        names = {"tree": [*self.tree, *self.types], **{f"{kind}s": getattr(self, f"{kind}s") for kind in SHIFTS}}
        for name, values in (names | self.tree | {"stress_genes": self.stress_genes}).items():
            if isinstance(values, str) or len(set(values)) != len(values) or not values or "" in values:
                raise SettingError(f"{name} = {values!r}; expected one or more names, none empty, none twice.")
        if unknown := set(self.stress_types) - set(self.types):
            raise SettingError(f"stress_types = {sorted(unknown)}; expected names of the tree: {list(self.types)}.")
        for setting in fields(self):
            if setting.type in (int, float):
                self._check_number(setting.name, setting.type)
        marked = len(self.types) * self.n_markers("de_prob") + len(self.tree) * self.n_markers("major_de_prob")
        needed, room = marked + len(self.stress_genes), self.n_genes // 2
        if needed > room:
            raise SettingError(
                f"{needed:,} markers and stress genes in n_genes = {self.n_genes:,}; expected at most {room:,}, the "
                "better expressed half. Lower de_prob or major_de_prob, or raise n_genes."
            )

    def _check_number(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        low, high = next(allowed for ending, allowed in RANGES.items() if name.endswith(ending))
        low = len(self.types) if name == "n_cells" else low  # a cell for each type
        number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
        if not (number and low <= value <= high):  # NaN is not
            expected = f"{'whole ' * (kind is int)}number from {low:,} to {high:,}"
            raise SettingError(f"{name} = {value!r}; expected a {expected}.")

    @property
    def types(self) -> tuple[str, ...]:
        """All cell types, the commonest first: the first of each major type, then the second of each, ..."""
        nth = range(max(map(len, self.tree.values()), default=0))
        return tuple(types[n] for n in nth for types in self.tree.values() if n < len(types))

    @property
    def major_types(self) -> tuple[str, ...]:
        """The major type of each of `types`."""
        major_of = {cell_type: major for major, types in self.tree.items() for cell_type in types}
        return tuple(major_of[cell_type] for cell_type in self.types)

    def n_markers(self, share: str) -> int:
        """Markers of one type (``"de_prob"``) or one major type (``"major_de_prob"``)."""
        return math.ceil(getattr(self, share) * self.n_genes)


def simulate(settings: SimulationSettings | None = None, **changes) -> AnnData:
    """Cells of a simulated tissue, with the truth about them.

    Parameters
    ----------
    settings
        By default those of `SimulationSettings`.
    **changes
        Single settings that differ: ``simulate(n_cells=500, stress_strength=1.0)``.

    Returns
    -------
    AnnData, cells x genes, counts in CSR float32
        See `Simulation` for the truth in `obs`, `var`, `varm` and ``uns["truth"]``.

    Raises
    ------
    SettingError
        A setting is outside of its range; the message gives value and range.
    UnknownNameError
        There is no such setting; the nearest are offered.
    """
    known = [setting.name for setting in fields(SimulationSettings)]
    if unknown := [name for name in changes if name not in known]:
        raise UnknownNameError("setting", unknown[0], known)
    simulation = Simulation(replace(settings or SimulationSettings(), **changes))
    counts = sp.vstack(list(simulation.chunks()), format="csr")
    return AnnData(counts, obs=simulation.obs, var=simulation.var, varm=simulation.varm, uns=simulation.uns)


def simulated(name: str, size: str = "fast", seed: int = 0, **changes) -> AnnData:
    """A tissue of `PRESETS`: ``"sim-cortex"``, ``"sim-mouse"`` or ``"sim-organoid"``.

    Parameters
    ----------
    size
        ``"fast"`` (2,000 genes, seconds) or ``"full"`` (20,000 cells x 20,000 genes, about a minute).
    seed, **changes
        Equal ones give equal counts, on any machine with the same numpy. Changes are single settings, as in `simulate`.

    Raises
    ------
    UnknownNameError
        There is no such tissue or size.
    """
    for kind, value, options in (("simulated tissue", name, PRESETS), ("size", size, PRESETS["sim-cortex"])):
        if value not in options:
            raise UnknownNameError(kind, value, options)
    return simulate(PRESETS[name][size], seed=seed, **changes)


def true_factors(adata: AnnData) -> pd.DataFrame:
    """By what each type multiplies each gene: genes x types, 1 where it is no marker of the type or its major type."""
    return pd.DataFrame(adata.varm["type_factor"], index=adata.var_names, columns=list(adata.uns["truth"]["types"]))


class Simulation:
    """A tissue before its counts are drawn: cells, genes and the truth are known, and `chunks` draws.

    Attributes
    ----------
    obs : DataFrame
        cell_type, major_type, donor, region, protocol; stress (0: none; a gene rises by ``stress_factor ** stress``);
        is_doublet, doublet_with (the type of the second cell, or ``""``).
    var : DataFrame
        marker_of (a type, a major type, or ``""``), marker_level (``"type"``, ``"major type"`` or ``""``),
        marker_strength (its factor, 1 for others), is_stress_gene, stress_factor, base_mean (share of the baseline).
    varm : dict of array, genes x levels
        type_factor, donor_shift, region_shift, protocol_shift: factors, columns as in ``uns["truth"]``.
    uns : dict
        ``uns["truth"]``: types, major_types (of each type), cells_per_type, and every setting but the tree.
    """

    def __init__(self, settings: SimulationSettings):
        self.settings = settings
        self._draw_genes()
        self._draw_cells()
        truth = vars(settings) | {"types": settings.types, "major_types": settings.major_types}
        del truth["tree"]
        truth["cells_per_type"] = np.bincount(self._cells["type"])
        self.uns = {"truth": {k: np.array(v, object) if isinstance(v, tuple) else v for k, v in truth.items()}}

    def chunks(self) -> Iterator[sp.csr_matrix]:
        """Counts of successive cells, each chunk (cells, n_genes) CSR float32: for a file larger than memory."""
        size = max(1, VALUES_PER_CHUNK // self.settings.n_genes)
        for chunk, start in enumerate(range(0, self.settings.n_cells, size)):
            yield self._chunk(self._cells.iloc[start : start + size], chunk)

    def _chunk(self, cells: pd.DataFrame, chunk: int) -> sp.csr_matrix:
        """The counts of these cells; doublets and ambient RNA come on top, from streams of their own."""
        tissue = self.settings.tissue
        counts = self._counts(cells, self._stream(tissue, "counts", chunk))
        if len(rows := np.flatnonzero(cells["second"] >= 0)):
            hosts = cells.iloc[rows]
            second = self._cells.iloc[hosts["second"]].assign(**{kind: hosts[kind].to_numpy() for kind in SHIFTS})
            counts[rows] += self._counts(second, self._stream(tissue, "doublet counts", chunk))
        if self.settings.ambient_fraction:
            soup = np.average(_shares(self._profiles), axis=0, weights=np.bincount(self._cells["type"]))
            rate = self.settings.ambient_fraction * np.outer(cells["library"], soup)
            counts += self._stream(tissue, "ambient", chunk).poisson(rate)
        return sp.csr_matrix(counts, dtype=np.float32)

    def _counts(self, cells: pd.DataFrame, stream: np.random.Generator) -> np.ndarray:
        """Gamma-Poisson counts (cells, n_genes) of single cells."""
        expression = self._profiles[cells["type"]]
        for kind in SHIFTS:
            expression *= self.varm[f"{kind}_shift"].T[cells[kind]]
        if self.settings.stress_strength:
            expression[:, self._stressed] *= np.exp(np.outer(cells["stress"], self._log_stress))
        mean = _shares(expression) * cells["library"].to_numpy()[:, None]
        if self.settings.bcv_common or self.settings.bcv_trend:
            mean = np.maximum(mean, np.finfo(np.float32).tiny)  # of genes that are never expressed
            squared = ((self.settings.bcv_common + self.settings.bcv_trend / np.sqrt(mean)) * self._spread) ** 2
            mean *= squared * stream.standard_gamma(1 / squared)
        return stream.poisson(mean)

    def _draw_genes(self) -> None:
        """Base means, spread, markers and stress genes: of all tissues with this seed and these identities."""
        s, n = self.settings, self.settings.n_genes
        stream = self._stream("means")
        base = stream.standard_gamma(s.mean_shape, n) / s.mean_rate
        outlier = np.exp(stream.normal(s.out_fac_loc, s.out_fac_scale, n)) * np.median(base)
        base = np.where(stream.random(n) < s.out_prob, outlier, base)
        self._spread = np.sqrt(s.bcv_df / (2 * self._stream("spread").standard_gamma(s.bcv_df / 2, n)))

        stream = self._stream("markers")
        expressed = stream.permutation(np.argsort(base, kind="stable")[n - n // 2 :])
        sizes = [s.n_markers("major_de_prob")] * len(s.tree) + [s.n_markers("de_prob")] * len(s.types)
        *markers, rest = np.split(expressed, np.cumsum(sizes))
        marker_of, level, strength = np.full(n, "", object), np.full(n, "", object), np.ones(n)
        type_factor = np.ones((n, len(s.types)))
        for node, genes in zip([*s.tree, *s.types], markers, strict=True):
            marker_of[genes], level[genes] = node, "major type" if node in s.tree else "type"
            strength[genes] = np.exp(np.abs(stream.normal(s.de_fac_loc, s.de_fac_scale, len(genes))))
            carriers = [i for i, path in enumerate(zip(s.major_types, s.types, strict=True)) if node in path]
            type_factor[np.ix_(genes, carriers)] = strength[genes, None]
        self._stressed = rest[: len(s.stress_genes)]
        stream = self._stream("stress genes")
        self._log_stress = np.abs(stream.normal(s.stress_fac_loc, s.stress_fac_scale, len(self._stressed)))
        stress_factor = np.ones(n)
        stress_factor[self._stressed] = np.exp(self._log_stress)
        names = np.array([f"{s.gene_prefix}{number:0{len(str(n))}d}" for number in range(1, n + 1)], dtype=object)
        names[self._stressed] = s.stress_genes
        var = {"marker_of": pd.Categorical(marker_of), "marker_level": pd.Categorical(level)}
        var |= {"marker_strength": strength, "is_stress_gene": np.isin(np.arange(n), self._stressed)}
        self.var = pd.DataFrame(var | {"stress_factor": stress_factor, "base_mean": base / base.sum()}, index=names)
        self.varm = {"type_factor": type_factor}
        for kind in SHIFTS:
            scale = getattr(s, f"{kind}_fac_scale")
            shifts = [np.exp(self._stream(kind, level).normal(0, scale, n)) for level in getattr(s, f"{kind}s")]
            self.varm[f"{kind}_shift"] = np.stack(shifts, axis=1)
        self._profiles = base * type_factor.T

    def _draw_cells(self) -> None:
        """Type, origin, library size, stress and partner of every cell, as numbers and as `obs`."""
        s, n = self.settings, self.settings.n_cells
        stream = self._stream(s.tissue, "cells")
        cells = {"type": stream.permutation(np.repeat(np.arange(len(s.types)), _class_sizes(s)))}
        cells |= {kind: stream.integers(len(getattr(s, f"{kind}s")), size=n) for kind in SHIFTS}
        cells["library"] = np.exp(stream.normal(s.lib_loc, s.lib_scale, n))
        activity = stream.standard_gamma(4.0, n) / 4  # mean 1, so that cells differ in stress by half of it
        cells["stress"] = s.stress_strength * activity * np.isin(s.types, s.stress_types or s.types)[cells["type"]]
        stream = self._stream(s.tissue, "doublets")
        doublet, second = stream.random(n) < s.doublet_rate, stream.integers(n, size=n)
        cells["second"] = np.where(doublet, second, -1)
        self._cells = pd.DataFrame(cells)
        types, major_types = (np.array(names, object)[cells["type"]] for names in (s.types, s.major_types))
        obs = {"cell_type": pd.Categorical(types, s.types), "major_type": pd.Categorical(major_types, list(s.tree))}
        obs |= {kind: pd.Categorical.from_codes(cells[kind], getattr(s, f"{kind}s")) for kind in SHIFTS}
        obs |= {"stress": cells["stress"], "is_doublet": doublet}
        obs |= {"doublet_with": pd.Categorical(np.where(doublet, types[second], ""))}
        self.obs = pd.DataFrame(obs, index=[f"{s.tissue}_{number:0{len(str(n))}d}" for number in range(1, n + 1)])

    def _stream(self, *part: str | int) -> np.random.Generator:
        """The random numbers of one part of the simulation."""
        return np.random.Generator(np.random.PCG64([self.settings.seed, zlib.crc32(repr(part).encode())]))


def _shares(expression: np.ndarray) -> np.ndarray:
    return expression / expression.sum(axis=1, keepdims=True)


def _class_sizes(settings: SimulationSettings) -> np.ndarray:
    """Cells per type: one each, the others by share, what rounding leaves to the commonest types."""
    weights = np.arange(1, len(settings.types) + 1) ** -float(settings.class_skew)
    sizes = 1 + np.floor((settings.n_cells - len(weights)) * weights / weights.sum()).astype(int)
    sizes[: settings.n_cells - sizes.sum()] += 1
    return sizes


# benchmarks/simulation_realism.py measures how hard they are: it is what the shares and factors of markers were set by.
_SIZES = {
    "fast": dict(n_cells=2_500, lib_loc=math.log(2_000), de_prob=0.0095, major_de_prob=0.02, de_fac_loc=1.15),
    "full": dict(n_cells=20_000, n_genes=20_000, lib_loc=math.log(6_000), de_prob=0.00175, major_de_prob=0.002),
}
_SIZES["fast"]["region_fac_scale"], _SIZES["full"]["region_fac_scale"] = 0.8, 0.65  # felt alike in few and many genes
_CORTEX = dict(tissue="cortex", regions=("MTG", "V1C", "CgG", "M1lm", "M1ul", "S1lm", "S1ul", "A1C"))
_CORTEX |= dict(protocols=("SMART-seq",))
_MOUSE = dict(tissue="mouse", tree=MOUSE, regions=("VISp", "ALM", "ENT", "HIP"), de_fac_loc=1.25, gene_prefix="Sim")
_MOUSE |= dict(region_fac_scale=0.2, stress_genes=tuple(gene.capitalize() for gene in STRESS_GENES))
_ORGANOID = _CORTEX | dict(tissue="organoid", regions=("organoid",), protocols=("10x",))
_ORGANOID |= dict(donors=("line_1", "line_2"), stress_strength=1.0)
_TISSUES = {"sim-cortex": _CORTEX, "sim-mouse": _MOUSE, "sim-organoid": _ORGANOID}
PRESETS = {
    name: {size: SimulationSettings(**scale | tissue) for size, scale in _SIZES.items()}
    for name, tissue in _TISSUES.items()
}
