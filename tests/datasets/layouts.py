"""Miniatures of the files of every dataset of the tier `full`, for test_layouts.py.

Names of files, members, columns and cells are written out here as their publishers write them, and not taken from the
registry, so that an entry which is wrong about its files is found out. Where it is not known how a file is written
(fields quoted or bare, genes as `id|symbol` or as symbols), each way is a variant.
"""

import csv
import gzip
import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

N_CELLS = 48
HUMAN = ["1-Mar", "2-Sep", "3.8-1.2", "3.8-1.3", "5-HT3C2", "7SK", "A1BG", "A1BG-AS1", "bA255A11.4", "SNAP25", "ZZZ3"]
HUMAN += [f"LOC1005{number}" for number in range(24)]
TWICE = [*HUMAN[:-1], HUMAN[-2]]  # with one symbol that occurs twice
ENSEMBL = [f"ENSG00000{number:06}" for number in range(0, 83 * len(HUMAN), 83)]
MOUSE = ["0610005C13Rik", "0610006L08Rik", "1-Mar", "4E3", "A1bg", "Snap25", "Zzz3"]  # 4E3 reads like a number
MOUSE += [f"Gm100{number}" for number in range(25)]
HUMAN_GROUPS = """cluster class subclass full_genotype donor_sex region cortical_layer cell_type_accession
cell_type_alias cell_type_alt_alias cell_type_designation external_donor_name"""
MOUSE_COLUMNS = """sample_name donor_sex_id donor_sex_label donor_sex_color region_id region_label region_color
platform_label cluster_order cluster_label cluster_color subclass_order subclass_label subclass_color neighborhood_id
neighborhood_label neighborhood_color class_order class_label class_color exp_component_name external_donor_name_label
full_genotype_label facs_population_plan_label injection_roi_label injection_materials_label injection_method_label
injection_type_label full_genotype_id full_genotype_color external_donor_name_id external_donor_name_color
facs_population_plan_id facs_population_plan_color injection_materials_id injection_materials_color injection_method_id
injection_method_color injection_roi_id injection_roi_color injection_type_id injection_type_color
cell_type_accession_label cell_type_alias_label cell_type_alt_alias_label cell_type_designation_label
cell_type_designation_id cell_type_alt_alias_id cell_type_alias_id cell_type_accession_id cell_type_designation_color
cell_type_alt_alias_color cell_type_alias_color cell_type_accession_color cortical_layer_label cortical_layer_order
cortical_layer_color"""
MTG_COLUMNS = """sample_name sample_id sample_type organism donor sex age_days brain_hemisphere brain_region
brain_subregion facs_date facs_container facs_sort_criteria rna_amplification_set library_prep_set
library_prep_avg_size_bp seq_name seq_tube seq_batch total_reads percent_exon_reads percent_intron_reads
percent_intergenic_reads percent_rrna_reads percent_mt_exon_reads percent_reads_unique percent_synth_reads
percent_ecoli_reads percent_aligned_reads_total complexity_cg genes_detected_cpm_criterion genes_detected_fpkm_criterion
class cluster"""
ABDELAAL = {  # matrix inside the archive, beginning of the names of the cells, labels
    "abdelaal-amb": ("AMB/Filtered_mouse_allen_brain_data.csv", "F1S4_160108", ["Sst", "Pvalb", "L2/3 IT"]),
    "baron-human": ("Pancreatic_data/Baron Human/Filtered_Baron_HumanPancreas_data.csv", "human1", ["beta", "t_cell"]),
    "baron-mouse": ("Pancreatic_data/Baron Mouse/Filtered_MousePancreas_data.csv", "mouse1", ["beta", "B_cell"]),
    "muraro": ("Pancreatic_data/Muraro/Filtered_Muraro_HumanPancreas_data.csv", "D28.1", ["duct", "pp", "alpha"]),
    "segerstolpe": (
        "Pancreatic_data/Segerstolpe/Filtered_Segerstolpe_HumanPancreas_data.csv",
        "A",
        ["PSC", "not clear"],
    ),
    "xin": ("Pancreatic_data/Xin/Filtered_Xin_HumanPancreas_data.csv", "Sample", ["alpha", "beta"]),
    "zheng68k": ("Zheng 68K/Filtered_68K_PBMC_data.csv", "AAACATACACCCAA", ["CD4+/CD25 T Reg", "CD14+ Monocyte"]),
}


