"""All settings of a training run as one flat dataclass, and the two recipes: the thesis's and the default."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pytorch_lightning as pl
import torch

from sims_kit.errors import SettingError, UnknownNameError, refuse_unknown

NUMBERS = {bool: "True or False", int: "a whole number", float: "a number"}
LIMITS = {  # the smallest value of each number, and the value that it stays below
    **dict.fromkeys(
        ("n_models", "genes_per_class", "n_d", "n_a", "n_steps", "n_shared", "gamma", "virtual_batch_size"), (1, inf)
    ),
    **dict.fromkeys(("n_independent", "momentum", "input_momentum", "epsilon", "patience", "weight_classes"), (0, inf)),
    **dict.fromkeys(("logit_adjustment", "lambda_sparse", "gradient_clip_val"), (0, inf)),
    **dict.fromkeys(("gene_dropout", "label_smoothing", "linear_share"), (0, 1)),
    **dict(batch_size=(2, inf), max_epochs=(1, inf), training_steps=(1, inf), steps_per_class=(0, inf)),
    "mask_temperature": (1e-6, inf),
}


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; `RECIPES` has the two that are used, with their reasons.

    Examples
    --------
    >>> recipe = dataclasses.replace(sk.RECIPES["default"], n_steps=3, label_smoothing=0.1)
    >>> model = sk.fit(cells, "cell_type", recipe=recipe)
    >>> model = sk.fit(cells, "cell_type", recipe=dict(n_steps=3))  # the same, from the default recipe
    """

    # The network. Defaults are those of pytorch-tabnet.
    n_models: int = 1  # networks trained side by side, whose probabilities are averaged
    genes_per_class: int | None = None  # genes that the networks read, chosen on the training cells; None: all
    n_d: int = 8  # width of the decision part of each step
    n_a: int = 8  # width of the attention part of each step
    n_steps: int = 3  # decision steps, each with a mask of its own
    gamma: float = 1.3  # reuse of genes: 1 allows each gene in one step only, larger values relax this
    n_shared: int = 2  # gated layers that all steps share
    n_independent: int = 2  # gated layers of each step's own
    virtual_batch_size: int = 128  # cells in a ghost batch of the batch normalisation
    momentum: float = 0.02  # of running statistics within steps
    input_momentum: float = 0.01  # of running statistics of the input
    mask_start: float = 1.0  # initial weight of the attention's batch normalisation; small values start broad
    rescale_masked: bool = False  # multiply masked genes by the mask's effective number of genes
    gene_dropout: float = 0.0  # share of the genes hidden from each cell in training
    mask_temperature: float | None = None  # mask logits of expressed genes are divided by it; None: over all genes
    fixed_scale: bool = False  # normalise genes by fixed means and one variance instead of by batch
    additive: bool = False  # add a linear function of the masked genes to the logits
    epsilon: float = 1e-15  # inside the logarithm of the mask entropy
    # The training.
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    optimizer_params: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.01})
    scheduler: type | None = None  # one with `total_steps`, `T_max` or `max_lr` takes them from the training and the lr
    scheduler_params: Mapping[str, Any] = field(default_factory=dict)
    weight_classes: float = 0.0  # class weights are inverse frequencies of the training cells to this power
    logit_adjustment: float = 0.0  # over the fourth root of a class's cells, is added to its logits after training
    linear_share: float = 0.0  # of linear classifiers in the answer, as a geometric mean with the networks'; 0: none
    label_smoothing: float = 0.0  # share of the target spread evenly over the classes
    lambda_sparse: float = 0.0  # weight of the mask entropy in the loss
    batch_size: int | None = None  # cells; None: a hundredth of the training cells, within 32 to 256
    max_epochs: int | None = None  # None: as many as make these steps, within 4 to 250
    training_steps: int = 500  # optimiser steps, at least, when `max_epochs` is None
    steps_per_class: int = 0  # optimiser steps for each class, where this makes more
    patience: int | None = None  # epochs without a better `monitor` before stopping; None: never stop early
    monitor: str = "val_loss"  # decides the best epoch
    monitor_mode: str = "min"
    best_epoch: bool = True  # end with the weights of the best epoch where there are validation cells, else of the last
    gradient_clip_val: float = 0.5  # largest norm of the gradient

    def __post_init__(self):
        for setting in fields(self):
            name, value, kinds = setting.name, getattr(self, setting.name), get_args(setting.type) or (setting.type,)
            value = value.item() if isinstance(value, np.generic) else value  # files and loggers hold Python's numbers
            object.__setattr__(self, name, dict(value) if isinstance(value, Mapping) else value)
            number = next((number for number in NUMBERS if number in kinds), None)
            if number is None or (value is None and type(None) in kinds):
                continue
            wanted, (least, below) = NUMBERS[number], LIMITS.get(name, (-inf, inf))
            is_kind = type(value) is number or (type(value), number) == (int, float)
            if not (is_kind and least <= value < below):  # NaN is never in range
                wanted += f", at least {least}" if least > -inf else ""
                wanted += f", below {below}" if below < inf else ""
                wanted += ", or None" if type(None) in kinds else ""
                raise SettingError(f"{name} is {repr(value)[:200]}; give {wanted}.")
        if self.monitor_mode not in ("min", "max"):
            raise SettingError(f"monitor_mode is {self.monitor_mode!r}; give 'min' or 'max'.")
        for kind in ("optimizer", "scheduler"):
            _check_arguments(kind, getattr(self, kind), getattr(self, f"{kind}_params"))

    @property
    def network_settings(self) -> dict[str, Any]:
        """The settings of the network, as `TabNet` takes them."""
        return {name: getattr(self, name) for name in NETWORK_FIELDS}

    def changed(self, **settings) -> "Recipe":
        """The recipe with other settings; arguments of the same optimiser and scheduler are added to its own."""
        refuse_unknown("The recipe", settings.keys() - set(FIELDS), FIELDS, HINTS, kind="setting")
        for kind in ("optimizer", "scheduler"):
            is_same = settings.get(kind, getattr(self, kind)) is getattr(self, kind)
            given = settings.get(f"{kind}_params", {})
            if is_same and isinstance(given, Mapping):
                settings[f"{kind}_params"] = {**getattr(self, f"{kind}_params"), **given}
            elif not is_same:
                settings.setdefault(f"{kind}_params", {})
        return replace(self, **settings)

    def plain(self) -> dict[str, Any]:
        """All settings as JSON has them: classes by their names."""
        return json.loads(json.dumps(vars(self), default=lambda value: getattr(value, "__name__", None) or repr(value)))

    def schedule(
        self,
        n_training_cells: int,
        batch_size: int | None = None,
        max_epochs: int | None = None,
        n_devices: int = 1,
        n_classes: int = 1,
    ) -> tuple[int, int]:
        """Cells per batch and device, and number of epochs: many for small data; large data is seen four times.

        A `batch_size` given here is that of each device; the recipe's is divided among them.

        >>> sk.Recipe(training_steps=1000).schedule(3_200)
        (32, 10)
        """
        together = batch_size * n_devices if batch_size else self.batch_size
        together = together or min(256, max(32, n_training_cells // 100))
        steps_per_epoch = max(1, round(n_training_cells / together))
        steps = max(self.training_steps, self.steps_per_class * n_classes)
        epochs = min(250, max(4, round(steps / steps_per_epoch)))
        return batch_size or max(2, round(together / n_devices)), max_epochs or self.max_epochs or epochs


def _check_arguments(kind: str, make: Any, params: Any) -> None:
    """Refuse an optimiser or scheduler that is no class, and arguments that it does not have."""
    if not isinstance(params, Mapping):
        raise SettingError(f"{kind}_params={params!r}: give names and values, such as {{'lr': 0.01}}.")
    if make is None and kind == "scheduler":
        return
    if not callable(make):
        raise SettingError(f"{kind}={make!r}: give a class of torch.optim, such as torch.optim.AdamW.")
    options = inspect.signature(make).parameters
    unknown = params.keys() - options.keys()
    if unknown and not any(option.kind is option.VAR_KEYWORD for option in options.values()):
        raise UnknownNameError(f"argument of {make.__name__}", min(unknown), list(options)[1:])


FIELDS = tuple(setting.name for setting in fields(Recipe))
NETWORK_FIELDS = FIELDS[: FIELDS.index("optimizer")]
HINTS = {  # what to write instead of words of other packages, and of words that belong elsewhere
    **{name: f"It is Lightning's: pass trainer=dict({name}=...)." for name in inspect.signature(pl.Trainer).parameters},
    **{name: f"It is a setting of the recipe: pass recipe=dict({name}=...)." for name in FIELDS},
    **dict.fromkeys(("lr", "learning_rate"), "Pass recipe=dict(optimizer_params={'lr': ...})."),
    "weight_decay": "Pass recipe=dict(optimizer_params={'weight_decay': ...}).",
    **dict.fromkeys(("network", "model_params"), "Settings are fields of the recipe: pass recipe=dict(n_steps=3)."),
    **dict.fromkeys(("epochs", "n_epochs"), "Write max_epochs=..."),
    "class_weights": "Pass class_weights=... to fit or SIMSClassifier, or set weight_classes, a power.",
    **dict.fromkeys(("batch_key", "sample_key", "donor_key"), "Name the column of donors or samples: groups=..."),
    **dict.fromkeys(("labels_key", "label_key", "class_label", "labels"), "Name the column of the labels: label=..."),
    **dict.fromkeys(("gpus", "use_gpu"), "Pass devices=..."),
    **dict.fromkeys(("enable_progress_bar", "progress_bar"), "Pass verbose=False for silence."),
    **dict.fromkeys(("threshold", "reject"), "It belongs to sims_kit.annotate(query, model, ...)."),
    "n_top_genes": "Select genes first: cells[:, cells.var['highly_variable']], or genes=[...].",
    "majority_voting": "It belongs to annotation: sims_kit.annotate(query, model, vote='auto').",
    "random_state": "Pass seed=...",
    "use_raw": "Pass layer='raw'.",
}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Thesis section 0.3.2. What it leaves open is pytorch-tabnet's own default.
        "thesis": Recipe(
            optimizer=torch.optim.Adam,
            optimizer_params=dict(lr=0.01, weight_decay=1e-3),
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
            scheduler_params=dict(factor=0.75, patience=20),  # epochs without a better validation loss
            weight_classes=1,
            lambda_sparse=1e-3,  # pytorch-tabnet's default
            batch_size=32,  # "between 8 and 32 performed most effectively"
            max_epochs=500,
            patience=4,
            monitor="val_accuracy_micro",
            monitor_mode="max",
            gradient_clip_val=0.5,
        ),
        # One recipe for every dataset, chosen on training and validation cells alone.
        "default": Recipe(
            n_models=4,  # averaging was better on all four tissues tried, benchmarks/RECIPE.md
            genes_per_class=100,
            n_d=32,
            n_a=32,  # with TabNet's 8, several classes are never learned
            n_steps=1,  # three steps were no better with narrow masks; not tried again since
            n_shared=1,  # one gated layer before and after the mask; more of them overfit
            n_independent=0,
            mask_temperature=10.0,  # some 50 genes per mask
            rescale_masked=True,  # broad and narrow masks pass on values of one size
            fixed_scale=True,  # no noise from small batches, and rare genes stay small
            additive=True,  # what makes linear methods strong on small data
            gene_dropout=0.2,  # a class has to be recognised by many genes, also where some are missing
            optimizer_params=dict(lr=0.01, weight_decay=3e-3),  # three times the thesis's: better on all tissues tried
            scheduler=torch.optim.lr_scheduler.OneCycleLR,  # warm-up, then down to zero
            weight_classes=1,  # gains most where many types are rare, and costs little where few types overlap
            logit_adjustment=4.0,  # classes with few cells are overfitted, then under-predicted
            linear_share=0.4,  # together better than either on most tissues
            training_steps=200,  # more did not help on real cells
            steps_per_class=20,  # but many types need them
            best_epoch=False,  # at a learning rate of zero the last epoch is as good, and not chosen by chance
        ),
    }
)


def get_recipe(recipe: str | Recipe | Mapping[str, Any]) -> Recipe:
    """The recipe of that name, the recipe itself, or the default one with some settings changed."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return RECIPES["default"].changed(**recipe)
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    return RECIPES[recipe]
