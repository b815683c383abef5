"""How values come into the network where no batch normalisation sees to it."""

from collections.abc import Iterable

import torch
from torch import nn

from sims_kit.model.trainer import sum_across_devices


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

        Cells without any variation leave scale and shift as they are. Processes that train together measure all cells.
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
        counted = torch.tensor(n_cells, dtype=torch.float64)
        n_cells, sums, squares = (sum_across_devices(part, self.scale.device) for part in (counted, sums, squares))
        mean = sums / n_cells
        variance = (squares / n_cells - mean.square()).clamp_(min=0)
        varies = variance > 0
        if not varies.any():
            return
        scale = variance[varies].mean().rsqrt()
        self.scale.fill_(scale)
        self.shift.copy_(-mean * scale)