class Published(NamedTuple):
    """What the files hold, and what `load` must make of it."""

    matrix: pd.DataFrame  # all cells x genes, the genes called as `load` should call them
    obs: pd.DataFrame  # of all cells, in the same order, as text
    kept: np.ndarray  # of all cells, those that the entry promises
    var: dict[str, list[str]] | None = None  # columns beside the names of the genes
    gene_ids: list[str] | None = None  # var["gene_ids"]; None: there is none


def allen_human(folder, variant):
    """Comma, cells in rows; 41 columns of metadata; outliers without labels."""
    cells = [f"F2S4_160113_{number:03}_{'ABCD'[number % 4]}01" for number in range(N_CELLS)]
    outlier = np.arange(N_CELLS) % 12 == 0
    obs = pd.DataFrame({"sample_name": cells, "exp_component_name": [f"LS-15005h_S{n:02}" for n in range(N_CELLS)]})
    obs["specimen_type"] = "nucleus"
    for group in HUMAN_GROUPS.split():
        order = "cell_type_order" if group == "cell_type_alias" else f"{group}_order"
        obs[f"{group}_color"], obs[order], obs[f"{group}_label"] = "#E170FE", "32.0", f'{group}, "one"'
    obs["class_label"] = cycle("GABAergic", "Glutamatergic", "Non-neuronal")
    obs["subclass_label"] = cycle("VIP", "L5/6 IT Car3", "OPC")
    obs["cluster_label"] = cycle("Inh L2-5 VIP TOX2", "Exc L5-6 THEMIS, C1QL3", "OPC L1-6 MYT1")
    obs["region_label"] = cycle("MTG", "V1C", "CgG", "A1C")
    obs["external_donor_name_label"] = cycle("H200.1030", "H200.1023", "H200.1025")
    for group in ("cluster", "class", "subclass"):
        obs.loc[outlier, [f"{group}_color", f"{group}_order", f"{group}_label"]] = ""
    obs["cell_type_alt_alias_label"] = ""
    obs["outlier_call"] = np.where(outlier, "True", "False")
    obs["outlier_type"] = np.where(outlier, "Outlier L1-3 SST OR2AD1P", "")
    matrix = pd.DataFrame(counts("allen-human", HUMAN), cells, HUMAN)
    write_matrix(matrix, folder / "matrix.csv", corner="sample_name", quoted=variant == "quoted")
    write_table(obs, folder / "metadata.csv", quoted=variant == "quoted")
    return Published(matrix, obs, ~outlier)


def allen_mouse(folder, variant):
    """Comma, cells in rows; metadata in another order than the matrix and without some of its cells."""
    cells = [f"US-12502{number}_E1_S37" for number in range(50, 50 + N_CELLS)]
    known = np.arange(N_CELLS) % 16 != 3
    obs = pd.DataFrame({column: cycle("1", "2") for column in MOUSE_COLUMNS.split()})
    obs["sample_name"] = cells
    obs["class_label"] = cycle("Glutamatergic", "GABAergic")
    obs["subclass_label"] = cycle("L5 PT CTX", "DG", "CA1-ProS", "Car3")
    obs["cluster_label"] = cycle("259_L5 PT CTX", "364_DG", "5_CA1-ProS")
    obs["neighborhood_label"] = cycle("L5 PT/NP/CT", "DG/SUB/CA")
    obs["region_label"] = cycle("VISp", "HIP", "RSPv")
    obs["external_donor_name_label"] = cycle("371230", "Snap25-1", "402")
    obs["full_genotype_label"] = "Snap25-IRES2-Cre/wt;Ai14(RCL-tdT)/wt"
    matrix = pd.DataFrame(counts("allen-mouse", MOUSE), cells, MOUSE)
    write_matrix(matrix, folder / "matrix.csv", corner="sample_name", quoted=variant == "quoted")
    write_table(shuffled(obs[known]), folder / "metadata.csv", quoted=variant == "quoted")
    return Published(matrix, obs, known)


