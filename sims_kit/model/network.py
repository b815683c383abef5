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

from sims_kit.errors import SettingError, refuse_unknown
from sims_kit.model.recipe import NETWORK_FIELDS, Recipe
from sims_kit.model.sparse import FirstLayer, Mask, MaskScores, masked_first_layer, update_statistics
from sims_kit.model.trainer import average_statistics, sum_across_devices

NARROW = 1 / 16  # share of the genes: masks up to this width are computed on pairs of cell and gene, wider ones on all
HALF = torch.tensor(0.5, dtype=torch.float32).sqrt().item()  # rounded as in pytorch-tabnet


class TabNetOutput(NamedTuple):
    """The result of one pass through the network for a batch of B cells."""

    logits: Tensor  # (B, C), before softmax
    mask_entropy: Tensor  # scalar: entropy of the masks in nats, mean over cells and steps; lower is sparser


class Step(NamedTuple):
    """One decision step for a batch of B cells."""

    mask: Mask  # which genes it looks at; `mask.to_dense()` is (B, G), non-negative, rows sum to one
    decision: Tensor  # (B, n_d), the step's contribution to the decision, after its ReLU
    evidence: Tensor  # (B, C), what the masked genes add to the logits directly; (B, 0) if the network is not additive

    def strength(self) -> Tensor:
        """(B,), how much the step contributes to the decision; evidence counts by its size."""
        return self.decision.sum(1) + self.evidence.abs().sum(1)


class _Network(nn.Module):
    """What a single network and an ensemble have in common."""

    def outputs(self, cells: Tensor) -> list[TabNetOutput]:
        """The output of each network that learns from its own errors alone."""
        return [member(cells) for member in members(self)]

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
        shares = [member.gene_dropout for member in members(self)]
        try:
            for member in members(self):
                member.gene_dropout = 0.0
            update_bn(batches, self, device=next(self.parameters()).device)
        finally:
            for member, share in zip(members(self), shares, strict=True):
                member.gene_dropout = share
        average_statistics(self)


