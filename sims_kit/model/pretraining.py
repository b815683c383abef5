"""Masked pretraining: an encoder that learns without labels, by filling in genes that are hidden from it.

TabNet's self-supervised task (Arik and Pfister 2021, arXiv:1908.07442; thesis section 0.2.4, its future work) at
transcriptome width: what is asked for are pairs of cell and gene, as many as a few times the genes that a cell
expresses, so that nothing here is as large as cells times genes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_tabnet.tab_network import TabNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from sims_kit.errors import SettingError
from sims_kit.model.network import FixedScale, TabNet, make_network, members
from sims_kit.model.network_settings import DEFAULTS
from sims_kit.model.recipes import Recipe, get_recipe
from sims_kit.model.trainer import optimisation

SETTINGS = ("n_models", "n_d", "n_a", "n_steps", "gamma", "n_independent", "n_shared", "mask_temperature")
SETTINGS += ("rescale_masked", "fixed_scale")  # what the encoder's weights have a meaning for


class MaskedCells(NamedTuple):
    """Cells with genes hidden, and what is to be found out about them: P pairs of cell and gene."""

    cells: Tensor
    """(B, genes) CSR, zero where hidden."""
    rows: Tensor
    """(P,), the position of each pair's cell."""
    genes: Tensor
    """(P,), the position of each pair's gene."""
    values: Tensor
    """(P,), what the cell had there."""
    weights: Tensor
    """(P,), how many hidden genes of the cell the pair stands for."""


