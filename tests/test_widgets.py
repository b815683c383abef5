"""Widgets: sliders that redraw, pictures that stay, and curves that grow while a model trains."""

from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

import sims_kit as sk
from sims_kit import widgets


def bar(height, colour="red"):
    """A bar of that height."""
    _, ax = plt.subplots(figsize=(2, 2))
    ax.bar([0], [height], color=colour)
    ax.set_ylim(0, 1)
    return ax


def redness(picture: bytes) -> float:
    """The share of red pixels."""
    red, green, _ = np.asarray(Image.open(BytesIO(picture)).convert("RGB"), dtype=int).transpose(2, 0, 1)
    return ((red > 200) & (green < 50)).mean()


def test_slider_redraws_the_figure():
    """A higher bar is more red; the saved picture is that of the start, and no figure stays open."""
    plt.close("all")  # of other tests
    figure = widgets.slider_figure(bar, height=(0.0, 1.0, 0.1), colour=["red", "blue"])
    start = redness(figure.picture.value)
    figure.controls["height"].value = 1.0
    assert redness(figure.picture.value) > 1.5 * start > 0
    figure.controls["colour"].value = "blue"
    assert redness(figure.picture.value) == 0
    shown = figure._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/png", widgets.WIDGET_VIEW}
    assert redness(b64decode(shown["image/png"])) == start and not plt.get_fignums()
    for drawn in (lambda x: None, lambda x: plt.gcf(), lambda x: plt.gcf().subplots(1, 2)):  # what `draw` may return
        assert Image.open(BytesIO(widgets.slider_figure(drawn, x=(0, 1)).picture.value)).width > 100


def test_trouble_is_told_under_the_figure():
    """At the start an error, or what is no slider, is raised; later it is written under the figure until it is over."""

    def draw(x):
        plt.plot([0, 1 / x])

    with pytest.raises(ZeroDivisionError):
        widgets.slider_figure(draw, x=ipywidgets.IntSlider(0))
    figure = widgets.slider_figure(draw, x=(control := ipywidgets.IntSlider(1, description="how steep")))
    assert figure.controls == {"x": control} and control.description == "how steep"
    figure.controls["x"].value = 0
    assert "ZeroDivisionError: division by zero" in figure.trouble.value
    figure.controls["x"].value = 2
    assert figure.trouble.value == ""
    refused = {"needs a slider": {}, "height=<object": {"height": object()}, "min=1": {"height": (1, 0)}}
    for words, sliders in refused.items():
        with pytest.raises(ValueError, match=words):
            widgets.slider_figure(bar, **sliders)


@pytest.mark.parametrize("notebook", [True, False])
def test_live_training(make_cells, monkeypatch, notebook):
    """In a notebook the curves take their place, then grow with the epochs; elsewhere nothing is shown."""
    shown, lengths, curves = [], [], sk.plotting.training_curves
    handle = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(widgets, "display", lambda *a, **o: shown.append(*a) or handle)
    monkeypatch.setattr(widgets, "in_notebook", lambda: notebook)
    monkeypatch.setattr(sk.plotting, "training_curves", lambda h, **o: lengths.append(len(h)) or curves(h, **o))
    monkeypatch.setattr(widgets, "time", SimpleNamespace(monotonic=lambda: 0.0))  # however long it takes
    live = widgets.LiveTraining()
    model = sk.fit(make_cells(), "cell_type", max_epochs=3, callbacks=live, logger=False, verbose=False)
    assert len(model.history) == 3
    assert lengths == ([1, 2, 3] if notebook else [])
    assert [type(picture).__name__ for picture in shown] == (["HTML"] + ["Image"] * 3 if notebook else [])
