"""The classifier: TabNet as a LightningModule that knows its genes and its classes (thesis section 0.3.1)."""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sims_kit.calibration import CalibrationCells, calibration_cells, fit_temperature
from sims_kit.cells.splits import check_whole
from sims_kit.errors import SettingError, UnknownNameError, refuse_unknown
from sims_kit.metrics import metric_collection
from sims_kit.model.network import TabNet, mean_logits
from sims_kit.model.novelty import Novelty, class_sums
from sims_kit.model.recipe import HINTS, Recipe, get_recipe
from sims_kit.model.trainer import Module, check_arguments, gather_across_devices, has_others, listed
from sims_kit.text import printable

PACKAGES = ("sims_kit", "torch", "pytorch-tabnet", "pytorch-lightning")
SHOWN = {"accuracy_micro": "accuracy", "median_f1": "median F1", "f1_macro": "macro F1"}  # of the test metrics


class SIMSClassifier(Module):
    """Predicts one label per cell from its expression.

    Parameters
    ----------
    input_dim, output_dim
        Number of genes and of classes: `DataModule.input_dim` and `DataModule.output_dim`.
    genes, classes
        Their names, in order; taken from the data module at `trainer.fit` when left out.
    recipe
        ``"default"``, ``"thesis"`` (section 0.3.2), a `Recipe`, or a dict of settings that differ from the default.
    network, optimizer, optimizer_params, scheduler, scheduler_params
        The thesis's arguments; they replace fields of the recipe. ``scheduler=False``: none.
    class_weights
        (output_dim,), weights of the classes in the loss, and then logits are not adjusted. When left out, the inverse
        label frequencies of the training cells to the power `Recipe.weight_classes`.
    metrics
        What is tracked, as in `sims_kit.metrics.metric_collection`; None: all.
    loss
        Called with logits (B, classes) and labels (B,), returns a scalar; None: weighted cross-entropy.

    Attributes
    ----------
    history, test_metrics
        DataFrame of every tracked metric by epoch; Series of those on test cells, None where there were none.
    provenance, metadata
        What the model was trained on; what a model file adds: date, versions, recipe, kind of genes, licence, notes.
    logit_adjustment, temperature
        What is added to logits, (classes,), and what they are divided by; 0 and 1 until training ends.
    novelty, calibration_cells
        What validation cells say of novelty and confidence; `calibration_cells` is None without them.

    Examples
    --------
    >>> module = sk.DataModule(["a.h5ad"], class_label="cell_type")
    >>> model = sk.SIMSClassifier(module.input_dim, module.output_dim, recipe="thesis")
    >>> pl.Trainer(max_epochs=50, gradient_clip_val=0.5).fit(model, datamodule=module)
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        genes: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        recipe: str | Recipe | Mapping[str, Any] = "default",
        network: Mapping[str, Any] | None = None,
        optimizer: type[torch.optim.Optimizer] | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
        scheduler: Callable | bool | None = None,
        scheduler_params: Mapping[str, Any] | None = None,
        class_weights: Tensor | None = None,
        metrics: Sequence | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        **unknown,
    ):
        refuse_unknown("SIMSClassifier", unknown, [*inspect.signature(SIMSClassifier).parameters][:-1], HINTS)
        check_arguments({"loss": loss, "network": network})
        changes = dict(optimizer=optimizer, optimizer_params=optimizer_params)
        changes |= dict(scheduler=scheduler, scheduler_params=scheduler_params)
        changes = {name: None if value is False else value for name, value in changes.items() if value is not None}
        super().__init__(get_recipe(recipe).changed(**{**(network or {}), **changes}), genes and list(genes))
        self.input_dim, self.output_dim, self.classes = input_dim, output_dim, classes and list(classes)
        check_whole("input_dim", input_dim, 1)
        check_whole("output_dim", output_dim, 2)
        for names, size, what in ((self.genes, input_dim, "genes"), (self.classes, output_dim, "classes")):
            if names is not None and len(names) != size:
                raise SettingError(f"{len(names)} {what} were named, but the model has {size}.")
        self.network = TabNet(input_dim, output_dim, **self.recipe.network_settings)
        self.register_buffer("class_weights", torch.ones(output_dim), persistent=False)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("logit_adjustment", torch.zeros(output_dim))
        self.novelty = Novelty(input_dim, output_dim)
        self._weights_given = class_weights is not None
        if self._weights_given:
            self._set_class_weights(class_weights)
        self.tracked, self.loss = metrics, loss
        self.metrics = torch.nn.ModuleDict()  # made when they are needed: they grow with the square of the classes
        self.test_metrics: pd.Series | None = None
        self.start: Callable | None = None  # called once its genes are chosen: takes a pretrained encoder's weights
        self.calibration_cells: CalibrationCells | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether its genes and classes have names and its weights have seen a training batch."""
        return self.classes is not None and super().is_fitted

    def forward(self, cells: Tensor) -> Tensor:
        """Logits, (B, classes), of a batch of log-normalised cells, (B, genes), dense or CSR."""
        logits = mean_logits(self.network.logits_of(self.network.steps(cells)) + self.logit_adjustment)
        return self.novelty.joined(logits, cells, self.linear_share)

    @property
    def linear_share(self) -> float:
        """The share of linear classifiers in the answer; 0 as long as training has not ended."""
        return self.recipe.linear_share if self.novelty.is_measured else 0.0

    @property
    def genes_read(self) -> Tensor:
        """Positions, ascending, of the genes that its answers depend on."""
        of_linear = self.novelty.planes.any(0) & (self.linear_share > 0)
        return torch.cat([self.network.genes, of_linear.nonzero()[:, 0]]).unique()

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits of `forward` at the model's temperature."""
        return logits / self.temperature

    def probabilities(self, cells: Tensor) -> Tensor:
        """Probabilities, (B, classes): the softmax over all classes at the model's temperature."""
        return self.calibrated(self(cells)).softmax(dim=1)

    def setup(self, stage: str) -> None:
        """Make the metrics; take names and class weights from the data module where they were not given."""
        parts = ("train_", "val_", "test_")
        self.metrics.update({part: metric_collection(self.output_dim, part, self.tracked) for part in parts})
        self._sums: dict[str, Tensor] = {}  # of the losses of the cells, and their number
        for metric in self.metrics.modules():
            metric.distributed_available_fn = has_others
        module = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or module is None:
            return super().setup(stage)
        found, wanted = (module.input_dim, module.output_dim), (self.input_dim, self.output_dim)
        if found != wanted:
            raise SettingError(
                f"The data module has {found[0]} genes and {found[1]} classes, the model {wanted[0]} and {wanted[1]}. "
                "Build the model with input_dim=module.input_dim, output_dim=module.output_dim."
            )
        monitored = ["val_loss", "train_loss", *self.metrics["val_"].keys(), *self.metrics["train_"].keys()]
        if self.recipe.monitor not in monitored:
            raise UnknownNameError("tracked metric", self.recipe.monitor, monitored)
        super().setup(stage)
        if hasattr(module, "split"):
            module.test_dataloader()  # too few cells for the devices are an error now, not after training
        self.classes, self.metadata = self.classes or module.classes, {}  # of a file, whose weights are about to change
        if self.recipe.weight_classes and not self._weights_given:
            self._set_class_weights(module.class_weights ** float(self.recipe.weight_classes))

    def on_train_start(self) -> None:
        """Drop what an earlier training had fitted after its end."""
        self.temperature.fill_(1)
        self.logit_adjustment.zero_()
        self.novelty.is_measured.fill_(False)

    def on_fit_start(self) -> None:
        """Measure the genes on the training cells, before callbacks hear that training starts."""
        if not self.is_fitted:  # a run that goes on keeps what it has
            self.trainer.fit_loop.setup_data()
            found = class_sums(self.trainer.train_dataloader, *self.novelty.means.shape, self.device)
            self.network.measure(*found)
            if self.start is not None:
                self.start()
        self.start = None

    def training_step(self, batch, batch_index: int) -> Tensor:
        """Loss of one batch; raises FloatingPointError when it is no longer a number."""
        try:
            steps = self.network.steps(batch.cells)
        except FloatingPointError as error:
            raise self.diverged(str(error), batch_index) from error
        logits = self.network.logits_of(steps)
        losses = [self._loss(of_network, batch.labels) for of_network in logits.unbind(1)]
        loss = sum(losses)  # the networks share no weights, so each has gradients of its own loss
        if self.recipe.lambda_sparse:
            loss = loss + self.recipe.lambda_sparse * self.network.entropy_of(steps).sum()
        if not torch.isfinite(loss):
            raise self.diverged(f"The training loss is {loss.item()}.", batch_index)
        self._track("train_", mean_logits(logits.detach()), batch.labels, loss.detach() / len(losses))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the metrics of an epoch that was cut off, by `max_steps` or `max_time`."""
        if "train_" in self._sums:
            self._log_metrics("train_")
        super().on_train_epoch_end()

    def validation_step(self, batch, batch_index: int) -> None:
        """Track the metrics of one batch of validation or test cells."""
        logits, stage = self.calibrated(self(batch.cells)), "test_" if self.trainer.testing else "val_"
        self._track(stage, logits, batch.labels, self._loss(logits, batch.labels))

    test_step = validation_step

    def predict_step(self, batch, batch_index: int) -> Tensor:
        """As `probabilities`."""
        return self.probabilities(batch.cells)

    def on_fit_end(self) -> None:
        """Finish the model when nothing was left to train, as after a run that was cut off at its very end."""
        if not self.novelty.is_measured:
            self.on_train_end()

    def on_train_end(self) -> None:
        """Measure batch normalisation on whole cells after gene dropout; then adjust, calibrate and test."""
        module = getattr(self.trainer, "datamodule", None)  # the model is still on the device that trained it
        if self.recipe.gene_dropout:
            self.network.refresh_statistics(self.trainer.train_dataloader)
        if self.recipe.logit_adjustment and module is not None and not self._weights_given:
            n_cells = np.bincount(module.labels[module.split.train], minlength=self.output_dim)
            # Networks overfit classes with few cells and then under-predict them. The size follows the margins of Cao
            # et al. (NeurIPS 2019); adding it after training follows Menon et al. (ICLR 2021).
            raised = self.recipe.logit_adjustment * n_cells.clip(1) ** -0.25
            self.logit_adjustment.copy_(torch.from_numpy(raised))
        given = self.class_weights if self._weights_given else torch.ones(self.output_dim)
        self.novelty.measure(self.trainer.train_dataloader, given)
        self.calibrate(*self._outputs(self.trainer.val_dataloaders))
        if len(getattr(getattr(module, "split", None), "test", ())):
            logits, labels, _ = self._outputs(module.test_dataloader())
            logits, found = self.calibrated(logits), self.metrics["test_"]
            found.update(logits.softmax(dim=1), labels)
            values = {"loss": self._loss(logits, labels), **found.compute()}
            self.test_metrics = pd.Series({name.removeprefix("test_"): float(value) for name, value in values.items()})

    @torch.no_grad()
    def _outputs(self, batches) -> list[Tensor]:
        """Logits, labels and distances of the cells of all devices, on the model's device."""
        training, new = self.training, self.temperature.new_empty
        parts = [(new(0, self.output_dim), new(0, dtype=torch.int64), new(0, 2))]
        self.eval()
        for batch in batches or ():
            cells = batch.cells.to(self.device)
            parts.append((self(cells), batch.labels.to(self.device), self.novelty.distances(cells)))
        self.train(training)
        return [torch.cat(gather_across_devices(torch.cat(part), self.device)) for part in zip(*parts, strict=True)]

    def calibrate(self, logits: Tensor, labels: Tensor, distances: Tensor) -> None:
        """Fit the temperature on cells that training has not learned from, and keep what they say of confidence.

        Takes (B, classes) logits of `forward`, (B,) true classes and (B, 2) from the novelty's `distances`; without
        cells the temperature is 1 and nothing is kept.
        """
        self.temperature.fill_(fit_temperature(logits.cpu().numpy(), labels.cpu().numpy()))
        logits = self.calibrated(logits.to(self.device))
        self.calibration_cells = None
        if len(labels):
            self.novelty.set_reference(logits, distances.to(self.device))
            self.calibration_cells = calibration_cells(logits.cpu().numpy(), labels.cpu().numpy())

    def facts(self) -> dict[str, Any]:
        """What belongs to the model beside its weights, as plain values and tensors."""
        cells, test = self.calibration_cells, self.test_metrics
        return super().facts() | {
            "classes": self.classes,
            "test_metrics": None if test is None else test.to_dict(),
            "calibration_cells": cells and [torch.as_tensor(part) for part in cells],
        }

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Restore what `facts` returned."""
        super().set_facts(facts)
        self.classes, cells, test = facts["classes"], facts["calibration_cells"], facts["test_metrics"]
        self.calibration_cells = cells and CalibrationCells(*(part.numpy() for part in cells))
        self.test_metrics = None if test is None else pd.Series(test, name="test", dtype=float)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, labels)
        smoothing = self.recipe.label_smoothing
        return torch.nn.functional.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=smoothing)

    def _track(self, stage: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        trainer, n_cells = self.trainer, loss.new_tensor(len(labels))
        self.metrics[stage].update(logits.softmax(dim=1), labels)
        self._sums[stage] = self._sums.get(stage, 0) + torch.stack([loss * n_cells, n_cells])
        if trainer.is_last_batch if stage == "train_" else trainer._evaluation_loop.batch_progress.is_last_batch:
            self._log_metrics(stage)

    def _log_metrics(self, stage: str) -> None:
        total, n_cells = sum(gather_across_devices(self._sums.pop(stage), self.device))
        values = {f"{stage}loss": total / n_cells, **self.metrics[stage].compute()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self.metrics[stage].reset()

    def _set_class_weights(self, weights: Tensor) -> None:
        wanted = f"give {self.output_dim} positive numbers, one per class."
        try:
            weights = torch.as_tensor(weights, dtype=self.class_weights.dtype)
        except (TypeError, ValueError) as error:
            raise SettingError(f"class_weights={weights!r}: {wanted}") from error
        if weights.shape != self.class_weights.shape or not ((weights > 0) & weights.isfinite()).all():
            raise SettingError(f"class_weights={weights}: {wanted}")
        self.class_weights.copy_(weights)

    def _summary(self) -> pd.Series:
        """What the model is, as printable texts by heading; the Series has the title as its name."""
        known, test = self.metadata | self.provenance, {} if self.test_metrics is None else self.test_metrics
        files = (file if isinstance(file, Mapping) else {"file": file} for file in listed(known.get("files")))
        network = {name: value for name, value in self.recipe.network_settings.items() if value != vars(Recipe)[name]}
        cells = known["cells"] if isinstance(known.get("cells"), Mapping) else {}
        versions = self.metadata.get("versions") or present_versions()
        texts = {
            "classes": ", ".join(self.classes or ()),
            "network": ", ".join(f"{name}={value}" for name, value in network.items()),
            "trained on": ", ".join(printable(file.get("dataset") or file.get("file")) for file in files),
            "cells": ", ".join(f"{printable(n)} {part}" for part, n in cells.items()),
            "calibrated": f"temperature {self.temperature.item():.3g}" if self.is_fitted else "",
            "test cells": ", ".join(f"{SHOWN[name]} {test[name]:.3f}" for name in SHOWN if name in test),
            **{name: known.get(name) for name in ("saved", "licence", "notes")},
            "versions": ", ".join(f"{name} {printable(number)}" for name, number in versions.items()),
        }
        kind = f" ({known['gene_kind']})" if known.get("gene_kind") else ""
        title = f"{self.input_dim:,} genes{kind} to {self.output_dim:,} classes"
        title = f"SIMSClassifier, {'' if self.is_fitted else 'not '}fitted: {printable(title)}"
        return pd.Series({name: printable(text) for name, text in texts.items() if text}, dtype=object, name=title)

    def __repr__(self) -> str:
        texts = self._summary()
        lines = [f"  {heading:10} {textwrap.shorten(text[:999], 100)}" for heading, text in texts.items()]
        return "\n".join([texts.name, *lines])

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", 100):
            return self._summary().to_frame().to_html()

    def card(self) -> str:
        """A short Markdown page about the model, to go with its file.

        >>> Path("cortex.md").write_text(model.card())
        """
        texts, test = self._summary(), {} if self.test_metrics is None else self.test_metrics
        facts = [*texts.items(), *((f"{name} on test cells", f"{value:.3f}") for name, value in test.items())]
        return "\n".join([f"# {texts.name}", "", *(f"- **{printable(name)}**: {text}" for name, text in facts), ""])


def present_versions() -> dict[str, str]:
    """The versions of the packages that decide what a model predicts."""
    return {package: version(package) for package in PACKAGES}