class MaskedPretraining(pl.LightningModule):
    """An encoder and a decoder that fill in genes hidden from a cell; the encoder is what a classifier starts from.

    Of each cell the same share of expressed and of unexpressed genes is hidden. Hiding an unexpressed gene changes
    nothing in the input, and most are such; so of these only as many are drawn as there are hidden expressed ones, and
    they count for the others. The decoder says what the cell had in either, and the loss is the weighted mean squared
    error over these pairs alone: in expectation that over all hidden genes. A value is log-normalised expression less
    its gene's mean, divided by one number for all genes, the root of their mean variance over the training cells. So
    a loss of 1 is that of saying each gene's mean, and rare genes do not count as much as markers.

    Parameters
    ----------
    input_dim
        Number of genes.
    genes
        Their names. When left out they are taken from the data module at `trainer.fit`.
    recipe, network
        As in `SIMSClassifier`: the encoder, how many there are (``n_models``), optimiser and scheduler.
    mask_share
        Share of each cell's genes that is hidden, drawn anew for every batch and every network.
    unexpressed
        How many unexpressed genes are drawn, per hidden expressed one: more make the loss less noisy.

    Attributes
    ----------
    history
        DataFrame, one row per epoch: ``train_loss``, ``val_loss`` and ``val_explained``, the share of the variance of
        hidden genes around their means over the training cells that the network explains.
    provenance
        What it was trained on; JSON-like, saved with it.

    Raises
    ------
    SettingError
        If a setting is out of range.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        genes: Sequence[str] | None = None,
        recipe: str | Recipe = "default",
        network: Mapping[str, Any] | None = None,
        mask_share: float = 0.2,
        unexpressed: float = 3.0,
    ):
        super().__init__()
        if not 0 < mask_share < 1:
            raise SettingError(f"mask_share is {mask_share}; give a share of the expressed genes, above 0 and below 1.")
        if not unexpressed > 0:
            raise SettingError(f"unexpressed is {unexpressed}; give a number per hidden gene, above 0.")
        self.recipe = get_recipe(recipe)
        self.input_dim, self.genes = input_dim, genes and list(genes)
        self.mask_share, self.unexpressed = mask_share, unexpressed
        self.network_params = {**self.recipe.network, **(network or {})}
        own = {"additive": False, "gene_dropout": 0.0}  # classes are unknown; genes are hidden here
        self.network = make_network(input_dim, 1, **{**self.network_params, **own})
        self.decoders = nn.ModuleList(_decoder(member) for member in members(self.network))
        self.scale = FixedScale(input_dim)
        self.history = pd.DataFrame()
        self.provenance: dict[str, Any] = {}

    @property
    def is_fitted(self) -> bool:
        """Whether its genes have names and its weights have seen a training batch."""
        return self.genes is not None and bool(self.network.encoder.att_transformers[0].bn.bn.num_batches_tracked > 0)

    def setup(self, stage: str) -> None:
        """Take the genes' names from the data module, where they were not given."""
        module = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and module is not None:
            self.genes = self.genes or module.genes
            self.provenance.update(module.provenance)

    def on_train_start(self) -> None:
        """Measure the genes on the training cells."""
        if not self.is_fitted:  # a run that goes on keeps what it has
            self.scale.measure(self.trainer.train_dataloader)
            self.network.measure_input(self.trainer.train_dataloader)

    def forward(self, masked: MaskedCells) -> list[Tensor]:
        """What each network says of the pairs, (P,), on the scale of the loss."""
        return [
            reconstruct(member, decoder, masked)
            for member, decoder in zip(members(self.network), self.decoders, strict=True)
        ]

    def training_step(self, batch, batch_index: int) -> Tensor:
        """Loss of one batch; raises FloatingPointError when it is no longer a number."""
        losses = []
        for member, decoder in zip(members(self.network), self.decoders, strict=True):
            masked = mask_genes(batch.cells, self.mask_share, self.unexpressed)
            losses.append(_mean_square(reconstruct(member, decoder, masked) - self._target(masked), masked.weights))
        loss = sum(losses)  # each network's gradients are its own
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of pretraining is {loss.item()} in batch {batch_index} of epoch {self.current_epoch}: it "
                "has diverged. Lower the learning rate (optimizer_params), or look for extreme values in the input."
            )
        self.log("train_loss", loss.detach() / len(losses), on_step=False, on_epoch=True, batch_size=len(batch.labels))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Hide the same genes in every epoch."""
        self._generator = torch.Generator(self.device).manual_seed(0)
        self._sums = torch.zeros(3, dtype=torch.float64)  # weights, errors, variance

    def validation_step(self, batch, batch_index: int) -> None:
        """Errors of one batch of validation cells."""
        masked = mask_genes(batch.cells, self.mask_share, self.unexpressed, self._generator)
        target = self._target(masked)
        errors = [(masked.weights * (said - target).square()).sum() for said in self(masked)]
        total = masked.weights.sum(), sum(errors) / len(errors), (masked.weights * target.square()).sum()
        self._sums += torch.stack(total).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the mean squared error, and how much better it is than that of the genes' means."""
        weights, errors, variance = self._sums
        self.log("val_loss", (errors / weights).float())
        self.log("val_explained", (1 - errors / variance).float())

    def configure_optimizers(self):
        """The recipe's optimiser and scheduler."""
        recipe = self.recipe
        scheduler = recipe.scheduler and (recipe.scheduler, recipe.scheduler_params)
        return optimisation(self, (recipe.optimizer, recipe.optimizer_params), scheduler)

    def _target(self, masked: MaskedCells) -> Tensor:
        return masked.values * self.scale.scale[masked.genes] + self.scale.shift[masked.genes]


def mask_genes(
    cells: Tensor, share: float, unexpressed: float = 1.0, generator: torch.Generator | None = None
) -> MaskedCells:
    """Hide a share of each cell's expressed genes, and draw unexpressed ones to ask for beside them.

    Costs grow with the values that are stored, not with the number of genes.

    Parameters
    ----------
    cells
        (B, genes) CSR, sorted; not changed.
    share
        Of the expressed genes; each is hidden with this probability.
    unexpressed
        How many unexpressed genes are drawn, with replacement, per hidden one. Those of a cell share the weight of all
        that would be hidden, the share of its unexpressed genes; a cell that expresses all has none.
    generator
        Of the draws; torch's own by default.
    """
    values, columns, starts = cells.values(), cells.col_indices(), cells.crow_indices()
    n_cells, n_genes = cells.shape
    rows = torch.arange(n_cells, device=values.device).repeat_interleave(starts.diff())
    hidden = (torch.rand(values.shape, device=values.device, generator=generator) < share) & (values > 0)
    kept = torch.sparse_csr_tensor(starts, columns, values.masked_fill(hidden, 0), cells.shape)
    asked = rows[hidden].repeat_interleave(_rounded(unexpressed, int(hidden.sum()), values.device, generator))
    free = n_genes - starts.diff()  # genes that a cell does not express
    asked = asked[free[asked] > 0]
    nth = (torch.rand(asked.shape, device=values.device, generator=generator) * free[asked]).long()
    nth = torch.minimum(nth, free[asked] - 1)  # rounding may reach the end
    # the nth unexpressed gene has as many expressed ones before it as have at most n unexpressed ones before them
    passed = rows * n_genes + columns - (torch.arange(len(columns), device=values.device) - starts[rows])
    absent = nth + torch.searchsorted(passed, asked * n_genes + nth, right=True) - starts[asked]
    drawn = torch.bincount(asked, minlength=n_cells)
    weight = share * free / drawn.clamp(min=1)
    return MaskedCells(
        kept,
        torch.cat([rows[hidden], asked]),
        torch.cat([columns[hidden], absent]),
        torch.cat([values[hidden], values.new_zeros(len(asked))]),
        torch.cat([torch.ones_like(values[hidden]), weight[asked].to(values.dtype)]),
    )


