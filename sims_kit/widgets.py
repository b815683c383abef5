"""What moves in a notebook: figures with sliders, and curves that grow while a model trains.

Each leaves a picture behind, so that a reader without a kernel loses nothing.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO

import ipywidgets
import numpy as np
import pandas as pd
import pytorch_lightning as pl
from IPython.display import HTML, Image, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback

from sims_kit import plotting
from sims_kit.errors import SettingError
from sims_kit.progress import in_notebook

DRAWING = 0.1  # of the time, at most, goes into curves that are drawn while a model trains
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def slider_figure(draw: Callable, **sliders) -> ipywidgets.VBox:
    """A figure that is drawn anew whenever one of its sliders moves.

    Its first state is saved with the notebook as a picture; so give the sliders a start that shows something.

    Parameters
    ----------
    draw
        Is called with the values of the sliders, by name, and returns the Axes or the Figure that it drew, or None
        where it drew with pyplot.
    **sliders
        For each argument of `draw` an ipywidgets control, or what `ipywidgets.interact` makes one from: ``(0, 10)`` and
        ``(0.0, 1.0, 0.1)`` a slider, a list of choices a menu, a truth value a box to tick.

    Returns
    -------
    ipywidgets.VBox
        Shown where it is the last line of a cell, or by `display`. `controls` has the sliders by name.

    Raises
    ------
    SettingError
        If there is no slider, or no control can be made of what is given for one. What `draw` raises at the start is
        raised; later it is written under the figure.
    """
    if not sliders:
        raise SettingError("slider_figure needs a slider; pass one for each argument of draw, as gamma=(1.0, 2.0).")
    return _SliderFigure(draw, {name: _control(name, given) for name, given in sliders.items()})


def mask_explorer(explanation, *, n_genes: int = 12, cell: int = 0) -> ipywidgets.VBox:
    """The masks of one cell after the other, and what each gene adds to the cell's call.

    Cells are in the order of their predicted labels, so that the slider runs through one label after the other. Scales
    are the same for all cells.

    Parameters
    ----------
    explanation
        What `sims_kit.explain` returns; with ``steps=True`` the mask of each decision step is drawn.
    n_genes
        Genes to draw for a cell: those it looks at most.
    cell
        The place in that order of the cell to begin with.

    Raises
    ------
    SettingError
        If `n_genes` is less than 1, or there is no such cell.
    """
    order, n_cells = np.argsort(explanation.predicted, kind="stable"), len(explanation.predicted)
    if n_genes < 1 or not 0 <= cell < n_cells:
        raise SettingError(f"n_genes={n_genes}, cell={cell}; expected 1 or more, and a cell from 0 to {n_cells - 1}.")
    masks = explanation.steps or (explanation.cells,)
    names = [f"step {number}" for number in range(1, len(masks) + 1)] if explanation.steps else ["mask"]
    highest = max(mask.max() for mask in masks)
    furthest = abs(explanation.contributions).max() or 1.0

    def draw(cell):
        row = order[cell]
        genes = np.argsort(-explanation.cells[[row]].toarray()[0], kind="stable")[:n_genes]
        weights = {name: mask[[row]].toarray()[0, genes] for name, mask in zip(names, masks, strict=True)}
        table = pd.DataFrame(weights, index=explanation.gene_names[genes])
        table["contribution"] = explanation.contributions[[row]].toarray()[0, genes]
        axes = plotting.cell_masks(table, largest=highest, furthest=furthest)
        axes[0].figure.suptitle(f"{explanation.cell_names[row]}, called {explanation.predicted[row]}", fontsize=10)
        return axes

    return slider_figure(draw, cell=ipywidgets.IntSlider(cell, 0, n_cells - 1))


class LiveTraining(Callback):
    """Curves of training and validation cells that grow while a model trains, above the progress bar.

    ``sk.fit(cells, label, callbacks=sk.widgets.LiveTraining())``. Outside a notebook nothing is drawn, and the bar is
    all there is; the same where no history is kept.

    Parameters
    ----------
    metrics
        As in `sims_kit.plotting.training_curves`.
    seconds
        From one drawing to the next, at least. A slow drawing waits longer.
    """

    def __init__(self, *, metrics: Sequence[str] = ("loss", "accuracy_micro", "median_f1"), seconds: float = 2.0):
        self.metrics, self.seconds = metrics, seconds
        self._shown, self._due = None, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take a place in the output before the bar does, so that the bar can be redrawn under the curves."""
        words = HTML("<p>Curves are drawn once there are epochs to show.</p>")
        self._shown = display(words, display_id=True) if in_notebook() and trainer.is_global_zero else None
        self._due = time.monotonic() + self.seconds

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the epochs so far, if the time has come."""
        if time.monotonic() >= self._due:
            self._draw(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw all epochs; this picture stays."""
        self._draw(pl_module)

    def _draw(self, model: pl.LightningModule) -> None:
        if self._shown is None or not len(getattr(model, "history", ())):
            return
        start = time.monotonic()
        self._shown.update(Image(_png(plotting.training_curves(model.history, metrics=self.metrics))))
        self._due = time.monotonic() + max(self.seconds, (time.monotonic() - start) / DRAWING)


class _SliderFigure(ipywidgets.VBox):
    """Controls over a picture. As a notebook's output it is both a widget and, for readers without one, the picture."""

    _ipython_display_ = None  # ipywidgets 7 would leave the picture out

    def __init__(self, draw: Callable, controls: dict[str, ipywidgets.ValueWidget]):
        self.draw, self.controls = draw, controls
        self.picture, self.trouble = ipywidgets.Image(value=self._drawn(), format="png"), ipywidgets.HTML()
        self.picture.layout.max_width, self.picture.layout.align_self = "100%", "flex-start"  # not stretched
        self.start = self.picture.value
        super().__init__([*controls.values(), self.picture, self.trouble])
        for control in controls.values():
            control.observe(self._redraw, names="value")

    def _repr_mimebundle_(self, **kwargs) -> dict:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        text = f"Figure with controls: {', '.join(self.controls)}"
        return {"text/plain": text, "image/png": b64encode(self.start).decode(), WIDGET_VIEW: view}

    def _redraw(self, change) -> None:
        try:
            self.picture.value, self.trouble.value = self._drawn(), ""
        except Exception as error:  # the kernel's log is where nobody looks; the reader may have written `draw`
            self.trouble.value = f"<pre>{escape(f'{type(error).__name__}: {error}')}</pre>"

    def _drawn(self) -> bytes:
        return _png(self.draw(**{name: control.value for name, control in self.controls.items()}))


def _control(name: str, given) -> ipywidgets.ValueWidget:
    try:
        control = ipywidgets.interactive.widget_from_abbrev(given)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{name}={given!r}: {error}") from error
    if control is None:
        raise SettingError(f"{name}={given!r} makes no control; expected a range (0, 10), a list, or a control.")
    control.description = control.description or name
    return control


def _png(drawn) -> bytes:
    """The figure of what was drawn as a picture, closed, so that no notebook shows it a second time."""
    if not isinstance(drawn, Figure):
        drawn = plt.gcf() if drawn is None else np.ravel(drawn)[0].get_figure(root=True)
    buffer = BytesIO()
    drawn.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(drawn)
    return buffer.getvalue()
