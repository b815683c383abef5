"""TabNet at transcriptome width (Arik and Pfister 2021; thesis section 0.2.5, Fig. 0.3), and ensembles of it.

The layers, their names and their numbers are those of pytorch-tabnet: its weights load here, and it is the oracle of
the tests. The path between the layers differs: pytorch-tabnet multiplies every mask by a dense genes x genes matrix,
this network never makes one (`sims_kit.model.sparse`).

Shapes: B cells, G genes, C classes, P pairs of cell and gene, W = 2 (n_d + n_a) outputs of a linear layer.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer, FeatTransformer, initialize_non_glu
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sims_kit.errors import SettingError, refuse_unknown
from sims_kit.model.recipe import NETWORK_FIELDS, Recipe
from sims_kit.model.sparse import (
    Mask,
    expressed,
    first_layer,
    masked_first_layer,
    moments,
    step_mask,
    update_statistics,
)
from sims_kit.model.trainer import average_statistics, sum_across_devices

HALF = torch.tensor(0.5, dtype=torch.float32).sqrt().item()  # rounded as in pytorch-tabnet


class TabNetOutput(NamedTuple):
    """The result of one pass through a network."""

    logits: Tensor  # (B, C), before softmax
    mask_entropy: Tensor  # scalar, in nats, mean over cells and steps; lower is sparser


class Step(NamedTuple):
    """One decision step."""

    mask: Mask  # which genes it looks at; `mask.to_dense()` is (B, G), non-negative, rows sum to one
    decision: Tensor  # (B, n_d), the step's contribution to the decision, after its ReLU
    evidence: Tensor  # (B, C), what the masked genes add to the logits; (B, 0) where the network is not additive


class TabNet(nn.Module):
    """A network that looks at a cell in a few steps, each through a sparse mask over genes.

    `settings` are fields of `sims_kit.model.recipe.Recipe`, from ``n_d`` to ``epsilon``.

    >>> network = TabNet(n_genes=2000, n_classes=5, mask_temperature=30.0).eval()
    >>> network(torch.rand(8, 2000)).logits.shape
    torch.Size([8, 5])
    """

    narrow = 1 / 16  # share of the genes: masks up to this width are computed on pairs of cell and gene

    def __init__(self, n_genes: int, n_classes: int, **settings):
        super().__init__()
        known = NETWORK_FIELDS[1:]  # all but n_models
        refuse_unknown("The network", settings.keys() - set(known), known, kind="setting")
        self.recipe = recipe = Recipe(**settings)
        self.gene_dropout = recipe.gene_dropout
        self.encoder = _Encoder(n_genes, recipe)
        self.final_mapping = nn.Linear(recipe.n_d, n_classes, bias=False)
        initialize_non_glu(self.final_mapping, recipe.n_d, n_classes)
        self.additive_weight = nn.Parameter(torch.zeros(n_genes, n_classes)) if recipe.additive else None
        self.additive_bias = nn.Parameter(torch.zeros(n_classes)) if recipe.additive else None

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logits and mask entropy of a batch of log-normalised cells, (B, G), dense or sparse (CSR).

        NaN or infinite values that reach the attention raise `FloatingPointError`.
        """
        with torch.autocast(cells.device.type, enabled=False):
            steps, epsilon = self.steps(cells), self.recipe.epsilon
            entropies = [(mask.weights * torch.log(mask.weights + epsilon)).sum() for mask, *_ in steps]
            return TabNetOutput(self.logits_of(steps), -sum(entropies) / (len(cells) * len(steps)))

    def steps(self, cells: Tensor) -> list[Step]:
        """The decision steps of a batch."""
        n_cells, size = len(cells), self.recipe.virtual_batch_size
        if not n_cells:
            raise SettingError("A batch of no cells was passed to the network; it needs at least one.")
        if self.training:
            if n_cells < 2 or n_cells % math.ceil(n_cells / math.ceil(n_cells / size)) == 1:
                found = f"{n_cells} cells leave a ghost batch of one cell (virtual_batch_size={size}), without variance"
                raise SettingError(f"{found}. Choose another batch_size or virtual_batch_size.")
            cells = _hide(cells, self.gene_dropout)
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few to tell logits apart
            return self._steps(cells)

    def _steps(self, cells: Tensor) -> list[Step]:
        encoder, n_d, temperature = self.encoder, self.recipe.n_d, self.recipe.mask_temperature
        dense = cells.to_dense()  # (B, G)
        pairs = None if temperature is None else expressed(cells)  # (P,) twice: cells, genes
        scale, shift = normalisation(encoder.initial_bn, cells, dense)  # (G,), (G,)
        weight = encoder.initial_splitter.shared.glu_layers[0].fc.weight  # (W, G), shared by all steps
        out, table = first_layer(cells, dense, scale, shift, weight)  # (B, W), (G, W)
        attention = after_first_layer(encoder.initial_splitter, out)[:, n_d:]  # (B, n_a)
        steps, past, widest = [], [], self.narrow * dense.shape[1]
        for attend, transform in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
            mask = step_mask(attention, attend, past, encoder.gamma, widest, pairs, temperature or 1.0)
            past.append(mask)
            out = masked_first_layer(mask, dense, scale, shift, table, self.additive_weight, cells.is_sparse_csr)
            if self.recipe.rescale_masked:
                squares = mask.sum_of(mask.weights.square())  # (B,); 0 in a cell without genes
                out = out / squares.clamp(min=torch.finfo(out.dtype).tiny)[:, None]
            out, evidence = out.tensor_split([table.shape[1]], dim=1)  # (B, W), (B, C) or (B, 0)
            out = after_first_layer(transform, out)  # (B, n_d + n_a)
            attention = out[:, n_d:]
            steps.append(Step(mask, torch.relu(out[:, :n_d]), evidence))
        return steps

    def logits_of(self, steps: Sequence[Step]) -> Tensor:
        """The logits, (B, C), that the steps of a batch add up to."""
        logits = self.final_mapping(sum(step.decision for step in steps))
        if self.additive_bias is not None:
            logits = logits + sum(step.evidence for step in steps) + self.additive_bias
        return logits


