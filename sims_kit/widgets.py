"""Figures with sliders, and curves that grow while a model trains; readers without a kernel see a picture."""

import time
from base64 import b64encode
from collections.abc import Callable
from html import escape
from io import BytesIO

import ipywidgets
import numpy as np
import pytorch_lightning as pl
from IPython.display import HTML, Image, display
from matplotlib import pyplot as plt
from pytorch_lightning.callbacks import Callback

from sims_kit import plotting
from sims_kit.errors import SettingError
from sims_kit.progress import in_notebook

__all__ = ["LiveTraining", "slider_figure"]

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def slider_figure(draw: Callable, **sliders) -> ipywidgets.VBox:
    """Return a figure that is drawn again whenever one of its sliders moves; `controls` has these by name.

    `draw` is called with the sliders' values by name; it returns Axes, a Figure or any artist, or None if it drew with
    pyplot. An error is raised at the start, and written under the figure later. Each slider is an ipywidgets control,
    or what `ipywidgets.interact` makes one from: ``(0, 10)`` and ``(0.0, 1.0, 0.1)`` a slider, a list a menu, a truth
    value a tick box. The first state is saved with the notebook as a picture.

    >>> figure = sk.widgets.slider_figure(lambda slope: plt.plot([0, slope]), slope=(0.0, 1.0, 0.1))
    >>> figure.controls["slope"].value = 0.8
    """
    if not sliders:
        raise SettingError("slider_figure needs a slider; pass one for each argument of draw, as gamma=(1.0, 2.0).")
    controls = {name: ipywidgets.interactive.widget_from_abbrev(given) for name, given in sliders.items()}
    for name, control in controls.items():
        if control is None:
            given = f"{name}={sliders[name]!r}"
            raise SettingError(f"{given} makes no control; expected (low, high), a list, or a control.")
        control.description = control.description or name
    return _SliderFigure(draw, controls)


class LiveTraining(Callback):
    """Curves of training and validation cells that grow while a model trains; outside a notebook nothing is drawn.

    Drawing never takes more than a tenth of the time.

    >>> model = sk.fit(cells, "cell_type", callbacks=sk.widgets.LiveTraining())
    """

    _shown, _due = None, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reserve a place in the output above the progress bar."""
        text = HTML("<p>Curves are drawn once there are epochs to show.</p>")
        self._shown = display(text, display_id=True) if in_notebook() and trainer.is_global_zero else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the epochs so far, if the time has come."""
        if time.monotonic() >= self._due:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw all epochs; this picture stays."""
        if self._shown is None or not len(getattr(pl_module, "history", ())):
            return
        start = time.monotonic()
        self._shown.update(Image(_png(plotting.training_curves(pl_module.history))))
        self._due = start + 11 * (time.monotonic() - start)


class _SliderFigure(ipywidgets.VBox):
    """Controls over a picture; as a notebook's output both a widget and, for readers without a kernel, the picture."""

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
        except Exception as error:  # readers may write `draw` themselves, and would not look into the kernel's log
            self.trouble.value = f"<pre>{escape(f'{type(error).__name__}: {error}')}</pre>"

    def _drawn(self) -> bytes:
        return _png(self.draw(**{name: control.value for name, control in self.controls.items()}))


def _png(drawn) -> bytes:
    """The figure of what was drawn as a picture, closed, so that no notebook shows it a second time."""
    figure = plt.gcf() if drawn is None else np.ravel(drawn)[0].get_figure(root=True)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
