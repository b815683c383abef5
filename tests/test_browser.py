"""In a real browser: a lesson runs in JupyterLab and its slider moves a figure; the site can be read."""

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LESSON = next((ROOT / "notebooks").glob("03_*.ipynb"), ROOT / "notebooks/02_learning_a_classifier.ipynb")
MINUTES = 60_000  # milliseconds
SHOTS = ROOT / "build/screenshots"  # to be looked at; playwright makes the folder

WIDGETS = (  # the package's own, each in a cell
    """import warnings

from matplotlib import pyplot as plt

import sims_kit as sk
cells = sk.datasets.simulate(n_cells=200, n_genes=400, seed=0)
with warnings.catch_warnings(action="ignore"):
    model = sk.fit(cells, "cell_type", max_epochs=4, logger=False, callbacks=sk.widgets.LiveTraining())""",
    "sk.widgets.slider_figure(lambda slope: plt.plot([0, slope]), slope=(0.0, 1.0, 0.1))",
)

# what is asked of JupyterLab's own application object
NOTEBOOK = "const book = jupyterapp.shell.currentWidget; const cells = [...book.content.model.cells];"
READY = """() => {
    const book = window.jupyterapp?.shell?.currentWidget;
    return book?.sessionContext?.session?.kernel?.status === "idle" && book.content.model.cells.length > 3;
}"""
COUNTS = f"() => {{ {NOTEBOOK} return cells.filter(c => c.type === 'code').map(c => c.executionCount); }}"
TROUBLE = f"""() => {{ {NOTEBOOK}
    const outputs = cells.flatMap(c => c.toJSON().outputs ?? []);
    return outputs.filter(o => o.output_type === "error" || o.name === "stderr").map(o => JSON.stringify(o));
}}"""
SHOW_SLIDER = f"""async () => {{ {NOTEBOOK}
    const view = "application/vnd.jupyter.widget-view+json";
    const place = cells.findIndex(c => (c.toJSON().outputs ?? []).some(o => view in (o.data ?? {{}})));
    if (place < 0) return false;
    book.content.activeCellIndex = place;
    await book.content.scrollToItem(place, "center");
    book.content.widgets[place].node.dataset.here = "slider";
    return true;
}}"""
REDRAWN = """(source) => {
    const pictures = document.querySelectorAll("[data-here=slider] img");
    return pictures.length && pictures[pictures.length - 1].getAttribute("src") !== source;
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed: make browser installs it"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the system's, as in apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page():
    """A page of a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1400, "height": 1000})
        browser.close()


@pytest.fixture(scope="module")
def lab(make_notebook, tmp_path_factory):
    """The address of a JupyterLab on copies of a lesson and `WIDGETS`, with settings and state of its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    shutil.copy(LESSON, folder / "notebooks")
    make_notebook(folder / "notebooks/widgets.ipynb", *WIDGETS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER{kind}_DIR": str(folder / kind) for kind in ("_CONFIG", "LAB_SETTINGS", "LAB_WORKSPACES")}
    environment = os.environ | own | {"SIMS_KIT_FAST": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url=None", f"--port={port}"]
    options += ["--IdentityProvider.token=", f"--notebook-dir={folder / 'notebooks'}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(120):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize("name", [LESSON.name, "widgets.ipynb"])
def test_notebook_runs_in_jupyterlab(page, lab, name):
    """All cells run without error or stderr; a slider's move gives another figure."""
    page.goto(f"{lab}/lab/tree/{name}?reset")
    page.wait_for_function(READY, timeout=2 * MINUTES)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")  # waits for the last cell
    assert page.evaluate(COUNTS) == list(range(1, len(page.evaluate(COUNTS)) + 1))
    assert page.evaluate(TROUBLE) == []
    page.screenshot(path=SHOTS / f"{Path(name).stem}.png")
    if name == "widgets.ipynb":  # the curves stand above the bar, which is redrawn in place: one picture, one bar
        outputs = page.evaluate(f"() => {{ {NOTEBOOK} return cells[2].toJSON().outputs; }}")
        assert [output["output_type"] for output in outputs] == ["stream", "display_data", "stream"]
        assert "image/png" in outputs[1]["data"] and "".join(outputs[2]["text"]).count("training") == 1

    assert page.evaluate(SHOW_SLIDER), "no cell shows a widget"
    cell = page.locator("[data-here=slider]")
    cell.locator(".noUi-handle").first.wait_for(timeout=MINUTES)
    figure = cell.locator("img").last
    before, source = figure.screenshot(), figure.get_attribute("src")
    cell.locator(".noUi-handle").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(REDRAWN, arg=source, timeout=MINUTES)
    page.wait_for_function(READY, timeout=MINUTES)
    page.wait_for_timeout(1_000)  # milliseconds, until the last picture is in its place
    cell.screenshot(path=SHOTS / f"{Path(name).stem}_slider.png")
    assert figure.screenshot() != before and page.evaluate(TROUBLE) == []


@pytest.mark.skipif(find_spec("sphinx_book_theme") is None, reason="the theme is not installed: make docs installs it")
def test_site_can_be_read(page, tmp_path):
    """From the first page to a lesson: its figures are drawn, a quiz answers, a solution unfolds."""
    options = ["-q", "-c", "docs", "-d", str(tmp_path / "doctrees")]
    subprocess.run([sys.executable, "-m", "sphinx", *options, ".", str(tmp_path / "site")], cwd=ROOT, check=True)
    page.goto((tmp_path / "site/README.html").as_uri())
    page.screenshot(path=SHOTS / "site.png")
    page.get_by_role("link", name="Learning a classifier").first.click()
    assert page.locator("article h1").inner_text().startswith("Learning a classifier")
    assert page.evaluate("[...document.images].filter(i => i.src.includes('_images')).every(i => i.naturalWidth > 50)")
    solution = page.locator(".tag_solution").first
    assert not solution.get_by_text("assert").is_visible()
    solution.locator("summary").click()
    assert solution.get_by_text("assert").is_visible()
    quiz, known = page.locator("section[id^=quiz]"), yaml.safe_load((ROOT / "sims_kit/lessons/02.yaml").read_text())
    (option, why), *_ = known["quizzes"][1]["wrong"].items()
    quiz.get_by_text(option).first.click()
    assert quiz.get_by_text(why).first.is_visible()
    quiz.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "quiz.png")
