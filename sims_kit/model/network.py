"""TabNet at transcriptome width (Arik and Pfister 2021; thesis section 0.2.5, Fig. 0.3), and ensembles of it.

The layers, their names and their numbers are those of pytorch-tabnet: its weights load here, and it is the oracle of
the tests. The path between the layers differs: pytorch-tabnet multiplies every mask by a dense genes x genes matrix,
this network never makes one (`sims_kit.model.sparse`).

Shapes in comments: B cells, G genes, C classes, P pairs of cell and gene, W = 2 (n_d + n_a) outputs of a linear layer.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer, FeatTransformer, initialize_non_glu
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sims_kit.errors import SettingError
from sims_kit.model.sparse import (
    Mask,
    expressed,
    expressed_mask,
    first_layer,
    masked_first_layer,
    moments,
    narrow_mask,
    sparsemax,
    update_statistics,
)
from sims_kit.model.trainer import average_statistics, sum_across_devices

NARROW = 1 / 16  # share of the genes: masks up to this width are computed on pairs of cell and gene, wider ones on all
HALF = torch.tensor(0.5, dtype=torch.float32).sqrt().item()  # rounded as in pytorch-tabnet


class TabNetOutput(NamedTuple):
    """The result of one pass through the network for a batch of B cells."""

    logits: Tensor
    """(B, C), before softmax."""
    mask_entropy: Tensor
    """Scalar: entropy of the masks in nats, mean over cells and steps. Lower is sparser."""


class Step(NamedTuple):
    """One decision step for a batch of B cells."""

    mask: Mask
    """Which genes it looks at; `mask.to_dense()` is (B, G), non-negative, rows sum to one."""
    decision: Tensor
    """(B, n_d), the step's contribution to the decision, after its ReLU."""
    evidence: Tensor
    """(B, C), what the masked genes add to the logits directly; (B, 0) where the network is not additive."""

    def strength(self) -> Tensor:
        """(B,), how much the step contributes to the decision; evidence counts by its size."""
        return self.decision.sum(1) + self.evidence.abs().sum(1)


class _Network(nn.Module):
    """What a single network and an ensemble have in common."""

    def measure_input(self, batches: Iterable) -> None:
        """With `fixed_scale`, measure the genes on training cells, for all members; once, before training."""
        first, *others = (member.encoder.initial_bn for member in members(self))
        if isinstance(first, FixedScale):
            first.measure(batches)
            for other in others:
                other.load_state_dict(first.state_dict())

    def refresh_statistics(self, batches: Iterable) -> None:
        """Measure the statistics of every batch normalisation again, on cells without hidden genes.

        Training with `gene_dropout` measures them on cells with hidden genes, whereas predictions see whole cells.
        One pass, without gradients; batches are tensors as for `forward`, or tuples that start with one.
        """
        hidden = [member.gene_dropout for member in members(self)]
        for member in members(self):
            member.gene_dropout = 0.0
        try:
            update_bn(batches, self, device=next(self.parameters()).device)
        finally:
            for member, share in zip(members(self), hidden, strict=True):
                member.gene_dropout = share
        average_statistics(self)