class Ensemble(nn.Module):
    """`TabNet` networks with different initial weights and gene dropout, trained on the same batches.

    Each learns from its own errors alone. The probabilities of the ensemble are the mean of its members'.

    >>> ensemble = Ensemble(2000, 5, n_models=4, n_steps=1).eval()
    >>> mean_logits([output.logits for output in ensemble(torch.rand(8, 2000))]).softmax(1).shape
    torch.Size([8, 5])
    """

    def __init__(self, n_genes: int, n_classes: int, *, n_models: int, **settings):
        super().__init__()
        self.members = nn.ModuleList(TabNet(n_genes, n_classes, **settings) for _ in range(n_models))

    def forward(self, cells: Tensor) -> list[TabNetOutput]:
        """The output of each member."""
        return [member(cells) for member in self.members]

    def measure_input(self, batches: Iterable) -> None:
        """With `fixed_scale`, measure the genes on training cells, once for all members, before training."""
        first, *others = (member.encoder.initial_bn for member in self.members)
        if isinstance(first, FixedScale):
            first.measure(batches)
            for other in others:
                other.load_state_dict(first.state_dict())

    def refresh_statistics(self, batches: Iterable) -> None:
        """Measure every batch normalisation again, on batches without hidden genes, as predictions see them.

        Training with `gene_dropout` measures them on cells with hidden genes.
        """
        try:
            for member in self.members:
                member.gene_dropout = 0.0
            update_bn(batches, self, device=next(self.parameters()).device)
        finally:
            for member in self.members:
                member.gene_dropout = member.recipe.gene_dropout
        average_statistics(self)


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
        """Measure the cells of all processes: batches (B, G), dense or CSR, or tuples that start with one."""
        n_cells, sums = torch.zeros((), dtype=torch.float64), torch.zeros(len(self.scale), dtype=torch.float64)
        squares = sums.clone()
        for batch in batches:
            cells = (batch[0] if isinstance(batch, tuple | list) else batch).cpu().to_sparse_coo()
            genes, values = cells.indices()[1], cells.values().double()
            n_cells += len(cells)
            sums.index_add_(0, genes, values)
            squares.index_add_(0, genes, values.square())
        n_cells, sums, squares = (sum_across_devices(part, self.scale.device) for part in (n_cells, sums, squares))
        mean = sums / n_cells
        variance = (squares / n_cells - mean.square()).clamp_(min=0)
        if (variance > 0).any():  # else scale and shift stay as they are
            scale = variance[variance > 0].mean().rsqrt()
            self.scale.fill_(scale)
            self.shift.copy_(-mean * scale)


class _Encoder(nn.Module):
    """pytorch-tabnet's encoder: the same layers under the same names, without its genes x genes matrix."""

    def __init__(self, n_genes: int, recipe: Recipe):
        super().__init__()
        self.n_d, self.gamma, width = recipe.n_d, recipe.gamma, recipe.n_d + recipe.n_a
        ghost = dict(virtual_batch_size=recipe.virtual_batch_size, momentum=recipe.momentum)
        inputs = [n_genes] + [width] * (recipe.n_shared - 1)
        shared = nn.ModuleList(nn.Linear(size, 2 * width, bias=False) for size in inputs)

        def feature_transformer():
            return FeatTransformer(n_genes, width, shared, n_glu_independent=recipe.n_independent, **ghost)

        batch_norm = nn.BatchNorm1d(n_genes, momentum=recipe.input_momentum)
        self.initial_bn = FixedScale(n_genes) if recipe.fixed_scale else batch_norm
        self.initial_splitter = feature_transformer()
        self.feat_transformers = nn.ModuleList(feature_transformer() for _ in range(recipe.n_steps))
        self.att_transformers = nn.ModuleList(
            AttentiveTransformer(recipe.n_a, n_genes, group_matrix=None, **ghost) for _ in range(recipe.n_steps)
        )
        for attend in self.att_transformers:
            nn.init.constant_(attend.bn.bn.weight, recipe.mask_start)
