"""TabNet at transcriptome width (Arik and Pfister 2021; thesis section 0.2.5, Fig. 0.3).

The layers, their names and their numbers are those of pytorch-tabnet, so its weights load here and it serves as
the oracle of the tests. What differs is the path between them: pytorch-tabnet multiplies every mask by a dense
genes x genes matrix, this encoder never makes one, and its sparsemax does not sort.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer, FeatTransformer, initialize_non_glu
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sims_kit.errors import SettingError
from sims_kit.model.first_layer import first_layer, masked_first_layer, moments, unpacked
from sims_kit.model.masks import Mask, expressed, expressed_mask, narrow_mask, update_statistics
from sims_kit.model.scale import FixedScale
from sims_kit.model.sparsemax import Sparsemax
from sims_kit.model.trainer import average_statistics

NARROW = 1 / 16  # share of the genes: masks up to this width are computed on pairs of cell and gene, wider ones on all
HALF = torch.tensor(0.5, dtype=torch.float32).sqrt().item()  # rounded as in pytorch-tabnet


class TabNetOutput(NamedTuple):
    """What one pass through the network gives for a batch of B cells."""

    logits: Tensor
    """(B, classes), before softmax."""
    mask_entropy: Tensor
    """Scalar: entropy of the masks in nats, mean over cells and steps. Lower is sparser."""


class Step(NamedTuple):
    """One decision step for a batch of B cells."""

    mask: Mask
    """Which genes it looks at; `mask.to_dense()` is (B, genes), non-negative, rows sum to one."""
    decision: Tensor
    """(B, n_d), the step's contribution to the decision, after its ReLU."""
    evidence: Tensor
    """(B, classes), what the masked genes add to the logits directly; (B, 0) where the network is not additive."""

    def strength(self) -> Tensor:
        """(B,), how much the step contributes to the decision: evidence is of either sign, and its size counts."""
        return self.decision.sum(1) + self.evidence.abs().sum(1)


