"""What several processes that train together know together."""

import torch
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors


def gathered(tensor: Tensor, device: torch.device | str) -> list[Tensor]:
    """A tensor of every process, by rank; its own alone where one process trains.

    Lengths may differ. `device` is where the model is: that of a GPU can be sent, another may not.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [tensor]
    return [part.to(tensor.device) for part in gather_all_tensors(tensor.to(device))]


def total(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The sum over processes, the same in each."""
    first, *others = gathered(tensor, device)
    return sum(others, start=first)


def share_statistics(network: torch.nn.Module) -> None:
    """Set the running statistics of every batch normalisation to their mean over the processes, in place."""
    for name, statistics in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            parts = gathered(statistics, statistics.device)
            if len(parts) > 1:
                statistics.copy_(torch.stack(parts).mean(0))