def allen_mtg(folder, variant):
    """A zip of two matrices with genes in rows, called by their Entrez ids, and tables of genes and nuclei."""
    cells = [f"F1S4_160106_{number:03}_B01" for number in range(N_CELLS)]
    entrez = [1, 2, 9, *range(100_000, 100_000 + len(HUMAN) - 3)]
    ids = [str(number) for number in entrez]
    obs = pd.DataFrame({column: cycle("12.5", "3") for column in MTG_COLUMNS.split()})
    obs["sample_name"], obs["sample_id"] = cells, [str(5_284_156 + number) for number in range(N_CELLS)]
    obs["donor"], obs["brain_region"] = cycle("H200.1030", "H16.03.004"), "MTG"
    obs["brain_subregion"] = cycle("L1", "L2", "L6")
    obs["class"] = cycle("GABAergic", "Glutamatergic", "Non-neuronal", "no class")
    obs["cluster"] = cycle("Inh L1-2 PAX6 CDH12", "Exc L2 LAMP5 LTK", "Micro L1-3 TYROBP", "no class")
    genes = pd.DataFrame({"gene": HUMAN, "chromosome": ["X", *["2"] * (len(HUMAN) - 1)], "entrez_id": ids})
    genes["gene_name"], genes["mouse_homologenes"] = "alpha-1-B, glycoprotein", ["A1bg", *[""] * (len(HUMAN) - 1)]
    exon, intron = (pd.DataFrame(counts(part, HUMAN), cells, HUMAN) for part in ("exon", "intron"))
    with zipfile.ZipFile(folder / "human_MTG_gene_expression_matrices_2018-06-14.zip", "w") as file:
        root = zipfile.Path(file)
        for part, matrix in (("exon", exon), ("intron", intron)):
            rows = matrix.T.set_axis(entrez if variant == "bare" else ids)
            write_matrix(rows, root / f"human_MTG_2018-06-14_{part}-matrix.csv", quoted=True)
        write_table(genes, root / "human_MTG_2018-06-14_genes-rows.csv", quoted=variant == "quoted")
        write_table(obs, root / "human_MTG_2018-06-14_samples-columns.csv", quoted=variant == "quoted")
        file.writestr("human_MTG_2018-06-14_readme.txt", "Gene expression matrices")
    var = {"entrez_id": ids, "gene": HUMAN, "chromosome": genes["chromosome"].tolist()}
    return Published(exon + intron, obs, (obs["class"] != "no class").to_numpy(), var, ids)


def ucsc(build):
    """Tab, packed, genes in rows, as symbols or `id|symbol`; the first column of the metadata names the cells."""

    def publish(folder, variant):
        obs, kept, decimals = build()
        symbols = HUMAN if variant == "symbols" else TWICE
        rows = {"symbols": symbols, "symbol|symbol": [f"{gene}|{gene}" for gene in symbols]}
        rows["id|symbol"] = [f"{gene_id}|{gene}" for gene_id, gene in zip(ENSEMBL, symbols, strict=True)]
        matrix = pd.DataFrame(counts(folder.name, symbols, decimals), obs.iloc[:, 0].tolist(), symbols)
        write_matrix(matrix.T.set_axis(rows[variant]), folder / "exprMatrix.tsv.gz", delimiter="\t", corner="gene")
        write_table(shuffled(obs), folder / "meta.tsv", delimiter="\t")
        return Published(matrix, obs, kept, gene_ids=ENSEMBL if variant == "id|symbol" else None)

    return publish


