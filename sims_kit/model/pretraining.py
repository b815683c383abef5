"""Masked pretraining: an encoder that learns without labels, by predicting genes that are hidden from it.

TabNet's self-supervised task (Arik and Pfister 2021, arXiv:1908.07442; thesis section 0.2.4) at transcriptome width:
over pairs of cell and gene, so that nothing here is as large as cells x genes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pytorch_tabnet.tab_network import TabNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from sims_kit.errors import SettingError
from sims_kit.model.network import FixedScale, TabNet
from sims_kit.model.novelty import class_sums
from sims_kit.model.recipe import Recipe, get_recipe
from sims_kit.model.trainer import Module, sum_across_devices

SETTINGS = ("n_models", "n_d", "n_a", "n_steps", "gamma", "n_independent", "n_shared", "mask_temperature")
SETTINGS += ("rescale_masked", "fixed_scale")  # the encoder's weights depend on them


class MaskedCells(NamedTuple):
    """Cells with hidden genes, and P pairs of cell and gene to be predicted."""

    cells: Tensor  # (B, genes) CSR, zero where hidden
    rows: Tensor  # (P,), the position of each pair's cell, as next of its gene
    genes: Tensor
    values: Tensor  # (P,), the cell's value of the gene
    weights: Tensor  # (P,), how many hidden genes of the cell the pair stands for


class MaskedPretraining(Module):
    """An encoder and a decoder that predict hidden genes of a cell; a classifier starts from the encoder.

    The same share of expressed and of unexpressed genes is hidden in each cell. Most genes are unexpressed, and hiding
    one changes nothing in the input, so only a few of these are drawn, and weighted to stand for the others. The loss
    is the weighted mean squared error over these pairs of cell and gene, on the scale of `FixedScale`: a loss of 1 is
    that of predicting each gene's mean, and rare genes count less than markers.

    `input_dim`, `genes` and `recipe` are as in `SIMSClassifier`. A share of each cell's genes, `mask_share`, is hidden,
    drawn anew for every batch. `unexpressed` genes are drawn for each hidden expressed one; more make the
    loss less noisy. `history` has ``val_explained``, the share of the variance of hidden genes around their training
    means that the network explains.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        genes: Sequence[str] | None = None,
        recipe: str | Recipe | Mapping[str, Any] = "default",
        mask_share: float = 0.2,
        unexpressed: float = 3.0,
    ):
        if not 0 < mask_share < 1:
            raise SettingError(f"mask_share is {mask_share}; give a share of the expressed genes, above 0 and below 1.")
        if not unexpressed > 0:
            raise SettingError(f"unexpressed is {unexpressed}; give a number per hidden gene, above 0.")
        super().__init__(get_recipe(recipe), genes and list(genes), mask_share=mask_share, unexpressed=unexpressed)
        self.input_dim, self.mask_share, self.unexpressed = input_dim, mask_share, unexpressed
        # classes are unknown, and genes are hidden by this module
        settings = self.recipe.network_settings | {"additive": False, "gene_dropout": 0.0, "genes_per_class": None}
        self.network = TabNet(input_dim, 1, **settings)
        self.network.final_mapping.requires_grad_(False)  # unused; several devices would wait for its gradients
        sizes = {name: settings[name] for name in ("n_d", "n_steps", "virtual_batch_size")}
        self.decoders = nn.ModuleList(TabNetDecoder(input_dim, **sizes) for _ in range(settings["n_models"]))
        for decoder in self.decoders:
            nn.init.zeros_(decoder.reconstruction_layer.weight)  # starts from the genes' means, not from noise
        self.scale = FixedScale(input_dim)

    def on_fit_start(self) -> None:
        """Measure the genes on the training cells, before callbacks hear that training starts."""
        if not self.is_fitted:  # a run that goes on keeps what it has
            self.trainer.fit_loop.setup_data()
            cells = ((batch.cells, torch.zeros_like(batch.labels)) for batch in self.trainer.train_dataloader)
            sums, squares, n_cells = class_sums(cells, 1, self.input_dim, self.device)
            self.scale.measure(sums[0], squares, n_cells)
            self.network.measure(sums, squares, n_cells)

    def forward(self, masked: MaskedCells) -> list[Tensor]:
        """Each network's predictions of the pairs, (P,), on the scale of the loss."""
        decisions = torch.stack([step.decision for step in self.network.steps(masked.cells)])  # (steps, B, M, n_d)
        return [reconstruct(*pair, masked) for pair in zip(self.decoders, decisions.unbind(2), strict=True)]

    def training_step(self, batch, batch_index: int) -> Tensor:
        """Loss of one batch; raises FloatingPointError when it is no longer a number."""
        masked = mask_genes(batch.cells, self.mask_share, self.unexpressed)
        target, total = self._target(masked), masked.weights.sum()
        losses = [(masked.weights * (found - target).square()).sum() / total for found in self(masked)]
        loss = sum(losses)  # the networks share no weights, so each has gradients of its own loss
        if not torch.isfinite(loss):
            raise self.diverged(f"The loss of pretraining is {loss.item()}.", batch_index)
        options = dict(on_step=False, on_epoch=True, batch_size=len(batch.labels), sync_dist=True)
        self.log("train_loss", loss.detach() / len(losses), **options)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Hide the same genes in every epoch."""
        self._generator = torch.Generator(self.device).manual_seed(0)
        self._sums = torch.zeros(3, dtype=torch.float64)  # weights, errors, variance

    def validation_step(self, batch, batch_index: int) -> None:
        """Add up the errors of one batch of validation cells."""
        masked = mask_genes(batch.cells, self.mask_share, self.unexpressed, self._generator)
        target = self._target(masked)
        errors = [(masked.weights * (predicted - target).square()).sum() for predicted in self(masked)]
        total = masked.weights.sum(), sum(errors) / len(errors), (masked.weights * target.square()).sum()
        self._sums += torch.stack(total).double().cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the mean squared error of all devices' cells, and how much better it is than that of the genes' means."""
        weights, errors, variance = sum_across_devices(self._sums, self.device)
        self.log("val_loss", (errors / weights).float())
        self.log("val_explained", (1 - errors / variance).float())

    def _target(self, masked: MaskedCells) -> Tensor:
        return masked.values * self.scale.scale[masked.genes] + self.scale.shift[masked.genes]


