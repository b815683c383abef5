"""The classifier: TabNet as a LightningModule that knows its genes and its classes (thesis section 0.3.1)."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor

from sims_kit.calibration import CalibrationCells, calibration_cells, fit_temperature
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.metrics import metric_collection
from sims_kit.model.about import summary
from sims_kit.model.devices import gathered
from sims_kit.model.divergence import divergence
from sims_kit.model.ensemble import make_network, mean_logits
from sims_kit.model.network_settings import DEFAULTS, plain_settings, wrong_setting
from sims_kit.model.profiles import ClassProfiles
from sims_kit.model.recipes import Recipe, get_recipe
from sims_kit.model.trainer import optimisation

NETWORK_SETTINGS = list(DEFAULTS)


class SIMSClassifier(pl.LightningModule):
    """Predicts one discrete label per cell from its expression.

    Parameters
    ----------
    input_dim, output_dim
        Number of genes and of classes: `DataModule.input_dim` and `DataModule.output_dim`.
    genes, classes
        The names behind the two, in order. When left out they are taken from the data module at `trainer.fit`.
    recipe
        ``"default"``, ``"thesis"`` (exactly the settings of section 0.3.2) or a `Recipe`.
    network
        Arguments of `TabNet` that differ from the recipe's, such as ``{"n_steps": 5}``, and ``n_models``: how many
        networks learn side by side and answer together (`sims_kit.model.ensemble.Ensemble`).
    optimizer, optimizer_params
        Any optimiser class and its arguments; the recipe's when left out.
    scheduler, scheduler_params
        Any learning-rate scheduler class and its arguments; the recipe's when left out, none when False.
        A scheduler that takes `total_steps` or `T_max` is told the length of the training and moves each step,
        every other one moves once an epoch, on the validation loss if it needs a metric.
    class_weights
        Weights of the classes in the loss, shape (output_dim,). When left out and the recipe weights classes,
        the data module's inverse label frequencies to that power, which come from training cells only. With weights
        given, `Recipe.adjustment` is left out, too.
    **recipe_settings
        Any other field of `Recipe` to change, such as ``label_smoothing=0.1``.

    Attributes
    ----------
    history
        DataFrame, one row per epoch: every tracked metric of training and validation cells.
    test_metrics
        Series of the metrics on held-out test cells once they were measured, else None.
    provenance
        What the model was trained on; JSON-like, saved with the model.
    about
        What the file it was loaded from says beside: date, versions, recipe, kind of genes, licence, notes; else empty.
    temperature
        What `forward`'s logits are divided by before the softmax: 1 until training ends, then fitted on the validation
        cells (`sims_kit.calibration.fit_temperature`).
    profiles
        What cells of each class are like (`sims_kit.model.profiles.ClassProfiles`), for the unseen score.
    calibration_cells
        What the validation cells say of confidence (`sims_kit.calibration.CalibrationCells`), for rejection and
        prediction sets; None without validation cells, or in files of older versions.

    Raises
    ------
    SettingError
        If lengths do not fit together or there are fewer than two classes.
    UnknownNameError
        If a setting does not exist; the nearest are offered.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        genes: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        recipe: str | Recipe = "default",
        network: Mapping[str, Any] | None = None,
        optimizer: type[torch.optim.Optimizer] | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
        scheduler: Callable | bool | None = None,
        scheduler_params: Mapping[str, Any] | None = None,
        class_weights: Tensor | None = None,
        **recipe_settings,
    ):
        super().__init__()
        for name, size in (("input_dim", input_dim), ("output_dim", output_dim)):
            if not isinstance(size, Integral):
                raise SettingError(f"{name} is {size!r}; give a whole number, such as that of a DataModule.")
        if output_dim < 2:
            raise SettingError(f"output_dim is {output_dim}; a classifier needs at least two classes.")
        self.recipe = _change(get_recipe(recipe), recipe_settings)
        self.input_dim, self.output_dim = input_dim, output_dim
        self.genes, self.classes = genes and list(genes), classes and list(classes)
        self._check_names()
        self.network_params = _network_settings(self.recipe, network)
        self.network = make_network(input_dim, output_dim, **self.network_params)
        self.optimizer_choice = _choice(optimizer, optimizer_params, "optimizer", self.recipe)
        self.scheduler_choice = (
            None if scheduler is False else _choice(scheduler, scheduler_params, "scheduler", self.recipe)
        )
        self.register_buffer("class_weights", torch.ones(output_dim), persistent=False)
        self.register_buffer("temperature", torch.ones(()))
        self.profiles = ClassProfiles(input_dim, output_dim)
        self.register_buffer("raised", torch.zeros(output_dim))  # what logits were raised by since they were trained
        self._is_finished = False
        self._weights_given = class_weights is not None
        if self._weights_given:
            self._set_class_weights(class_weights)
        self.metrics = torch.nn.ModuleDict()  # made when they are needed: they grow with the square of the classes
        self.history = pd.DataFrame()
        self.test_metrics: pd.Series | None = None
        self.provenance: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.calibration_cells: CalibrationCells | None = None

    @property
    def novelty(self) -> ClassProfiles:
        """As `profiles`."""
        return self.profiles

    @property
    def is_fitted(self) -> bool:
        """Whether its genes and classes have names and its weights have seen a training batch."""
        seen = self.network.encoder.att_transformers[0].bn.bn.num_batches_tracked
        return self.genes is not None and self.classes is not None and bool(seen > 0)

    def forward(self, cells: Tensor) -> Tensor:
        """Logits, shape (B, classes), of a batch of log-normalised cells, shape (B, genes), dense or CSR."""
        return self.network(cells).logits

    def probabilities(self, cells: Tensor) -> Tensor:
        """Probabilities, shape (B, classes): the full softmax at the model's temperature, rows sum to one."""
        return self.calibrated(self(cells)).softmax(dim=1)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits of `forward` at the model's temperature."""
        return logits / self.temperature

    def __repr__(self) -> str:
        return summary(self)

    def setup(self, stage: str) -> None:
        """Take genes, classes and class weights from the data module, where they were not given."""
        if not self.metrics:
            self.metrics.update(
                {part: metric_collection(self.output_dim, part) for part in ("train_", "val_", "test_")}
            )
        module = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or module is None:
            return
        if (module.input_dim, module.output_dim) != (self.input_dim, self.output_dim):
            raise SettingError(
                f"The model takes {self.input_dim} genes to {self.output_dim} classes, the data module holds "
                f"{module.input_dim} and {module.output_dim}. Build the model with input_dim=module.input_dim, "
                "output_dim=module.output_dim."
            )
        self.genes, self.classes = self.genes or module.genes, self.classes or module.classes
        self.provenance.update(module.provenance)
        self.about = {}  # of a file, whose weights are about to change
        if self.recipe.weight_classes and not self._weights_given:
            self._set_class_weights(module.class_weights ** float(self.recipe.weight_classes))

    def on_train_start(self) -> None:
        """Measure the genes on the training cells, where the network normalises by fixed numbers; undo a rise."""
        self.temperature.fill_(1)
        self.network.raise_logits(-self.raised)
        self.raised.zero_()
        if not self.is_fitted:  # a run that goes on keeps what it has
            self.network.measure_input(self.trainer.train_dataloader)

    def training_step(self, batch, batch_index: int) -> Tensor:
        """Loss of one batch; raises FloatingPointError when it is no longer a number."""
        try:
            outputs = self.network.outputs(batch.cells)
            losses = [
                self._loss(output.logits, batch.labels) + self.recipe.lambda_sparse * output.mask_entropy
                for output in outputs
            ]
            loss = sum(losses)  # each network's gradients are its own
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The training loss is {loss.item()}: training has diverged.")
        except FloatingPointError as error:
            raise divergence(self, batch.cells, batch_index, error) from error
        logits = mean_logits([output.logits for output in outputs])
        self._track("train_", logits, batch.labels, loss / len(losses))
        return loss

    def validation_step(self, batch, batch_index: int) -> None:
        """Track the metrics of one batch of validation cells."""
        self._evaluate("val_", batch)

    def test_step(self, batch, batch_index: int) -> None:
        """Track the metrics of one batch of test cells."""
        self._evaluate("test_", batch)

    def on_fit_start(self) -> None:
        """Nothing is finished yet."""
        self._is_finished = False

    def on_train_end(self) -> None:
        """Finish the model where it was trained; afterwards Lightning brings it back to the CPU."""
        self._finish()

    def on_fit_end(self) -> None:
        """Finish the model when nothing was left to train, as after a run that was cut off at its very end."""
        if not self._is_finished:
            self._finish()

    def _finish(self) -> None:
        """Measure batch normalisation on whole cells after gene dropout; then adjust logits, profiles, calibration."""
        if self.network.gene_dropout:
            self.network.refresh_statistics(self.trainer.train_dataloader)
        adjustment = self._adjustment()
        self.network.raise_logits(adjustment - self.raised)
        self.raised.copy_(adjustment)
        self.profiles.measure(self.trainer.train_dataloader)
        self.calibrate(*self._held_out(self.trainer.val_dataloaders))
        self._is_finished = True

    def calibrate(self, logits: Tensor, labels: Tensor, unlike: Tensor) -> None:
        """Fit the temperature on cells that training has not learned from, and keep what they say of confidence.

        Parameters
        ----------
        logits
            Shape (B, classes), of `forward`.
        labels
            Shape (B,), int64, the true classes. Without cells the temperature is 1 and nothing is kept.
        unlike
            Shape (B, 2), of `ClassProfiles.unlike`.
        """
        self.temperature.fill_(fit_temperature(logits.cpu().numpy(), labels.cpu().numpy()))
        logits = self.calibrated(logits.to(self.device))
        self.calibration_cells = None
        if len(labels):
            self.profiles.set_usual(logits, unlike.to(self.device))
            self.calibration_cells = calibration_cells(logits.cpu().numpy(), labels.cpu().numpy())

    def predict_step(self, batch, batch_index: int) -> Tensor:
        """As `probabilities`."""
        return self.probabilities(batch.cells)

    def configure_optimizers(self):
        """The recipe's optimiser and scheduler, or the ones given."""
        return optimisation(self, self.optimizer_choice, self.scheduler_choice)

    def _adjustment(self) -> Tensor:
        module = getattr(self.trainer, "datamodule", None)
        asked = self.recipe.logit_adjustment and self.network_params.get("additive")  # only then is there a bias
        if not asked or module is None or self._weights_given:
            return torch.zeros_like(self.raised)
        n_cells = np.bincount(module.labels[module.split.train], minlength=self.output_dim)
        return torch.from_numpy(self.recipe.adjustment(n_cells)).to(self.raised)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.recipe.label_smoothing
        )

    def _evaluate(self, stage: str, batch) -> None:
        logits = self.calibrated(self(batch.cells))
        self._track(stage, logits, batch.labels, self._loss(logits, batch.labels))

    def _track(self, stage: str, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.metrics[stage].update(logits.detach().softmax(dim=1), labels)
        options = dict(on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}loss", loss.detach(), **options)
        if stage != "train_" or self.trainer.is_last_batch:  # Lightning keeps the metrics until the epoch's end
            self.log_dict(self.metrics[stage], **options)

    @torch.no_grad()
    def _held_out(self, batches) -> list[Tensor]:
        """Logits, labels and `ClassProfiles.unlike` of validation cells, of all devices."""
        training, parts = self.training, []
        self.eval()
        for batch in batches or ():
            cells = batch.cells.to(self.device)
            parts.append((self(cells), batch.labels.to(self.device), self.profiles.unlike(cells)))
        self.train(training)
        if not parts:
            return [torch.empty(0, self.output_dim), torch.empty(0, dtype=torch.int64), torch.empty(0, 2)]
        found = [torch.cat(part) for part in zip(*parts, strict=True)]
        return [torch.cat(gathered(part, self.device)) for part in found]

    def _set_class_weights(self, weights: Tensor) -> None:
        try:
            weights = torch.as_tensor(weights, dtype=self.class_weights.dtype)
        except (TypeError, ValueError) as error:
            raise SettingError(f"class_weights={weights!r}: give {self.output_dim} positive numbers.") from error
        if weights.shape != self.class_weights.shape or not (weights > 0).all():
            raise SettingError(
                f"class_weights has shape {tuple(weights.shape)} and smallest value {weights.min():.3g}; expected "
                f"{self.output_dim} positive numbers, one per class."
            )
        self.class_weights.copy_(weights)

    def _check_names(self) -> None:
        for names, size, what in ((self.genes, self.input_dim, "genes"), (self.classes, self.output_dim, "classes")):
            if names is not None and len(names) != size:
                raise SettingError(f"{len(names)} {what} were named, but the model has {size}.")


def _choice(given, given_params, kind: str, recipe: Recipe):
    """What to make and with which arguments: the one given, else the recipe's; None when there is neither."""
    make = given or getattr(recipe, kind)
    if make is None:
        return None
    if not callable(make):
        raise SettingError(f"{kind}={make!r}: give a class of torch.optim, such as torch.optim.AdamW.")
    own = getattr(recipe, f"{kind}_params") if make is getattr(recipe, kind) else {}
    params, options = {**own, **(given_params or {})}, inspect.signature(make).parameters
    takes_any = any(option.kind is inspect.Parameter.VAR_KEYWORD for option in options.values())
    for name in () if takes_any else params.keys() - options.keys():
        raise UnknownNameError(f"argument of {make.__name__}", name, list(options)[1:])
    return make, params


def _change(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    for name, value in settings.items():
        if name in NETWORK_SETTINGS:
            raise SettingError(f"{name} is a setting of the network: pass network={{{name!r}: {value!r}}}.")
        if name not in fields:
            raise UnknownNameError("setting", name, fields)
    return dataclasses.replace(recipe, **settings)


def _network_settings(recipe: Recipe, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """The recipe's, with those given."""
    if not isinstance(network or {}, Mapping):
        raise SettingError(f"network={network!r}: give names and values, such as {{'n_steps': 3}}.")
    settings = plain_settings({**recipe.network, **(network or {})})
    for name in settings:
        if name not in NETWORK_SETTINGS:
            raise UnknownNameError("network setting", name, NETWORK_SETTINGS)
    if wrong := wrong_setting(settings):
        raise SettingError(f"In the network's settings, {wrong}")
    return settings