def allen_human_ucsc():
    """Nuclei called by their libraries; outliers bear the label Exclude."""
    obs = pd.DataFrame({"sample_name": [f"LS-15005h_S{number:02}_E1-50" for number in range(N_CELLS)]})
    obs["cluster_label"] = cycle("Inh L2-5 VIP TOX2", "Outlier L1-3 SST OR2AD1P", "Exc L2 LAMP5 LTK")
    obs["class_label"] = cycle("GABAergic", "Exclude", "Glutamatergic")
    obs["subclass_label"], obs["donor_sex_label"] = cycle("VIP", "Exclude", "IT"), cycle("M", "F")
    obs["region_label"], obs["cortical_layer_label"] = cycle("MTG", "V1C"), cycle("L1", "L2", "L3", "WM")
    obs["cell_type_accession_label"] = cycle("CS1910121051", "", "CS1910121052")
    return obs, (obs["subclass_label"] != "Exclude").to_numpy(), None


def dental():
    """Six columns of metadata, the first without a known title."""
    obs = pd.DataFrame({"cellId": [f"AAACCTGAGAAGG{number:03}-1_1" for number in range(N_CELLS)]})
    obs["orig.ident"], obs["percent.mt"] = "molar", "0.5"
    obs["nCount_RNA"], obs["nFeature_RNA"] = cycle("3000", "4000"), cycle("1200", "900")
    obs["cell_type"] = cycle("Pulp", "Periodontal", "Immune", "Schwann")
    return obs, np.ones(N_CELLS, bool), None


def ucsf_cortex():
    """Log-normalised; two subtypes of low quality; names of types that end in a blank."""
    names = cycle("AAACCTGAGCTGCCCA_506", "CS22_CTTAACTCAGTAGAGC_60")
    obs = pd.DataFrame({"Cell": [f"{name}{number}" for number, name in enumerate(names)]})
    obs["Area"], obs["Individual"], obs["Age"] = cycle("motor", "Occipital cortex"), cycle("GW14", "CS22"), "14"
    obs["Class"], obs["State"] = cycle("Non-neuronal", "Neuronal"), cycle("Dividing", "Postmitotic")
    obs["Type"] = cycle("Radial Glia", "Excitatory Neuron ", "Outlier")
    obs["Subtype"] = cycle("oRG", "Low Quality", "IPC/newborn", "Outlier", "Microglia low quality", "Microglia")
    obs["Cluster"] = cycle("26", "18", "7")
    return obs, ~obs["Subtype"].isin(["Low Quality", "Microglia low quality"]).to_numpy(), 6


def ucsf_organoids():
    """Log-normalised; the cells are named in V1; none is left out."""
    obs = pd.DataFrame({"V1": [f"H1SWeek3_AAACCTGAGACAA{number:03}" for number in range(N_CELLS)]})
    obs["Cluster"], obs["Sample"], obs["Line"] = cycle("29", "3"), cycle("H1SWeek3", "YH10SWeek10"), "H1"
    obs["Protocol"], obs["Age"], obs["iPSCorhESC"] = "Less Directed", cycle("3", "10"), cycle("hESC", "iPSC")
    obs["Class"], obs["State"] = cycle("Nonneuronal", "Neuron"), cycle("Dividing", "Postmitotic")
    obs["Type"] = cycle("RadialGlia", "Outlier")
    obs["Subtype"] = cycle("panRG", "lowquality", "UpperLayer", "Unknown", "Outlier")
    return obs, np.ones(N_CELLS, bool), 6