def mask_genes(
    cells: Tensor, share: float, unexpressed: float = 1.0, generator: torch.Generator | None = None
) -> MaskedCells:
    """Hide each expressed gene of `cells`, (B, genes) CSR, with a probability, and draw unexpressed ones beside them.

    `unexpressed` genes are drawn, with replacement, per hidden one. Those of a cell share the weight of all that would
    be hidden; a cell that expresses all genes has none. Costs grow with the number of stored values, not of genes.
    """
    values, columns, starts = cells.values(), cells.col_indices(), cells.crow_indices()
    n_cells, n_genes = cells.shape
    rows = torch.arange(n_cells, device=values.device).repeat_interleave(starts.diff())
    hidden = (torch.rand(values.shape, device=values.device, generator=generator) < share) & (values > 0)
    kept = torch.sparse_csr_tensor(starts, columns, values.masked_fill(hidden, 0), cells.shape)
    draws = unexpressed + torch.rand(int(hidden.sum()), device=values.device, generator=generator)
    asked = rows[hidden].repeat_interleave(draws.floor().long())  # whole numbers with the mean `unexpressed`
    free = n_genes - starts.diff()  # genes that a cell does not express
    asked = asked[free[asked] > 0]
    nth = (torch.rand(asked.shape, device=values.device, generator=generator) * free[asked]).long()
    nth = torch.minimum(nth, free[asked] - 1)  # rounding may reach the end
    # The nth unexpressed gene of a cell follows as many expressed genes as have at most n unexpressed ones before them.
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


def reconstruct(decoder: TabNetDecoder, decisions: Tensor, masked: MaskedCells) -> Tensor:
    """The decoder's predictions of the pairs, (P,), from a network's decisions, (steps, B, n_d)."""
    cells = sum(part(decision) for part, decision in zip(decoder.feat_transformers, decisions, strict=True))  # (B, n_d)
    of_genes = F.embedding(masked.genes, decoder.reconstruction_layer.weight)
    return (F.embedding(masked.rows, cells) * of_genes).sum(1)  # several threads add up its gradient in one order


def check_settings(model: Module, pretrained: MaskedPretraining) -> None:
    """Refuse a pretrained encoder whose settings of the network differ from the classifier's."""
    ours, theirs = model.recipe.network_settings, pretrained.recipe.network_settings
    differing = [f"{name} {ours[name]} (pretrained: {theirs[name]})" for name in SETTINGS if ours[name] != theirs[name]]
    if differing:
        found = f"The pretrained encoder does not fit the network: {', '.join(differing)}"
        raise SettingError(f"{found}. Pretrain with the classifier's recipe, or fit with the pretrained one's.")


@torch.no_grad()
def start_encoder(model: Module, pretrained: MaskedPretraining, places: Tensor) -> None:
    """Give an encoder the pretrained weights of its genes, by their `places`, (genes,), there; -1 starts as usual."""
    sources, places = pretrained.network.state_dict(), places[model.network.genes.cpu()]
    here = (places >= 0).nonzero().squeeze(1)
    sizes = len(places), pretrained.input_dim
    for name, target in [*model.network.named_parameters(), *model.network.named_buffers()]:
        if "encoder." not in name or name.endswith(("num_batches_tracked", "scale", "shift")):
            continue  # a number of batches would count as fitted; the scale is measured on the cells
        source, axis = sources[name], 2 if ".shared_layers.0." in name else 1  # (networks, width, genes)
        if axis == 2 or ".initial_bn." in name or ".att_transformers." in name:
            if target.dim() == 1:  # (networks x genes,)
                target, source = (part.view(-1, size) for part, size in zip((target, source), sizes, strict=True))
            known = source.cpu().index_select(axis, places[here]).to(target.device)
            target.index_copy_(axis, here.to(target.device), known)
        else:
            target.copy_(source)