class TabNet(nn.Module):
    """A network that looks at a cell in a few steps, each through a sparse mask over genes.

    Parameters
    ----------
    n_genes, n_classes
        Width of the input and of the output.
    n_d, n_a
        Width of the decision and of the attention part of each step.
    n_steps
        Number of decision steps.
    gamma
        How freely a gene may be used again: 1 allows each gene in one step only, larger values relax this.
    n_independent, n_shared
        Number of gated layers in each step that are its own, and that all steps share.
    virtual_batch_size
        Cells in a ghost batch of the batch normalisation.
    momentum
        Of the running statistics of the batch normalisation within steps.
    input_momentum
        The same, of the batch normalisation of the input.
    mask_start
        Initial weight of the attention's batch normalisation. At 1, TabNet's own start, sparsemax over thousands of
        genes starts almost one-hot on random genes; at 0.01 masks start broad and narrow while they learn.
    rescale_masked
        Multiply the masked input by the mask's effective number of genes, 1 / sum(mask^2), so that the scale of
        what follows does not depend on how broad the mask is.
    gene_dropout
        Share of the genes hidden from each cell in training, drawn anew for every batch. Without it a few genes
        are enough to remember each training cell; with it, a class must be known by many.
    mask_temperature
        None: masks as in pytorch-tabnet, over all genes. A number: masks over the genes that a cell expresses, their
        logits divided by it before sparsemax. Around 30 lets some 200 genes pass; lower values, fewer.
    fixed_scale
        Subtract each gene's mean and divide all genes by one number, measured once over the training cells
        (`measure_input`), in place of a batch normalisation, which is noisy in small batches and blows up rare genes.
    additive
        Add to the logits a linear function of the masked genes: each gene's share in each class can be read off.
    epsilon
        Added to the masks inside the logarithm of the entropy.

    Raises
    ------
    SettingError
        If a size is not a positive integer, or gamma is below 1.
    """

    def __init__(
        self,
        n_genes: int,
        n_classes: int,
        *,
        n_d: int = 8,
        n_a: int = 8,
        n_steps: int = 3,
        gamma: float = 1.3,
        n_independent: int = 2,
        n_shared: int = 2,
        virtual_batch_size: int = 128,
        momentum: float = 0.02,
        input_momentum: float = 0.01,
        mask_start: float = 1.0,
        rescale_masked: bool = False,
        gene_dropout: float = 0.0,
        mask_temperature: float | None = None,
        fixed_scale: bool = False,
        additive: bool = False,
        epsilon: float = 1e-15,
    ):
        super().__init__()
        sizes = dict(n_genes=n_genes, n_classes=n_classes, n_d=n_d, n_a=n_a, n_steps=n_steps)
        for name, size in sizes.items():
            if size < 1:
                raise SettingError(f"{name} is {size}; TabNet needs at least 1.")
        if gamma < 1:
            raise SettingError(f"gamma is {gamma}; it must be at least 1, or later masks would turn negative.")
        if not 0 <= gene_dropout < 1:
            raise SettingError(f"gene_dropout is {gene_dropout}; it is a share of the genes, at least 0 and below 1.")
        if mask_temperature is not None and not mask_temperature > 0:
            raise SettingError(f"mask_temperature is {mask_temperature}; give a number above 0, or None.")
        if n_shared < 1:
            raise SettingError(f"n_shared is {n_shared}; the steps share at least their first layer.")
        self.n_genes, self.n_classes = n_genes, n_classes
        self.narrow = NARROW
        self.rescale_masked, self.gene_dropout = rescale_masked, gene_dropout
        self.virtual_batch_size = virtual_batch_size
        self.encoder = _Encoder(
            n_genes, n_d, n_a, n_steps, gamma, n_independent, n_shared, virtual_batch_size, momentum, epsilon
        )
        self.encoder.initial_bn.momentum = input_momentum
        if fixed_scale:
            self.encoder.initial_bn = FixedScale(n_genes)
        self.mask_temperature = mask_temperature
        for attention in self.encoder.att_transformers:
            nn.init.constant_(attention.bn.bn.weight, mask_start)
        self.final_mapping = nn.Linear(n_d, n_classes, bias=False)
        initialize_non_glu(self.final_mapping, n_d, n_classes)
        self.additive_weight = nn.Parameter(torch.zeros(n_genes, n_classes)) if additive else None
        self.additive_bias = nn.Parameter(torch.zeros(n_classes)) if additive else None

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logits of a batch, shape (B, n_classes), and the entropy of its masks.

        Parameters
        ----------
        cells
            Shape (B, n_genes), log-normalised expression, dense or sparse (CSR).

        Raises
        ------
        SettingError
            If there is no cell, or, in training, a ghost batch of a single one, which has no variance.
        FloatingPointError
            If NaN or infinite values in cells or weights reach the attention.
        """
        entropy, steps = 0, self.steps(cells)
        for mask, *_ in steps:
            entropy = entropy - (mask.weights * torch.log(mask.weights + self.encoder.epsilon)).sum() / len(cells)
        return TabNetOutput(self.logits_of(steps), entropy / len(self.encoder.att_transformers))

    def outputs(self, cells: Tensor) -> list[TabNetOutput]:
        """Those of all networks that learn by themselves: of this one."""
        return [self(cells)]

    def steps(self, cells: Tensor) -> list[Step]:
        """The decision steps of a batch. Arguments and errors as in `forward`."""
        if not len(cells):
            raise SettingError("A batch of no cells was passed to the network; it needs at least one.")
        if self.training:
            self._check_ghost_batches(len(cells))
            cells = _hide(cells, self.gene_dropout)
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few to tell logits apart
            return self._steps(cells)

    def _steps(self, cells: Tensor) -> list[Step]:
        encoder, dense = self.encoder, unpacked(cells)
        scale, shift = normalisation(encoder.initial_bn, cells, dense)  # of each gene, folded into the first layer
        weight = encoder.initial_splitter.shared.glu_layers[0].fc.weight
        out, table = first_layer(cells, dense, scale, shift, weight)
        out = after_first_layer(encoder.initial_splitter, out)
        seen = expressed(cells) if self.mask_temperature is not None else None
        steps, past = [], []
        for number, transform in enumerate(encoder.feat_transformers):
            mask = self._mask(number, out[:, encoder.n_d :], past, seen)
            past.append(mask)
            out = masked_first_layer(mask, dense, scale, shift, table, self.additive_weight, sparse=cells.is_sparse_csr)
            if self.rescale_masked:
                out = out / mask.sum_of(mask.weights.square()).clamp(min=torch.finfo(out.dtype).tiny)  # 0: no gene
            out, evidence = out.split([table.shape[1], out.shape[1] - table.shape[1]], dim=1)
            out = after_first_layer(transform, out)
            steps.append(Step(mask, torch.relu(out[:, : encoder.n_d]), evidence))
        return steps

    def logits_of(self, steps: Sequence[Step]) -> Tensor:
        """The logits, (B, classes), that the steps of a batch add up to."""
        logits = self.final_mapping(sum(step.decision for step in steps))
        if self.additive_bias is not None:
            logits = logits + sum(step.evidence for step in steps) + self.additive_bias
        return logits

    def _mask(self, number: int, attention: Tensor, past: Sequence[Mask], seen: tuple[Tensor, Tensor] | None) -> Mask:
        """The mask of a step: on pairs of cell and gene if it is narrow, else on all genes."""
        attend, gamma = self.encoder.att_transformers[number], self.encoder.gamma
        if seen is not None:
            return expressed_mask(attention, attend, past, gamma, seen, self.mask_temperature)
        mask = narrow_mask(attention, attend, past, gamma, self.narrow * self.n_genes)
        if mask is None:
            prior = math.prod((gamma - other.to_dense() for other in past), start=attention.new_ones(()))
            mask = Mask(attend(prior, attention), None, None, (len(attention), self.n_genes))
        return mask

    @torch.no_grad()
    def explain(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregated masks of a batch, sparse CSR (B, n_genes), non-negative, and its logits, shape (B, n_classes).

        Each step's mask is weighted by the sum of its decision, as in the TabNet paper's section on
        interpretability. The rows are not normalised.
        """
        weighted, steps = [], self.steps(cells)
        for step in steps:
            mask, strength = step.mask, step.strength()
            strength = strength[:, None] if mask.cells is None else strength[mask.cells]
            weighted.append(mask._replace(weights=mask.weights * strength).to_sparse())
        return sum(weighted[1:], start=weighted[0]).coalesce().to_sparse_csr(), self.logits_of(steps)

    def measure_input(self, batches: Iterable) -> None:
        """With `fixed_scale`, measure the genes on training cells; to be called once, before training."""
        if isinstance(self.encoder.initial_bn, FixedScale):
            self.encoder.initial_bn.measure(batches)

    def refresh_statistics(self, batches: Iterable) -> None:
        """Measure the statistics of every batch normalisation anew, on whole cells.

        Training with `gene_dropout` measures them on cells with hidden genes, whereas predictions see whole cells.
        One pass, without gradients; weights stay as they are.

        Parameters
        ----------
        batches
            Of training cells: tensors as for `forward`, or tuples that start with one.
        """
        with self.whole_cells():
            update_bn(batches, self, device=self.final_mapping.weight.device)
        average_statistics(self)

    @contextmanager
    def whole_cells(self) -> Iterator[None]:
        """Without gene dropout for a while."""
        gene_dropout, self.gene_dropout = self.gene_dropout, 0.0
        try:
            yield
        finally:
            self.gene_dropout = gene_dropout

    def _check_ghost_batches(self, n_cells: int) -> None:
        chunk = math.ceil(n_cells / max(1, math.ceil(n_cells / self.virtual_batch_size)))
        if n_cells < 2 or n_cells % chunk == 1:
            raise SettingError(
                f"A training batch of {n_cells} cells leaves a ghost batch of one cell (virtual_batch_size="
                f"{self.virtual_batch_size}), which has no variance to normalise by. Choose another batch_size "
                "or virtual_batch_size."
            )