def cellxgene(file, prefix):
    """Counts in raw.X beside a normalised X, or in X; Ensembl ids, and the symbols in `feature_name`."""

    def publish(folder, variant):
        ids = [gene.replace("ENSG", prefix) for gene in ENSEMBL]
        obs = pd.DataFrame(index=[f"F2S4_160113_{number:03}_A01" for number in range(N_CELLS)])
        obs["cell_type"] = cycle("oligodendrocyte", "VIP GABAergic cortical interneuron", "L6b glutamatergic neuron")
        obs["cell_type_ontology_term_id"] = cycle("CL:0000128", "CL:4023016", "CL:4023038")
        obs["donor_id"], obs["tissue"] = cycle("H200.1030", "H200.1023"), cycle("primary motor cortex", "hippocampus")
        obs["tissue_ontology_term_id"], obs["assay"] = "UBERON:0000956", "Smart-seq v4"
        for column in ("disease", "sex", "development_stage", "self_reported_ethnicity", "suspension_type"):
            obs[column] = "unknown"
        var = {"feature_name": TWICE, "feature_biotype": ["gene"] * len(ids), "feature_length": ["1000"] * len(ids)}
        matrix = pd.DataFrame(counts(file, ids), obs.index, ids)
        published = Published(matrix, obs, np.ones(N_CELLS, bool), var)
        raw = sp.csr_matrix(matrix.to_numpy(np.float32))
        cells = annotated(published, raw.log1p() if variant == "raw" else raw)
        cells.obs["is_primary_data"] = False
        cells.uns |= {"title": "SMART-seq", "schema_version": "7.1.0"}
        cells.obsm["X_umap"] = np.ones((N_CELLS, 2))
        if variant == "raw":
            cells.raw = AnnData(raw, obs[[]], cells.var.copy())
        cells.var["feature_is_filtered"] = False
        cells.write_h5ad(folder / f"{file}.h5ad")
        return published

    return publish


def retina(folder, variant):
    """Log-normalised; symbols, one of them twice, beside Ensembl ids."""
    obs = pd.DataFrame(index=[f"AAACCTGAGAAGG{number:03}-0" for number in range(N_CELLS)])
    obs["CellType"] = cycle("Muller cell", "unannotated", "unspecified", "retinal rod cell type A")
    obs["BroadCellType"] = cycle("Muller cell", "unannotated", "unspecified", "retinal rod cell")
    matrix = pd.DataFrame(counts("retina", TWICE, decimals=5), obs.index, TWICE)
    published = Published(matrix, obs, (obs["CellType"] != "unannotated").to_numpy(), gene_ids=ENSEMBL)
    cells = annotated(published, sp.csr_matrix(matrix.to_numpy(np.float32)))
    cells.var["gene_ids"], cells.obs["n_counts"] = ENSEMBL, 1000.0
    if variant == "by gene":
        cells.X = cells.X.tocsc()
    cells.write_h5ad(folder / "lukowski19.processed.h5ad")
    return published


def mouse_retina(folder, variant):
    """Genes called by whole numbers; the batches, too."""
    obs = pd.DataFrame(index=[f"r1_AAACCTGAGAAGG{number:03}" for number in range(N_CELLS)])
    obs["labels"], obs["batch"] = cycle("RBC", "MG", "BC8_9"), cycle("0", "1")
    genes = [str(number) for number in range(100, 135)]
    published = Published(pd.DataFrame(counts("shekhar", genes), obs.index, genes), obs, np.ones(N_CELLS, bool))
    X = published.matrix.to_numpy(np.float32)
    cells = annotated(published, X if variant == "dense" else sp.csr_matrix(X))
    cells.obs["batch"] = obs["batch"].astype(int).astype("category")
    cells.write_h5ad(folder / "retina.h5ad")
    return published


