"""TabNet at transcriptome width (Arik and Pfister 2021; thesis section 0.2.5, Fig. 0.3), several networks at once.

The layers, their names and their numbers are those of pytorch-tabnet, which is the oracle of the tests. Three things
differ: no genes x genes matrix is made, networks are computed side by side, and a network may read chosen genes only.

Shapes: B cells, M networks, G genes that the networks read, C classes, W = 2 (n_d + n_a) outputs of a linear layer.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pytorch_tabnet.tab_network import GBN, initialize_glu, initialize_non_glu
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn

from sims_kit.errors import ModelFileError, SettingError, refuse_unknown
from sims_kit.model.recipe import NETWORK_FIELDS, Recipe
from sims_kit.model.trainer import average_statistics

HALF = torch.tensor(0.5, dtype=torch.float32).sqrt().item()  # rounded as in pytorch-tabnet
WIDE = 1024  # genes: among more, thresholds of sparsemax are first bounded by the largest logits of groups of genes
GROUPS = 128  # so many groups
DIVERGED = (
    "The attention produced NaN or infinite values, so no mask can be drawn. Training has diverged: "
    "lower the learning rate, clip gradients, or look for extreme values in the input."
)


class TabNetOutput(NamedTuple):
    """The result of one pass through the networks."""

    logits: Tensor  # (B, M, C), before softmax
    mask_entropy: Tensor  # (M,), in nats, mean over cells and steps; lower is sparser


class Step(NamedTuple):
    """One decision step."""

    genes: Tensor | slice  # positions of its U genes, ascending, or slice(None), all; its masks are zero at the others
    mask: Tensor  # (B, M, U), which genes it looks at; non-negative, sums to one, or zero in a cell without genes
    values: Tensor  # (B, M, U), what it reads: normalised and masked
    decision: Tensor  # (B, M, n_d), the step's contribution to the decision, after its ReLU
    evidence: Tensor  # (B, M, C), what the masked genes add to the logits; (B, M, 0) where networks are not additive


class TabNet(nn.Module):
    """Networks that look at a cell in a few steps, each through a sparse mask over genes.

    They have different initial weights and gene dropout, are trained on the same batches, and learn from their own
    errors alone. `settings` are fields of `sims_kit.model.recipe.Recipe`, from ``n_models`` to ``epsilon``.

    >>> network = TabNet(n_genes=2000, n_classes=5, n_models=4, mask_temperature=30.0).eval()
    >>> network(torch.rand(8, 2000)).logits.shape
    torch.Size([8, 4, 5])
    """

    def __init__(self, n_genes: int, n_classes: int, **settings):
        super().__init__()
        refuse_unknown("The network", settings.keys() - set(NETWORK_FIELDS), NETWORK_FIELDS, kind="setting")
        self.recipe = recipe = Recipe(**settings)
        n_models, n_read = recipe.n_models, min(n_genes, (recipe.genes_per_class or n_genes) * n_classes)
        self.gene_dropout = recipe.gene_dropout
        self.register_buffer("genes", torch.arange(n_read))  # positions of the genes that are read, ascending
        self.encoder = _Encoder(n_read, recipe)
        self.final_mapping = Linear(n_models, recipe.n_d, n_classes, initialize_non_glu)
        is_additive = recipe.additive
        self.additive_weight = nn.Parameter(torch.zeros(n_models, n_read, n_classes)) if is_additive else None
        self.additive_bias = nn.Parameter(torch.zeros(n_models, n_classes)) if is_additive else None
        self.n_genes = n_genes
        self.register_load_state_dict_post_hook(_check_genes)

    def forward(self, cells: Tensor) -> TabNetOutput:
        """Logits and mask entropies of a batch of log-normalised cells, (B, all genes), dense or sparse (CSR).

        NaN or infinite values that reach the attention raise `FloatingPointError`.
        """
        with torch.autocast(cells.device.type, enabled=False):
            steps = self.steps(cells)
            return TabNetOutput(self.logits_of(steps), self.entropy_of(steps))

    def steps(self, cells: Tensor) -> list[Step]:
        """The decision steps of a batch."""
        n_cells, size = len(cells), self.recipe.virtual_batch_size
        if not n_cells:
            raise SettingError("A batch of no cells was passed to the network; it needs at least one.")
        if self.training and (n_cells < 2 or n_cells % math.ceil(n_cells / math.ceil(n_cells / size)) == 1):
            found = f"{n_cells} cells leave a ghost batch of one cell (virtual_batch_size={size}), without variance"
            raise SettingError(f"{found}. Choose another batch_size or virtual_batch_size.")
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few to tell logits apart
            return self._steps(self._read(cells))

    def _read(self, cells: Tensor) -> Tensor:
        """The genes that are read, (B, M, G), and in training a share of them set to zero, as happens in real cells."""
        cells = cells.to_dense()
        cells = cells if len(self.genes) == self.n_genes else cells[:, self.genes]
        cells = cells[:, None].expand(-1, self.recipe.n_models, -1)
        return cells * (torch.rand_like(cells) >= self.gene_dropout) if self.training and self.gene_dropout else cells

    def _steps(self, cells: Tensor) -> list[Step]:
        encoder, recipe, steps = self.encoder, self.recipe, []
        expressed = None if recipe.mask_temperature is None else cells > 0
        first, norm = encoder.initial_splitter.shared.shared_layers[0].weight, encoder.initial_bn  # (M, W, G)
        if recipe.fixed_scale:
            cells = norm(cells)
            out = product(cells, first.mT)
        else:  # each gene's gain and bias go into the weights, so that no gradient is (B, M, G)
            gain, bias = (part.view(len(first), -1) for part in norm.parameters())
            neutral = dict(weight=torch.ones_like(norm.weight), bias=torch.zeros_like(norm.bias))
            cells = functional_call(norm, neutral, cells.flatten(1)).view(cells.shape)
            out = product(cells, (first * gain[:, None]).mT) + (first @ bias[..., None])[..., 0]
        attention = after_first_layer(encoder.initial_splitter, out)[..., recipe.n_d :]  # (B, M, n_a)
        for attend, transform in zip(encoder.att_transformers, encoder.feat_transformers, strict=True):
            if cells.shape[-1] > WIDE and expressed is None:
                genes, logits = attend.among_used(attention, steps, recipe.gamma)
            else:
                genes, logits = slice(None), attend(attention) / (recipe.mask_temperature or 1)
                for step in steps:
                    logits = logits * (recipe.gamma - step.mask)
            mask = sparsemax(logits, expressed)
            read = cells[..., genes]
            values = mask * (read if recipe.fixed_scale else torch.addcmul(bias[:, genes], read, gain[:, genes]))
            if recipe.rescale_masked:
                squares = mask.square().sum(-1, keepdim=True)  # (B, M, 1); 0 in a cell without genes
                values = values / squares.clamp(min=torch.finfo(mask.dtype).tiny)
            out = after_first_layer(transform, product(values, first[..., genes].mT))  # (B, M, n_d + n_a)
            attention, additive = out[..., recipe.n_d :], self.additive_weight
            evidence = values[..., :0] if additive is None else product(values, additive[:, genes])
            steps.append(Step(genes, mask, values, torch.relu(out[..., : recipe.n_d]), evidence))
        return steps

    def logits_of(self, steps: Sequence[Step]) -> Tensor:
        """The logits, (B, M, C), that the steps of a batch add up to."""
        logits = self.final_mapping(sum(step.decision for step in steps))
        if self.additive_bias is not None:
            logits = logits + sum(step.evidence for step in steps) + self.additive_bias
        return logits

    def entropy_of(self, steps: Sequence[Step]) -> Tensor:
        """The mask entropy of each network, (M,)."""
        sums = [(step.mask * torch.log(step.mask + self.recipe.epsilon)).sum((0, 2)) for step in steps]
        return -sum(sums) / (len(steps) * len(steps[0].mask))

    def measure(self, sums: Tensor, squares: Tensor, n_cells: Tensor) -> None:
        """Choose the genes, and with `fixed_scale` measure them, from training cells.

        Takes the sums of each class, (C, all genes), the sums of squares, (all genes,), and the cells of each class.
        """
        if len(self.genes) < self.n_genes:
            self.genes.copy_(top_genes(sums, squares, n_cells, len(self.genes)))
        if self.recipe.fixed_scale:
            genes = self.genes.to(sums.device)
            self.encoder.initial_bn.measure(sums.sum(0)[genes], squares[genes], n_cells.sum())

    def refresh_statistics(self, batches: Iterable) -> None:
        """Measure every batch normalisation again, on batches without hidden genes, as predictions see them.

        Training with `gene_dropout` measures them on cells with hidden genes.
        """
        try:
            self.gene_dropout = 0.0
            update_bn(batches, self, device=next(self.parameters()).device)
        finally:
            self.gene_dropout = self.recipe.gene_dropout
        average_statistics(self)


def _check_genes(network: TabNet, _) -> None:
    """Refuse genes of a file that a network could not read; other places would be read or written in their stead."""
    genes = network.genes.tolist()
    if genes != sorted(set(genes)) or not 0 <= genes[0] <= genes[-1] < network.n_genes:
        raise ModelFileError("The positions of the genes that it reads do not rise, or lie beyond its genes.")


def top_genes(sums: Tensor, squares: Tensor, n_cells: Tensor, n: int) -> Tensor:
    """Positions, ascending, of at most `n` genes whose mean differs most between a class and the other cells.

    Each class names as many, by the size of a t statistic with the variance of all cells, until there are `n`. Takes
    sums of each class, (C, genes), sums of squares, (genes,), and the cells of each class, (C,); all float64.

    >>> top_genes(sums, squares, n_cells, 500)
    """
    sums, n_cells = sums[n_cells > 0], n_cells[n_cells > 0]  # a class without cells names none
    total, n_all = sums.sum(0), n_cells.sum()
    variance = (squares / n_all - (total / n_all).square()).clamp(min=0)
    size, n_other = n_cells.clamp(min=1)[:, None], (n_all - n_cells).clamp(min=1)[:, None]
    difference = (sums / size - (total - sums) / n_other).abs()
    t = difference * (size * n_other / n_all).sqrt() / (variance + 1e-3 * variance.max()).sqrt().clamp(min=1e-30)
    ranks = t.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    first = ranks.amin(0)  # of each gene, in its best class
    order = np.lexsort((-t.amax(0).cpu().numpy(), first.cpu().numpy()))
    return torch.from_numpy(np.sort(order[:n])).to(sums.device)


def mean_logits(logits: Tensor) -> Tensor:
    """Logarithms of the mean of the networks' probabilities, (B, C), of logits (B, M, C); of one network, its logits.

    >>> mean_logits(network(cells).logits).softmax(1)
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def sparsemax(logits: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Sparsemax over the last dimension: a softmax whose small entries are exactly zero.

    Each row of the result is non-negative and sums to one. With `allowed`, of the same shape, entries elsewhere are
    zero, and so is a row without any. A row whose largest logit is NaN or infinite raises `FloatingPointError`.
    Source: Martins and Astudillo 2016, arXiv:1602.02068; thesis section 0.2.5.

    >>> sparsemax(torch.tensor([1.0, 0.5, -2.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    return _Sparsemax.apply(logits, allowed)


class _Sparsemax(torch.autograd.Function):
    """Projection of each row onto the probability simplex, with its exact gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor, allowed: Tensor | None) -> Tensor:
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        top = logits.amax(-1, keepdim=True)
        if allowed is not None:
            top = top.where(allowed.any(-1, keepdim=True), 0)
        if not torch.isfinite(top).all():
            raise FloatingPointError(DIVERGED)
        logits = logits - top  # differences of small numbers round less
        mask = logits.sub_(_threshold(logits)).clamp_(min=0)
        ctx.save_for_backward(mask)
        return mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        support = mask.sign()  # not as booleans, which would be converted twice
        gradient = gradient * support
        mean = gradient.sum(-1, keepdim=True) / support.sum(-1, keepdim=True).clamp(min=1)
        return gradient.addcmul_(mean, support, value=-1), None


def _threshold(logits: Tensor) -> Tensor:
    """What sparsemax subtracts from each row, whose largest logit is 0: Michelot 1986, doi 10.1007/BF00938486."""
    tau, size = torch.full_like(logits[..., :1], -1), None
    if logits.shape[-1] > WIDE:
        tau = torch.maximum(tau, _least_threshold(logits))
    while True:  # raise each row's threshold to that of the logits above it, until none falls below
        excess = (logits - tau).clamp_(min=0)
        total, before, size = excess.sum(-1, keepdim=True), size, excess.sign_().sum(-1, keepdim=True)
        if before is not None and torch.equal(before, size):
            return tau
        tau = torch.maximum(tau, tau + (total - 1) / size)  # whatever rounding says


def _least_threshold(logits: Tensor) -> Tensor:
    """At most the threshold of each row: this is at least the mean of any k logits less 1 / k, as no mask exceeds 1."""
    whole = logits[..., : logits.shape[-1] // GROUPS * GROUPS]
    largest = whole.unflatten(-1, (-1, GROUPS)).amax(-2).topk(64)[0]
    means = torch.stack([largest[..., :k].mean(-1, keepdim=True) - 1 / k for k in (1, 2, 4, 8, 16, 32, 64)])
    return torch.minimum(means.amax(0), largest[..., :1])


def product(values: Tensor, weights: Tensor) -> Tensor:
    """Each network's values, (B, M, in), times its weights, (M, in, out): (B, M, out)."""
    return torch.bmm(values.transpose(0, 1), weights).transpose(0, 1)


def after_first_layer(transform: "_FeatTransformer", out: Tensor) -> Tensor:
    """The rest of a feature transformer, (B, M, n_d + n_a), on the output of its first linear layer, (B, M, W)."""
    (first, *shared), own = transform.shared.glu_layers, transform.specifics.glu_layers
    out = first.gated(out)
    for layer in (*shared, *own):
        out = (out + layer.gated(layer.fc(out))) * HALF
    return out


class Linear(nn.Module):
    """A linear layer of each network, without a bias."""

    def __init__(self, n_models: int, n_in: int, n_out: int, initialize):
        super().__init__()
        layers = [nn.Linear(n_in, n_out, bias=False) for _ in range(n_models)]
        for layer in layers:
            initialize(layer, n_in, n_out)
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))  # (M, out, in)

    def forward(self, values: Tensor) -> Tensor:
        """(B, M, out) of (B, M, in)."""
        return product(values, self.weight.mT)


class _GhostNorm(GBN):
    """Batch normalisation in ghost batches, of (B, M, F)."""

    def forward(self, values: Tensor) -> Tensor:
        norm = super().forward if self.training and len(values) > self.virtual_batch_size else self.bn
        return norm(values.flatten(1)).view(values.shape)


class FixedScale(nn.Module):
    """Subtracts each gene's mean and divides all genes by one number, measured once on the training cells.

    The number is the root of the mean variance of the genes that vary. Dividing each gene by its own, as batch
    normalisation does, would give rare genes the size of markers.
    """

    def __init__(self, n_genes: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("shift", torch.zeros(n_genes))

    def forward(self, values: Tensor) -> Tensor:
        """Normalised values, of any shape that ends with the genes."""
        return torch.addcmul(self.shift, values, self.scale)

    @torch.no_grad()
    def measure(self, sums: Tensor, squares: Tensor, n_cells: Tensor) -> None:
        """Take sums and sums of squares of the training cells' genes, (G,), and their number; float64."""
        mean = sums / n_cells
        variance = (squares / n_cells - mean.square()).clamp_(min=0)
        if (variance > 0).any():  # else scale and shift stay as they are
            scale = variance[variance > 0].mean().rsqrt()
            self.scale.fill_(scale)
            self.shift.copy_(-mean * scale)


class _Encoder(nn.Module):
    """pytorch-tabnet's encoder: the same layers under the same names, for several networks."""

    def __init__(self, n_genes: int, recipe: Recipe):
        super().__init__()
        n_models, width = recipe.n_models, recipe.n_d + recipe.n_a
        ghost = dict(virtual_batch_size=recipe.virtual_batch_size, momentum=recipe.momentum)
        inputs = [n_genes] + [width] * (recipe.n_shared - 1)
        shared = nn.ModuleList(Linear(n_models, size, 2 * width, initialize_glu) for size in inputs)
        batch_norm = nn.BatchNorm1d(n_models * n_genes, momentum=recipe.input_momentum)
        self.initial_bn = FixedScale(n_genes) if recipe.fixed_scale else batch_norm
        self.initial_splitter = _FeatTransformer(shared, recipe, ghost)
        self.feat_transformers = nn.ModuleList(_FeatTransformer(shared, recipe, ghost) for _ in range(recipe.n_steps))
        self.att_transformers = nn.ModuleList(_Attention(n_genes, recipe, ghost) for _ in range(recipe.n_steps))


class _FeatTransformer(nn.Module):
    """Gated layers, the first of them with the linear layers that all steps share."""

    def __init__(self, shared: nn.ModuleList, recipe: Recipe, ghost: dict):
        super().__init__()
        n_models, width = recipe.n_models, recipe.n_d + recipe.n_a
        own = [Linear(n_models, width, 2 * width, initialize_glu) for _ in range(recipe.n_independent)]
        self.shared, self.specifics = (_GluBlock(layers, 2 * n_models * width, ghost) for layers in (shared, own))


class _GluBlock(nn.Module):
    def __init__(self, layers: nn.ModuleList | list[Linear], width: int, ghost: dict):
        super().__init__()
        if isinstance(layers, nn.ModuleList):
            self.shared_layers = layers
        self.glu_layers = nn.ModuleList(_Layer(layer, _GhostNorm(width, **ghost)) for layer in layers)


class _Layer(nn.Module):
    """A linear layer and its normalisation in ghost batches."""

    def __init__(self, fc: Linear, bn: _GhostNorm):
        super().__init__()
        self.fc, self.bn = fc, bn

    def forward(self, values: Tensor) -> Tensor:
        return self.bn(self.fc(values))

    def gated(self, out: Tensor) -> Tensor:
        """Half of the normalised outputs, (B, M, W / 2), times the sigmoid of the other half."""
        value, gate = self.bn(out).chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


class _Attention(_Layer):
    """The logits of a mask, (B, M, G)."""

    def __init__(self, n_genes: int, recipe: Recipe, ghost: dict):
        norm = _GhostNorm(recipe.n_models * n_genes, **ghost)
        super().__init__(Linear(recipe.n_models, recipe.n_a, n_genes, initialize_non_glu), norm)
        nn.init.constant_(norm.bn.weight, recipe.mask_start)

    def among_used(self, attention: Tensor, steps: Sequence[Step], gamma: float) -> tuple[Tensor, Tensor]:
        """Positions of all genes that a cell's mask uses and of a few others, (U,), and their logits times priors."""
        with torch.no_grad():
            logits = self(attention).mul_(gamma ** len(steps))  # of all genes, for running statistics, too
            for step in steps:
                logits[..., step.genes] *= 1 - step.mask / gamma
            genes = (~(logits.sub_(_least_threshold(logits)).amax((0, 1)) < 0)).nonzero()[:, 0]  # also of NaN
        state = self.bn.state_dict(keep_vars=True).items()
        state = {k: v.view(len(self.fc.weight), -1)[:, genes].flatten() if v.dim() else v.clone() for k, v in state}
        logits = functional_call(self.bn, state, product(attention, self.fc.weight[:, genes].mT))
        for step in steps:
            places = torch.searchsorted(step.genes, genes).clamp_(max=len(step.genes) - 1)
            logits = logits * (gamma - step.mask.index_select(-1, places) * (step.genes[places] == genes))
        return genes, logits
