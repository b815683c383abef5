"""Several networks as one: trained on the same batches from different initial weights, their answers averaged."""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from sims_kit.errors import SettingError
from sims_kit.model.tabnet import TabNet, TabNetOutput
from sims_kit.model.trainer import average_statistics


class Ensemble(nn.Module):
    """`TabNet` networks that differ in initial weights and in what dropout hides, and read the same batches.

    Parameters
    ----------
    n_genes, n_classes
        Width of the input and of the output.
    n_models
        How many; 1 is allowed and gives a single network's answers.
    **settings
        Those of each `TabNet`.

    Raises
    ------
    SettingError
        If there is no member, or as `TabNet` raises it.
    """

    def __init__(self, n_genes: int, n_classes: int, *, n_models: int, **settings):
        super().__init__()
        if n_models < 1:
            raise SettingError(f"n_models is {n_models}; an ensemble has at least one network.")
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
        """Logarithms of the members' mean probabilities, (B, n_classes), and the mean entropy of their masks."""
        outputs = self.outputs(cells)
        return TabNetOutput(
            mean_logits([output.logits for output in outputs]),
            sum(output.mask_entropy for output in outputs) / len(outputs),
        )

    def outputs(self, cells: Tensor) -> list[TabNetOutput]:
        """Each member's own output: it learns from its own errors alone."""
        return [member(cells) for member in self.members]

    def explain(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The members' aggregated masks, each cell's brought to sum one and then averaged, and the joint logits.

        Sparse CSR (B, n_genes), and (B, n_classes). A gene is there if it passes the mask of any member.
        """
        masks, logits = zip(*(member.explain(cells) for member in self.members), strict=True)
        return _mean_of_shares(masks), mean_logits(logits)

    def measure_input(self, batches: Iterable) -> None:
        """As `TabNet.measure_input`; one pass for all members."""
        first, *others = self.members
        first.measure_input(batches)
        for member in others:
            member.encoder.initial_bn.load_state_dict(first.encoder.initial_bn.state_dict())

    def refresh_statistics(self, batches: Iterable) -> None:
        """As `TabNet.refresh_statistics`; one pass for all members."""
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member.whole_cells())
            update_bn(batches, self, device=self.members[0].final_mapping.weight.device)
        average_statistics(self)


def make_network(n_genes: int, n_classes: int, **settings) -> "TabNet | Ensemble":
    """An `Ensemble` where the settings give ``n_models``, else a `TabNet`."""
    return (Ensemble if "n_models" in settings else TabNet)(n_genes, n_classes, **settings)


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logarithms of the mean of the softmax probabilities."""
    stacked = torch.stack([part.log_softmax(1) for part in logits])
    return stacked.logsumexp(0) - math.log(len(stacked))


def _mean_of_shares(masks: Sequence[Tensor]) -> Tensor:
    total = None
    for mask in masks:
        coo = mask.to_sparse_coo()
        rows = coo.indices()[0]
        sums = coo.values().new_zeros(len(mask)).index_add(0, rows, coo.values())
        shares = torch.sparse_coo_tensor(coo.indices(), coo.values() / sums[rows].clamp(min=1e-30), coo.shape)
        total = shares if total is None else total + shares
    return (total / len(masks)).coalesce().to_sparse_csr()
