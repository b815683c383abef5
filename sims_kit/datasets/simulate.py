"""Simulated counts of a tissue whose cell types, markers and technical effects are known (see docs/simulation.md).

The model is Splatter's (Zappia, Phipson and Oshlack 2017, doi 10.1186/s13059-017-1305-0). Each part has its own random
stream: tissues with the same seed share genes, markers and shifts, and adding doublets changes no other cell.
"""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml
from anndata import AnnData

from sims_kit.errors import SettingError, UnknownNameError

VALUES_PER_CHUNK = 4_000_000  # cells x genes held dense at once: 32 MB as float64, 160 MB with intermediates
SHIFTS = ("donor", "region", "protocol")
_YAML = yaml.safe_load(Path(__file__).with_name("tissues.yaml").read_text(encoding="utf-8"))
_DEFAULTS = {name: tuple(value) if isinstance(value, list) else value for name, value in _YAML["settings"].items()}
STRESS_GENES = _DEFAULTS["stress_genes"]
_FromYaml = make_dataclass("_FromYaml", [(k, type(v), v) for k, v in _DEFAULTS.items()], frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class SimulationSettings(_FromYaml):
    """Settings of a simulated tissue: those of tissues.yaml, which explains each and has its default, and the tree."""

    tree: Mapping[str, Sequence[str]] = field(default_factory=lambda: dict(_YAML["human_cortex"]))  # major type: types

    def __post_init__(self):
        lists = {name: getattr(self, name) for name in ("donors", "regions", "protocols", "stress_genes")}
        for name, values in {**lists, "tree": [*self.tree, *self.types], **self.tree}.items():
            if isinstance(values, str) or not 0 < len(values) == len(set(values)):
                raise SettingError(f"{name} = {values!r}; expected a tuple of one or more names, none repeated.")
        if unknown := set(self.stress_types) - set(self.types):
            raise SettingError(f"stress_types = {sorted(unknown)}; expected types of the tree: {self.types}.")
        for name, most in _YAML["upper_limits"].items():
            if not 0 <= getattr(self, name) <= most:
                raise SettingError(f"{name} = {getattr(self, name)!r}; expected a number from 0 to {most}.")
        special = sum(self.n_markers.values()) + len(self.stress_genes)
        genes = f"twice its {special:,} markers and stress genes. Raise n_genes or lower de_prob or major_de_prob"
        for name, least, reason in (("n_cells", len(self.types), "one per type"), ("n_genes", 2 * special, genes)):
            if not isinstance(getattr(self, name), int | np.integer) or getattr(self, name) < least:
                raise SettingError(f"{name} = {getattr(self, name)!r}; expected an integer from {least:,}, {reason}.")

    @property
    def types(self) -> tuple[str, ...]:
        """All cell types, most common first: the first of each major type, then the second of each, and so on."""
        return tuple(name for nth in zip_longest(*self.tree.values()) for name in nth if name is not None)

    @property
    def n_markers(self) -> dict[str, int]:
        """The number of markers of each major type and each type."""
        shares = dict.fromkeys(self.tree, self.major_de_prob) | dict.fromkeys(self.types, self.de_prob)
        return {name: math.ceil(share * self.n_genes) for name, share in shares.items()}


PRESETS = {
    name: {size: SimulationSettings(**scale | tissue) for size, scale in _YAML["sizes"].items()}
    for name, tissue in _YAML["tissues"].items()
}


def simulate(settings: SimulationSettings | str | None = None, *, size: str = "fast", **changes) -> AnnData:
    """Simulate counts, cells x genes in CSR float32; `Simulation` describes the truth in obs, var, varm and uns.

    `settings` may name a tissue of `PRESETS`, with the size ``"fast"`` (2,500 cells x 2,000 genes) or ``"full"``
    (20,000 x 20,000); `changes` are single settings, such as `seed`.

    >>> simulate("sim-cortex", regions=("MTG", "V1C"), seed=1).shape
    (2500, 2000)
    """
    if isinstance(settings, str):
        for kind, value, options in (("simulated tissue", settings, PRESETS), ("size", size, _YAML["sizes"])):
            if value not in options:
                raise UnknownNameError(kind, value, options)
        settings = PRESETS[settings][size]
    tissue = Simulation(replace(settings or SimulationSettings(), **changes))
    counts = sp.vstack(list(tissue.chunks()), format="csr")
    return AnnData(counts, obs=tissue.obs, var=tissue.var, varm=tissue.varm, uns=tissue.uns)


class Simulation:
    """The cells, genes and truth of a tissue; `chunks` draws its counts.

    obs: cell_type, major_type, donor, region, protocol, stress, is_doublet, doublet_with (type of the second cell).
    var: marker_of (a type, a major type or ""), marker_level ("type", "major type" or ""), marker_strength (a factor),
    is_stress_gene, stress_factor (the gene rises by ``stress_factor ** stress``), base_mean (share of all counts).
    varm: type_factor, donor_shift, region_shift, protocol_shift, each genes x levels.
    uns["truth"]: types, major_types (of each type), cells_per_type, and every setting except the tree.
    """

    def __init__(self, settings: SimulationSettings):
        s = self.settings = settings
        self._major_of = {name: major for major, names in s.tree.items() for name in names}
        self._draw_genes()
        self._draw_cells()
        truth = vars(s) | {"types": s.types, "major_types": tuple(self._major_of[name] for name in s.types)}
        truth["cells_per_type"] = np.bincount(self.obs["cell_type"].cat.codes)
        del truth["tree"]
        self.uns = {"truth": {k: np.array(v, object) if isinstance(v, list | tuple) else v for k, v in truth.items()}}

    def chunks(self) -> Iterator[sp.csr_matrix]:
        """Yield the counts of successive cells, each (cells, n_genes) in CSR float32, so that memory stays bounded."""
        s, size = self.settings, max(1, VALUES_PER_CHUNK // self.settings.n_genes)
        for number, start in enumerate(range(0, s.n_cells, size)):
            cells = self._cells.iloc[start : start + size]
            counts = self._counts(cells, self._stream(s.tissue, "counts", number))

            # The second cell of a doublet keeps its type, library size and stress, but has the origin of the first.
            first = cells[cells["is_doublet"]]
            second = self._cells.iloc[first["second"]].assign(**{kind: first[kind].array for kind in SHIFTS})
            counts[cells["is_doublet"]] += self._counts(second, self._stream(s.tissue, "doublet counts", number))
            yield sp.csr_matrix(counts, dtype=np.float32)
            del counts  # to have one dense chunk in memory, not two

    def _counts(self, cells: pd.DataFrame, stream: np.random.Generator) -> np.ndarray:
        """Draw gamma-Poisson counts (cells, n_genes) of single cells."""
        s, expression = self.settings, self._profiles[cells["cell_type"].cat.codes]
        for kind in SHIFTS:
            expression *= self.varm[f"{kind}_shift"].T[cells[kind].cat.codes]
        expression[:, self._stressed] *= np.exp(np.outer(cells["stress"], self._log_stress))
        mean = expression / expression.sum(axis=1, keepdims=True) * cells["library"].to_numpy()[:, None]
        if s.bcv_common or s.bcv_trend:
            mean = np.maximum(mean, np.finfo(np.float32).tiny)  # the mean of a gene may be 0
            squared_bcv = ((s.bcv_common + s.bcv_trend / np.sqrt(mean)) * self._spread) ** 2
            mean *= squared_bcv * stream.standard_gamma(1 / squared_bcv)
        return stream.poisson(mean)

    def _draw_genes(self) -> None:
        """Draw base means, markers, stress genes and shifts, which tissues with the same seed and tree share."""
        s, n, stream = self.settings, self.settings.n_genes, self._stream("means")
        base = stream.standard_gamma(s.mean_shape, n) / s.mean_rate
        outlier = np.exp(stream.normal(s.out_fac_loc, s.out_fac_scale, n)) * np.median(base)
        base = np.where(stream.random(n) < s.out_prob, outlier, base)
        self._spread = np.sqrt(s.bcv_df / (2 * self._stream("spread").standard_gamma(s.bcv_df / 2, n)))

        # Markers and stress genes come from the better expressed half of the genes; no gene has two roles.
        stream, n_markers = self._stream("markers"), list(s.n_markers.values())
        expressed = stream.permutation(np.argsort(base, kind="stable")[n - n // 2 :])
        markers, others = np.split(expressed, [sum(n_markers)])
        var = pd.DataFrame({"marker_of": "", "marker_level": "", "marker_strength": np.ones(n)})
        var.loc[markers, "marker_of"] = np.repeat(list(s.n_markers), n_markers)
        var.loc[markers, "marker_level"] = np.where(var["marker_of"][markers].isin(s.tree), "major type", "type")
        var.loc[markers, "marker_strength"] = np.exp(np.abs(stream.normal(s.de_fac_loc, s.de_fac_scale, len(markers))))
        stream, self._stressed = self._stream("stress genes"), others[: len(s.stress_genes)]
        self._log_stress = np.abs(stream.normal(s.stress_fac_loc, s.stress_fac_scale, len(self._stressed)))
        var["is_stress_gene"], var["stress_factor"] = var.index.isin(self._stressed), 1.0
        var.loc[self._stressed, "stress_factor"] = np.exp(self._log_stress)
        var = var.assign(base_mean=base / base.sum()).astype({"marker_of": "category", "marker_level": "category"})
        names = np.array([f"{s.gene_prefix}{number:0{len(str(n))}d}" for number in range(1, n + 1)], object)
        names[self._stressed] = s.stress_genes
        self.var = var.set_index(names)

        is_marker = [var["marker_of"].isin([name, self._major_of[name]]) for name in s.types]
        factors = np.where(np.stack(is_marker, axis=1), var[["marker_strength"]], 1.0)
        self.varm, self._profiles = {"type_factor": factors}, base * factors.T
        for kind in SHIFTS:
            levels, scale = getattr(s, f"{kind}s"), getattr(s, f"{kind}_fac_scale")
            shifts = [np.exp(self._stream(kind, level).normal(0, scale, n)) for level in levels]
            self.varm[f"{kind}_shift"] = np.stack(shifts, axis=1)

    def _draw_cells(self) -> None:
        """Draw type, origin, library size and stress of every cell, and the second cells of doublets."""
        s, n, stream = self.settings, self.settings.n_cells, self._stream(self.settings.tissue, "cells")
        shares = np.arange(1, len(s.types) + 1) ** -float(s.class_skew)
        sizes = 1 + np.floor((n - len(shares)) * shares / shares.sum()).astype(int)
        sizes[: n - sizes.sum()] += 1  # the cells lost by rounding go to the most common types
        types = stream.permutation(np.repeat(np.array(s.types, object), sizes))
        obs = pd.DataFrame({"cell_type": pd.Categorical(types, s.types)})
        obs["major_type"] = pd.Categorical([self._major_of[name] for name in types], list(s.tree))
        for kind in SHIFTS:
            levels = getattr(s, f"{kind}s")
            obs[kind] = pd.Categorical.from_codes(stream.integers(len(levels), size=n), levels)
        library = np.exp(stream.normal(s.lib_loc, s.lib_scale, n))
        activity = stream.standard_gamma(4.0, n) / 4  # mean 1, standard deviation 0.5
        obs["stress"] = s.stress_strength * activity * np.isin(types, s.stress_types or s.types)
        stream = self._stream(s.tissue, "doublets")
        obs["is_doublet"], second = stream.random(n) < s.doublet_rate, stream.integers(n, size=n)
        obs["doublet_with"] = pd.Categorical(np.where(obs["is_doublet"], types[second], ""))
        obs.index = [f"{s.tissue}_{number:0{len(str(n))}d}" for number in range(1, n + 1)]
        self.obs, self._cells = obs, obs.assign(library=library, second=second)

    def _stream(self, *part: str | int) -> np.random.Generator:
        """Return the random numbers of one part of the simulation."""
        return np.random.Generator(np.random.PCG64([self.settings.seed, zlib.crc32(repr(part).encode())]))
