"""What sets the default recipe's network apart from pytorch-tabnet's: masks over the genes that a cell expresses."""

from collections.abc import Iterable, Sequence

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer
from torch import Tensor, nn

from sims_kit.model.masks import Mask
from sims_kit.model.sparsemax import sparsemax

ABSENT = -1e9  # the logit of a place without a gene; finite, so that a cell without any gene has a mask, of zeros


def expressed_mask(
    attention: Tensor,
    attend: AttentiveTransformer,
    past: Sequence[Mask],
    gamma: float,
    cells: Tensor,
    temperature: float,
) -> Mask:
    """The mask of a step among the genes that each cell expresses, on pairs of cell and gene.

    Parameters
    ----------
    attention, attend, past, gamma
        As in `sims_kit.model.masks.narrow_mask`.
    cells
        Shape (B, genes), dense or CSR; a gene is expressed where its value is above zero.
    temperature
        What logits are divided by before sparsemax: the higher, the more genes pass.
    """
    rows, genes = _expressed(cells)
    counts = torch.bincount(rows, minlength=len(cells))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    table = genes.new_full((len(cells), max(1, int(counts.max()))), -1)  # each cell's genes, side by side
    table[rows, places] = genes
    logits = attend.bn(attend.fc(attention)).gather(1, table.clamp(min=0))
    for mask in past:
        prior = torch.ones_like(logits).index_put((rows, places), gamma - mask.at(rows, genes))
        logits = logits * prior
    weights = sparsemax((logits / temperature).masked_fill(table < 0, ABSENT))
    kept = (weights.detach() > 0) & (table >= 0)
    return Mask(weights[kept], kept.nonzero()[:, 0], table[kept], tuple(cells.shape))


class FixedScale(nn.Module):
    """Subtracts each gene's mean and divides all genes by one number, both measured once, on training cells.

    The number is the root of the mean variance of the genes that vary. Genes of one spread each, as batch normalisation
    makes them, would blow up rare genes to the size of markers.
    """

    def __init__(self, n_genes: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(n_genes))
        self.register_buffer("shift", torch.zeros(n_genes))

    @torch.no_grad()
    def measure(self, batches: Iterable) -> None:
        """Take means and variances from these batches: tensors (B, genes), dense or CSR, or tuples that start with one.

        Cells without any variation leave scale and shift as they are.
        """
        n_cells, sums = 0, torch.zeros(len(self.scale), dtype=torch.float64)
        squares = sums.clone()
        for batch in batches:
            cells = (batch[0] if isinstance(batch, tuple | list) else batch).cpu()
            cells = cells.to_sparse_csr() if cells.layout == torch.strided else cells
            values, genes = cells.values().double(), cells.col_indices()
            n_cells += len(cells)
            sums.index_add_(0, genes, values)
            squares.index_add_(0, genes, values.square())
        mean = sums / n_cells
        variance = (squares / n_cells - mean.square()).clamp_(min=0)
        varies = variance > 0
        if not varies.any():
            return
        scale = variance[varies].mean().rsqrt()
        self.scale.fill_(scale)
        self.shift.copy_(-mean * scale)


def _expressed(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the values above zero, by ascending row."""
    if cells.layout == torch.strided:
        return (cells > 0).nonzero(as_tuple=True)
    rows = torch.arange(len(cells), device=cells.device).repeat_interleave(cells.crow_indices().diff())
    above = cells.values() > 0  # gene dropout leaves zeros among the values
    return rows[above], cells.col_indices()[above]