class TabNet(_Network):
    """A network that looks at a cell in a few steps, each through a sparse mask over genes.

    Settings are the fields of `sims_kit.model.recipe.Recipe` that concern the network, with the same defaults.

    Examples
    --------
    >>> network = TabNet(n_genes=2000, n_classes=5, mask_temperature=30.0).eval()
    >>> network(torch.rand(8, 2000)).logits.shape
    torch.Size([8, 5])
    """

    def __init__(self, n_genes: int, n_classes: int, **settings):
        super().__init__()
        known = set(NETWORK_FIELDS) - {"n_models"}
        refuse_unknown("TabNet", settings.keys() - known, known, kind="setting")
        recipe = Recipe(**settings)  # which also checks them
        for name, value in dict(n_genes=n_genes, n_classes=n_classes).items():
            if value < 1:
                raise SettingError(f"{name} is {value}; TabNet needs at least 1.")
        self.n_genes, self.narrow, self.virtual_batch_size = n_genes, NARROW, recipe.virtual_batch_size
        self.rescale_masked, self.gene_dropout = recipe.rescale_masked, recipe.gene_dropout
        self.mask_temperature = recipe.mask_temperature
        n_d, n_a, n_steps = recipe.n_d, recipe.n_a, recipe.n_steps
        width, ghost = n_d + n_a, dict(virtual_batch_size=recipe.virtual_batch_size, momentum=recipe.momentum)
        # The encoder has pytorch-tabnet's layers under the same names, without its genes x genes matrix.
        encoder = self.encoder = nn.Module()
        encoder.n_d, encoder.gamma, encoder.epsilon = n_d, recipe.gamma, recipe.epsilon
        inputs = [n_genes] + [width] * (recipe.n_shared - 1)
        shared = nn.ModuleList(nn.Linear(n_inputs, 2 * width, bias=False) for n_inputs in inputs)
        first, *others = (
            FeatTransformer(n_genes, width, shared, n_glu_independent=recipe.n_independent, **ghost)
            for _ in range(1 + n_steps)
        )
        batch_norm = nn.BatchNorm1d(n_genes, momentum=recipe.input_momentum)
        encoder.initial_bn = FixedScale(n_genes) if recipe.fixed_scale else batch_norm
        encoder.initial_splitter, encoder.feat_transformers = first, nn.ModuleList(others)
        encoder.att_transformers = nn.ModuleList(
            AttentiveTransformer(n_a, n_genes, group_matrix=None, **ghost) for _ in range(n_steps)
        )
        for attention in encoder.att_transformers:
            nn.init.constant_(attention.bn.bn.weight, recipe.mask_start)
        self.final_mapping = nn.Linear(n_d, n_classes, bias=False)
        initialize_non_glu(self.final_mapping, n_d, n_classes)
        self.additive_weight = nn.Parameter(torch.zeros(n_genes, n_classes)) if recipe.additive else None
        self.additive_bias = nn.Parameter(torch.zeros(n_classes)) if recipe.additive else None

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logits and mask entropy of a batch of log-normalised cells, (B, G), dense or sparse (CSR).

        NaN or infinite values that reach the attention raise `FloatingPointError`.
        """
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few to tell logits apart
            steps = self.steps(cells)
            weights = [step.mask.weights for step in steps]  # (P,) or (B, G) each
            entropies = [-(weight * torch.log(weight + self.encoder.epsilon)).sum() for weight in weights]
            return TabNetOutput(self.logits_of(steps), sum(entropies) / (len(cells) * len(steps)))

    def steps(self, cells: Tensor) -> list[Step]:
        """The decision steps of a batch."""
        if not len(cells):
            raise SettingError("A batch of no cells was passed to the network; it needs at least one.")
        with torch.autocast(cells.device.type, enabled=False):
            if cells.dtype in (torch.float16, torch.bfloat16):
                cells = cells.float()
            dense = cells.to_dense()  # (B, G)
            if self.training:
                self._check_ghost_batches(len(cells))
                if self.gene_dropout:
                    cells = _hide(cells.detach().to_sparse_csr(), self.gene_dropout)
                    dense = cells.to_dense()
            return self._steps(cells, dense)

    def _steps(self, cells: Tensor, dense: Tensor) -> list[Step]:
        encoder, n_d = self.encoder, self.encoder.n_d
        scale, shift = normalisation(encoder.initial_bn, dense)  # (G,), (G,)
        weight = encoder.initial_splitter.shared.glu_layers[0].fc.weight  # (W, G), shared by all steps
        out, table = FirstLayer.apply(cells, dense, scale, shift, weight)  # (B, W), (G, W)
        attention = after_first_layer(encoder.initial_splitter, out)[:, n_d:]  # (B, n_a)
        expressed = None
        if self.mask_temperature is not None:
            stored = cells.detach().to_sparse_coo().coalesce()
            expressed = stored.indices()[:, stored.values() > 0]  # (2, P): cells, genes; hidden genes are stored zeros
        steps, past = [], []
        for attend, transform in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
            scores = MaskScores(attention, attend, past, encoder.gamma)
            if expressed is not None:
                mask = scores.expressed_mask(expressed, self.mask_temperature)
            else:
                mask = scores.narrow_mask(self.narrow * self.n_genes) or scores.wide_mask()
            past.append(mask)
            out = masked_first_layer(mask, dense, scale, shift, table, self.additive_weight)  # (B, W) or (B, W + C)
            if self.rescale_masked:
                out = out / mask.squares().clamp(min=torch.finfo(out.dtype).tiny)
            out, evidence = out.tensor_split([table.shape[1]], dim=1)  # (B, W), (B, C) or (B, 0)
            out = after_first_layer(transform, out)  # (B, n_d + n_a)
            decision, attention = torch.relu(out[:, :n_d]), out[:, n_d:]  # (B, n_d), (B, n_a)
            steps.append(Step(mask, decision, evidence))
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
        steps = self.steps(cells)
        weighted = [step.mask.to_sparse() * step.strength()[:, None] for step in steps]
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
        self.gene_dropout = self.members[0].gene_dropout

    @property
    def encoder(self) -> nn.Module:
        """The first member's."""
        return self.members[0].encoder

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logarithms of the members' mean probabilities, (B, C), and the mean entropy of their masks."""
        logits, entropies = zip(*self.outputs(cells), strict=True)
        return TabNetOutput(mean_logits(logits), sum(entropies) / len(entropies))

    def explain(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the members' aggregated masks, rows divided by their sums, CSR (B, G); and the logits, (B, C)."""
        masks, logits = zip(*(member.explain(cells) for member in self.members), strict=True)
        factors = [1 / (len(masks) * mask.sum(1, keepdim=True).to_dense().clamp(min=1e-30)) for mask in masks]  # (B, 1)
        shares = [mask.to_sparse_coo() * factor for mask, factor in zip(masks, factors, strict=True)]
        return sum(shares[1:], start=shares[0]).coalesce().to_sparse_csr(), mean_logits(logits)


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


def normalisation(norm: nn.Module, dense: Tensor) -> tuple[Tensor, Tensor]:
    """What each gene is multiplied by and what it is added, (G,); in training running statistics are updated."""
    if isinstance(norm, FixedScale):
        return norm.scale, norm.shift
    mean, variance = norm.running_mean, norm.running_var  # (G,)
    if norm.training:
        exact = dense.detach().double()  # a rare gene's rounding error would be divided by its small variance
        mean = exact.mean(0)
        variance = (exact - mean).square_().mean(0)  # three times as fast as torch.var_mean
        mean, variance = mean.to(dense.dtype), variance.to(dense.dtype)
        update_statistics(norm, mean[None], variance[None], [len(dense)])
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
    values = cells.values() * (torch.rand_like(cells.values()) >= share)
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
            cells = (batch[0] if isinstance(batch, tuple | list) else batch).cpu().to_sparse_csr()
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