def reconstruct(network: TabNet, decoder: TabNetDecoder, masked: MaskedCells) -> Tensor:
    """What the decoder makes of the steps of a batch, at the pairs that are asked for, (P,)."""
    steps = network.steps(masked.cells)
    cells = sum(part(step.decision) for part, step in zip(decoder.feat_transformers, steps, strict=True))
    return (cells[masked.rows] * F.embedding(masked.genes, decoder.reconstruction_layer.weight)).sum(1)


def _decoder(network: TabNet) -> TabNetDecoder:
    """pytorch-tabnet's, of its own depth: one gated layer that all steps share and one of each."""
    encoder = network.encoder
    decoder = TabNetDecoder(
        network.n_genes,
        n_d=encoder.n_d,
        n_steps=len(encoder.att_transformers),
        virtual_batch_size=network.virtual_batch_size,
    )
    nn.init.zeros_(decoder.reconstruction_layer.weight)  # starts from the genes' means, not from noise of their size
    return decoder


def _mean_square(errors: Tensor, weights: Tensor) -> Tensor:
    return (weights * errors.square()).sum() / weights.sum()


def _rounded(mean: float, size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Whole numbers with this mean: the two nearest, drawn."""
    return (mean + torch.rand(size, device=device, generator=generator)).floor().long()


@torch.no_grad()
def start_encoder(model: pl.LightningModule, pretrained: MaskedPretraining, places: Tensor) -> None:
    """Give a classifier's encoder the weights of a pretrained one.

    Parameters
    ----------
    model
        A `SIMSClassifier`, not trained yet.
    pretrained
        With the same settings of the network.
    places
        (genes of the model,): where the pretrained model has each, -1 where it has not. These start as usual.

    Raises
    ------
    SettingError
        If the two networks differ in a setting that the weights depend on; all of them are named.
    """
    _check_settings(model, pretrained)
    theirs = dict(pretrained.network.named_parameters()) | dict(pretrained.network.named_buffers())
    here = (places >= 0).nonzero().squeeze(1)
    for name, own in [*model.network.named_parameters(), *model.network.named_buffers()]:
        if "encoder." not in name or name.endswith("num_batches_tracked"):  # else it would count as fitted
            continue
        their, axis = theirs[name], _gene_axis(name)
        if axis is None:
            own.copy_(their)
        else:
            own.index_copy_(axis, here, their.index_select(axis, places[here]))


def _gene_axis(name: str) -> int | None:
    """Along which axis a tensor of the encoder has genes."""
    if ".initial_bn." in name or ".att_transformers." in name:
        return 0
    return 1 if ".initial_splitter.shared.shared_layers.0." in name else None


def _check_settings(model: pl.LightningModule, pretrained: MaskedPretraining) -> None:
    own, theirs = ({**DEFAULTS, **made.network_params} for made in (model, pretrained))
    differing = [f"{name} {own[name]} (pretrained: {theirs[name]})" for name in SETTINGS if own[name] != theirs[name]]
    if differing:
        raise SettingError(
            f"The pretrained encoder does not fit the network: {', '.join(differing)}. Pretrain with the classifier's "
            "recipe and network, or fit with the pretrained one's."
        )