def abdelaal(wanted):
    """One zip for all, written by R: cells in rows; labels without names, in the order of the cells."""

    def publish(folder, variant):
        found = None
        with zipfile.ZipFile(folder / "scRNAseq_Benchmark_datasets.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, (path, cell, labels) in ABDELAAL.items():
                matrix_path = zipfile.Path(file) / "Intra-dataset" / path
                published = _abdelaal(name, cell, labels)
                rows = published.matrix.set_axis(published.gene_ids or published.matrix.columns, axis=1)
                write_matrix(rows, matrix_path, quoted=True)
                table = published.obs.rename(columns={"cell_type": "x"})
                write_table(table, matrix_path.parent / "Labels.csv", quoted=variant == "R")
                found = published if name == wanted else found
            file.writestr("Inter-dataset/CellBench/10x_5cl/10x_5cl_data.csv", '"","ENSG00000000003"\n"cell",1\n')
        return found

    return publish


def _abdelaal(name, cell, labels):
    cells = [f"{cell}_{number:04}" for number in range(N_CELLS)]
    obs, genes, ids = pd.DataFrame({"cell_type": cycle(*labels)}), HUMAN, None
    if name == "abdelaal-amb":
        genes = MOUSE
        obs = pd.DataFrame({"Class": cycle("GABAergic", "GABAergic", "Glutamatergic"), "Subclass": cycle(*labels)})
        obs["cluster"] = cycle("Sst Chodl", "Pvalb Reln Tac1", "L2/3 IT VISp Rrad", "Sst Tac1 Htr1d")
    if name == "muraro":
        genes, ids = TWICE, [f"{gene}__chr{'X' if k == 34 else k % 22 + 1}" for k, gene in enumerate(TWICE)]
    matrix = pd.DataFrame(counts(name, genes, 4 if name in ("muraro", "xin") else None), cells, genes)
    return Published(matrix, obs, np.ones(N_CELLS, bool), gene_ids=ids)


def counts(name, genes, decimals=None):
    """Cells x genes: counts up to a hundred thousand, other ones for each name; or rounded logarithms of them."""
    rng, shape = np.random.default_rng(zlib.crc32(name.encode())), (N_CELLS, len(genes))
    matrix = rng.poisson(0.6, shape) * rng.integers(1, 900, shape).astype(float)
    matrix[1, 0], matrix[:, 2] = 100_000, 0
    return matrix if decimals is None else np.round(np.log2(1 + matrix), decimals)


def cycle(*options):
    """One option per cell, in turn."""
    return [options[number % len(options)] for number in range(N_CELLS)]


def shuffled(table):
    """The rows in another order."""
    return table.sample(frac=1, random_state=0)


def write_matrix(table, path, *, delimiter=",", corner="", quoted=False):
    """Delimited text; where names are quoted, numbers are as R writes them: 1e+05 is shorter than 100000."""
    quote = '"{}"'.format if quoted else str
    rows = [[quote(corner), *map(quote, table.columns)]]
    for name, values in zip(table.index, table.to_numpy(), strict=True):
        numbers = ["1e+05" if quoted and value == 1e5 else f"{value:.10g}" for value in values]
        rows.append([str(name) if isinstance(name, int) else quote(name), *numbers])
    text = "".join(delimiter.join(row) + "\n" for row in rows).encode()
    with path.open("wb") as file:
        file.write(gzip.compress(text) if path.suffix == ".gz" else text)


def write_table(table, path, *, delimiter=",", quoted=False):
    """A table of cells or genes; fields are quoted all, or where they must be."""
    with path.open("w") as file:
        table.to_csv(file, sep=delimiter, index=False, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)


def annotated(published, X):
    """The cells as an AnnData whose text is categorical."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        var = pd.DataFrame(published.var, index=published.matrix.columns)
        return AnnData(X, obs=published.obs.astype("category"), var=var)


UCSC = ("symbols", "symbol|symbol", "id|symbol")
LAYOUTS = {  # what writes the files into the cache folder of the dataset, and in which variants
    "allen-human": (allen_human, ("bare", "quoted")),
    "allen-human-ucsc": (ucsc(allen_human_ucsc), UCSC),
    "allen-human-cellxgene": (cellxgene("dfba29ea-d368-44c2-bb35-69d3e8f730ce", "ENSG"), ("raw", "X")),
    "allen-mouse": (allen_mouse, ("bare", "quoted")),
    "allen-mouse-cellxgene": (cellxgene("6ce804da-13a1-4270-a726-cbeea399f7f1", "ENSMUSG"), ("raw", "X")),
    "allen-mtg": (allen_mtg, ("bare", "quoted")),
    "retina": (retina, ("by cell", "by gene")),
    "dental": (ucsc(dental), UCSC),
    "ucsf-cortex": (ucsc(ucsf_cortex), UCSC),
    "ucsf-organoids": (ucsc(ucsf_organoids), UCSC),
    "mouse-retina": (mouse_retina, ("sparse", "dense")),
    "abdelaal-amb": (abdelaal("abdelaal-amb"), ("R", "bare")),
    **{name: (abdelaal(name), ("R",)) for name in ("baron-human", "muraro", "segerstolpe", "xin", "zheng68k")},
}