def _hide(cells: Tensor, share: float) -> Tensor:
    """Set a random share of each cell's values to zero; what is left is not scaled up: zeros are what cells have."""
    if not share:
        return cells
    if cells.layout == torch.strided:
        return cells * (torch.rand_like(cells) >= share)
    values = cells.values()
    values = values * (torch.rand_like(values) >= share)
    return torch.sparse_csr_tensor(cells.crow_indices(), cells.col_indices(), values, cells.shape)


def normalisation(norm: nn.BatchNorm1d, cells: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """What batch normalisation multiplies each gene by, and adds; in training its running statistics are updated."""
    if isinstance(norm, FixedScale):
        return norm.scale, norm.shift
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = moments(cells, dense)
        update_statistics(norm, mean[None], variance[None], [len(cells)])
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def after_first_layer(transform: FeatTransformer, out: Tensor) -> Tensor:
    """A feature transformer whose first linear layer has been applied already."""
    block = transform.shared
    first, *others = block.glu_layers
    value, gate = first.bn(out).chunk(2, dim=1)
    out = value * torch.sigmoid(gate)
    for layer in others:
        out = (out + layer(out)) * HALF
    return transform.specifics(out)


class _Encoder(nn.Module):
    """pytorch-tabnet's encoder: the same layers under the same names, without its genes x genes matrix."""

    def __init__(
        self, n_genes, n_d, n_a, n_steps, gamma, n_independent, n_shared, virtual_batch_size, momentum, epsilon
    ):
        super().__init__()
        self.n_d, self.gamma, self.epsilon = n_d, gamma, epsilon
        width = n_d + n_a
        shared = nn.ModuleList(
            nn.Linear(n_genes if layer == 0 else width, 2 * width, bias=False) for layer in range(n_shared)
        )
        ghost = dict(virtual_batch_size=virtual_batch_size, momentum=momentum)

        def feature_transformer():
            return FeatTransformer(n_genes, width, shared, n_glu_independent=n_independent, **ghost)

        self.initial_bn = nn.BatchNorm1d(n_genes, momentum=0.01)
        self.initial_splitter = feature_transformer()
        self.feat_transformers = nn.ModuleList(feature_transformer() for _ in range(n_steps))
        self.att_transformers = nn.ModuleList(
            AttentiveTransformer(n_a, n_genes, group_matrix=None, **ghost) for _ in range(n_steps)
        )
        for attention in self.att_transformers:
            attention.selector = Sparsemax()