class TabNet(_Network):
    """A network that looks at a cell in a few steps, each through a sparse mask over genes.

    Parameters
    ----------
    n_genes, n_classes
        Width of the input and of the output.
    n_d, n_a, ...
        The network's settings: see `sims_kit.model.recipe.Recipe`, which also checks them.

    Examples
    --------
    >>> network = TabNet(n_genes=2000, n_classes=5, mask_temperature=30.0).eval()
    >>> network(torch.rand(8, 2000)).logits.shape
    torch.Size([8, 5])
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
        sizes = dict(n_genes=n_genes, n_classes=n_classes, n_d=n_d, n_a=n_a, n_steps=n_steps, n_shared=n_shared)
        for name, value in (sizes | dict(gamma=gamma)).items():
            if value < 1:
                raise SettingError(f"{name} is {value}; TabNet needs at least 1.")
        self.n_genes, self.n_classes = n_genes, n_classes
        self.narrow = NARROW
        self.rescale_masked, self.gene_dropout, self.mask_temperature = rescale_masked, gene_dropout, mask_temperature
        self.virtual_batch_size = virtual_batch_size
        ghost = dict(virtual_batch_size=virtual_batch_size, momentum=momentum)
        self.encoder = _Encoder(n_genes, n_d, n_a, n_steps, gamma, n_independent, n_shared, epsilon, ghost)
        self.encoder.initial_bn.momentum = input_momentum
        if fixed_scale:
            self.encoder.initial_bn = FixedScale(n_genes)
        for attention in self.encoder.att_transformers:
            nn.init.constant_(attention.bn.bn.weight, mask_start)
        self.final_mapping = nn.Linear(n_d, n_classes, bias=False)
        initialize_non_glu(self.final_mapping, n_d, n_classes)
        self.additive_weight = nn.Parameter(torch.zeros(n_genes, n_classes)) if additive else None
        self.additive_bias = nn.Parameter(torch.zeros(n_classes)) if additive else None

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logits and mask entropy of a batch of log-normalised cells, (B, G), dense or sparse (CSR).

        NaN or infinite values that reach the attention raise `FloatingPointError`.
        """
        with torch.autocast(cells.device.type, enabled=False):
            steps = self.steps(cells)
            entropies = [(mask.weights * torch.log(mask.weights + self.encoder.epsilon)).sum() for mask, *_ in steps]
            return TabNetOutput(self.logits_of(steps), -sum(entropies) / (len(cells) * len(steps)))

    def outputs(self, cells: Tensor) -> list[TabNetOutput]:
        """The output of each member that learns by itself: of this network alone."""
        return [self(cells)]

    def steps(self, cells: Tensor) -> list[Step]:
        """The decision steps of a batch."""
        if not len(cells):
            raise SettingError("A batch of no cells was passed to the network; it needs at least one.")
        if cells.dtype in (torch.float16, torch.bfloat16):
            cells = cells.float()
        if self.training:
            self._check_ghost_batches(len(cells))
            cells = _hide(cells, self.gene_dropout)
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few to tell logits apart
            return self._steps(cells)

    def _steps(self, cells: Tensor) -> list[Step]:
        encoder, n_d, dense = self.encoder, self.encoder.n_d, cells.to_dense()  # dense: (B, G)
        pairs = expressed(cells) if self.mask_temperature is not None else None  # (P,) twice: cells, genes
        scale, shift = normalisation(encoder.initial_bn, cells, dense)  # (G,), (G,)
        weight = encoder.initial_splitter.shared.glu_layers[0].fc.weight  # (W, G), shared by all steps
        out, table = first_layer(cells, dense, scale, shift, weight)  # (B, W), (G, W)
        attention = after_first_layer(encoder.initial_splitter, out)[:, n_d:]  # (B, n_a)
        steps, past = [], []
        for attend, transform in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
            if pairs is not None:
                mask = expressed_mask(attention, attend, past, encoder.gamma, pairs, self.mask_temperature)
            else:
                mask = narrow_mask(attention, attend, past, encoder.gamma, self.narrow * self.n_genes)
            if mask is None:  # too wide for pairs: on all genes
                prior = math.prod((encoder.gamma - other.to_dense() for other in past), start=attention.new_ones(()))
                weights = sparsemax(attend.bn(attend.fc(attention)) * prior)  # (B, G)
                mask = Mask(weights, None, None, weights.shape)
            past.append(mask)
            out = masked_first_layer(mask, dense, scale, shift, table, self.additive_weight, sparse=cells.is_sparse_csr)
            if self.rescale_masked:
                squares = mask.sum_of(mask.weights.square())  # (B, 1); 0 in a cell without genes
                out = out / squares.clamp(min=torch.finfo(out.dtype).tiny)
            out, evidence = out.tensor_split([table.shape[1]], dim=1)  # (B, W), (B, C) or (B, 0)
            out = after_first_layer(transform, out)  # (B, n_d + n_a)
            attention = out[:, n_d:]  # (B, n_a)
            steps.append(Step(mask, torch.relu(out[:, :n_d]), evidence))
        return steps

    def logits_of(self, steps: Sequence[Step]) -> Tensor:
        """The logits, (B, C), that the steps of a batch add up to."""
        logits = self.final_mapping(sum(step.decision for step in steps))
        if self.additive_bias is not None:
            logits = logits + sum(step.evidence for step in steps) + self.additive_bias
        return logits

    @torch.no_grad()
    def explain(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregated masks of a batch, sparse CSR (B, G), and its logits, (B, C).

        Each step's mask is weighted by its `strength`, as in the TabNet paper's section on interpretability. Values are
        non-negative; rows are not normalised.
        """
        weighted, steps = [], self.steps(cells)
        for step in steps:
            mask, strength = step.mask, step.strength()
            strength = strength[:, None] if mask.cells is None else strength[mask.cells]
            weighted.append(mask._replace(weights=mask.weights * strength).to_sparse())
        return sum(weighted[1:], start=weighted[0]).coalesce().to_sparse_csr(), self.logits_of(steps)

    def _check_ghost_batches(self, n_cells: int) -> None:
        chunk = math.ceil(n_cells / math.ceil(n_cells / self.virtual_batch_size))
        if n_cells < 2 or n_cells % chunk == 1:
            raise SettingError(
                f"A training batch of {n_cells} cells leaves a ghost batch of one cell (virtual_batch_size="
                f"{self.virtual_batch_size}), which has no variance to normalise by. Choose another batch_size "
                "or virtual_batch_size."
            )


class Ensemble(_Network):
    """`TabNet` networks with different initial weights and gene dropout, trained on the same batches.

    The probabilities of the ensemble are the mean of its members'.

    Examples
    --------
    >>> ensemble = Ensemble(2000, 5, n_models=4, n_steps=1).eval()
    >>> ensemble(torch.rand(8, 2000)).logits.softmax(1).shape
    torch.Size([8, 5])
    """

    def __init__(self, n_genes: int, n_classes: int, *, n_models: int, **settings):
        super().__init__()
        self.members = nn.ModuleList(TabNet(n_genes, n_classes, **settings) for _ in range(n_models))

    @property
    def encoder(self) -> nn.Module:
        """The first member's."""
        return self.members[0].encoder

    @property
    def gene_dropout(self) -> float:
        """The members'."""
        return self.members[0].gene_dropout

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logarithms of the members' mean probabilities, (B, C), and the mean entropy of their masks."""
        logits, entropies = zip(*self.outputs(cells), strict=True)
        return TabNetOutput(mean_logits(logits), sum(entropies) / len(entropies))

    def outputs(self, cells: Tensor) -> list[TabNetOutput]:
        """Each member's own output: it learns from its own errors alone."""
        return [member(cells) for member in self.members]

    def explain(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the members' aggregated masks, rows divided by their sums, CSR (B, G); and the logits, (B, C)."""
        masks, logits = zip(*(member.explain(cells) for member in self.members), strict=True)
        total = torch.sparse_coo_tensor(masks[0].shape, dtype=masks[0].dtype, device=masks[0].device)
        for mask in masks:
            sums = mask.sum(1, keepdim=True).to_dense().clamp(min=1e-30)  # (B, 1)
            total = total + mask.to_sparse_coo() * (1 / (len(masks) * sums))
        return total.coalesce().to_sparse_csr(), mean_logits(logits)


def make_network(n_genes: int, n_classes: int, **settings) -> TabNet | Ensemble:
    """An `Ensemble` where the settings give ``n_models``, else a `TabNet`."""
    return (Ensemble if "n_models" in settings else TabNet)(n_genes, n_classes, **settings)


def members(network: nn.Module) -> list[TabNet]:
    """The networks of an ensemble, or the single one."""
    return list(getattr(network, "members", [network]))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logarithms of the mean of the softmax probabilities, (B, C); a single network's logits as they are."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([part.log_softmax(1) for part in logits]).logsumexp(0) - math.log(len(logits))


def normalisation(norm: nn.BatchNorm1d, cells: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """The factor and the summand of each gene, (G,); in training running statistics are updated."""
    if isinstance(norm, FixedScale):
        return norm.scale, norm.shift
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = moments(cells, dense)
        update_statistics(norm, mean[None], variance[None], [len(cells)])
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def after_first_layer(transform: FeatTransformer, out: Tensor) -> Tensor:
    """The rest of a feature transformer, (B, n_d + n_a), on the output of its first linear layer, (B, W)."""
    first, *others = transform.shared.glu_layers
    value, gate = first.bn(out).chunk(2, dim=1)  # (B, n_d + n_a) each
    out = value * torch.sigmoid(gate)
    for layer in others:
        out = (out + layer(out)) * HALF
    return transform.specifics(out)


def _hide(cells: Tensor, share: float) -> Tensor:
    """Set a random share of each cell's values to zero, without the rescaling of dropout: zeros occur in real cells."""
    if not share:
        return cells
    if cells.layout == torch.strided:
        return cells * (torch.rand_like(cells) >= share)
    values = cells.values()
    values = values * (torch.rand_like(values) >= share)
    return torch.sparse_csr_tensor(cells.crow_indices(), cells.col_indices(), values, cells.shape)


class FixedScale(nn.Module):
    """Subtracts each gene's mean and divides all genes by one number, measured once on the training cells.

    The number is the root of the mean variance of the genes that vary. Dividing each gene by its own, as batch
    normalisation does, would give rare genes the size of markers.
    """

    def __init__(self, n_genes: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("shift", torch.zeros(n_genes))

    @torch.no_grad()
    def measure(self, batches: Iterable) -> None:
        """Take means and variances from batches: tensors (B, G), dense or CSR, or tuples that start with one.

        Cells without any variation leave scale and shift as they are. Processes that train together measure all cells.
        """
        n_cells, sums = torch.zeros((), dtype=torch.float64), torch.zeros(len(self.scale), dtype=torch.float64)
        squares = sums.clone()
        for batch in batches:
            cells = (batch[0] if isinstance(batch, tuple | list) else batch).cpu()
            cells = cells.to_sparse_csr() if cells.layout == torch.strided else cells
            values, genes = cells.values().double(), cells.col_indices()
            n_cells += len(cells)
            sums.index_add_(0, genes, values)
            squares.index_add_(0, genes, values.square())
        n_cells, sums, squares = (sum_across_devices(part, self.scale.device) for part in (n_cells, sums, squares))
        mean = sums / n_cells
        variance = (squares / n_cells - mean.square()).clamp_(min=0)
        if (variance > 0).any():
            scale = variance[variance > 0].mean().rsqrt()
            self.scale.fill_(scale)
            self.shift.copy_(-mean * scale)


class _Encoder(nn.Module):
    """pytorch-tabnet's encoder: the same layers under the same names, without its genes x genes matrix."""

    def __init__(self, n_genes, n_d, n_a, n_steps, gamma, n_independent, n_shared, epsilon, ghost):
        super().__init__()
        self.n_d, self.gamma, self.epsilon = n_d, gamma, epsilon
        width = n_d + n_a
        shared = nn.ModuleList(
            nn.Linear(n_genes if layer == 0 else width, 2 * width, bias=False) for layer in range(n_shared)
        )

        def feature_transformer():
            return FeatTransformer(n_genes, width, shared, n_glu_independent=n_independent, **ghost)

        self.initial_bn = nn.BatchNorm1d(n_genes)
        self.initial_splitter = feature_transformer()
        self.feat_transformers = nn.ModuleList(feature_transformer() for _ in range(n_steps))
        self.att_transformers = nn.ModuleList(
            AttentiveTransformer(n_a, n_genes, group_matrix=None, **ghost) for _ in range(n_steps)
        )
