"""What several processes that train together know together."""

import tempfile
from pathlib import Path
from uuid import uuid4

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor
from torch import distributed as dist
from torchmetrics.utilities.distributed import gather_all_tensors

from sims_kit.calibration import CalibrationCells


def gathered(tensor: Tensor, device: torch.device | str) -> list[Tensor]:
    """A tensor of every process, by rank; its own alone where one process trains.

    Lengths may differ. `device` is where the model is: that of a GPU can be sent, another may not.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [tensor]
    sent = tensor.to(device)
    if dist.get_backend() == "nccl":  # which sends from GPUs alone, also when Lightning has put the model back
        sent = sent.cuda()
    return [part.to(tensor.device) for part in gather_all_tensors(sent)]


def sum_across_devices(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The sum over processes, the same in each."""
    first, *others = gathered(tensor, device)
    return sum(others, start=first)


def average_statistics(network: torch.nn.Module) -> None:
    """Set the running statistics of every batch normalisation to their mean over the processes, in place."""
    for name, statistics in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            parts = gathered(statistics, statistics.device)
            if len(parts) > 1:
                statistics.copy_(torch.stack(parts).mean(0))


class Homecoming(pl.Callback):
    """Brings back what training leaves on a model beside its weights, where it runs in forked processes.

    Lightning itself sends home the weights and the last metrics. History, provenance and calibration cells take the
    same way at the same moment: by a file that is read when the weights are loaded.
    """

    def __init__(self, model: pl.LightningModule):
        self.path = Path(tempfile.gettempdir(), f"sims_kit-{uuid4().hex}.pt")
        self._hook = model.register_load_state_dict_post_hook(self._arrive)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write it, in one of the processes."""
        if stage == "fit" and trainer.is_global_zero:
            cells = getattr(pl_module, "calibration_cells", None)  # of a classifier
            left = {"history": pl_module.history.to_dict("index"), "provenance": pl_module.provenance}
            left["cells"] = None if cells is None else [torch.as_tensor(part) for part in cells]
            torch.save(left, self.path)

    def _arrive(self, model: pl.LightningModule, incompatible_keys: object) -> None:
        if not self.path.exists():  # the best weights, put back in the process that trained
            return
        left = torch.load(self.path, weights_only=True)
        self.path.unlink()
        self._hook.remove()
        model.history = pd.DataFrame.from_dict(left["history"], orient="index").rename_axis("epoch")
        model.provenance.update(left["provenance"])
        if left["cells"]:
            model.calibration_cells = CalibrationCells(*(part.numpy() for part in left["cells"]))


def is_forked(trainer: pl.Trainer) -> bool:
    """Whether the trainer trains in processes that it forks or spawns, and this one waits."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
