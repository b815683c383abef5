"""The house: how large it is, what may lean on what, and what it shows (CONTRIBUTING.md)."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import sims_kit as sk

ROOT = Path(__file__).resolve().parent.parent
FLOORS = """
text errors files progress
datasets metrics calibration
cells plotting lessons
model
training annotation explanation estimator widgets
studies __main__ __init__
"""
ROOMS = ("calibration", "datasets", "lessons", "metrics", "plotting", "studies", "widgets")  # open to users
SLOW = ("torch", "pytorch_lightning", "scanpy", "sklearn", "matplotlib", "IPython", "ipywidgets")  # seconds to import


def lines_of(*folders: str) -> int:
    """Lines of all Python files in these folders."""
    return sum(len(path.read_text().splitlines()) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sims_kit"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("sims_kit") and path_of(name).exists()}


def path_of(module: str) -> Path:
    """Where a module lies."""
    return path / "__init__.py" if (path := ROOT.joinpath(*module.split("."))).is_dir() else path.with_suffix(".py")


def room_of(path: Path) -> str:
    """The folder directly under the package, or the file itself."""
    return path.relative_to(ROOT / "sims_kit").parts[0].removesuffix(".py")


FILES = {path: {path_of(name) for name in imports_of(path)} - {path} for path in (ROOT / "sims_kit").rglob("*.py")}


def test_it_is_small():
    """The budget: lines and files of the package, lines around it, dependencies."""
    package = lines_of("sims_kit")
    assert package <= 8_500
    assert len(FILES) <= 60
    assert lines_of("tests") <= package
    assert lines_of("benchmarks", "tools") <= 2500
    assert len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]) <= 20


def test_imports_go_down():
    """A file imports from its own room, from floors below, and on its own floor from rooms to the left."""
    place_of = {room: place for place, room in enumerate(FLOORS.split())}
    up = {
        f"{path.relative_to(ROOT)} -> {other.relative_to(ROOT)}"
        for path, others in FILES.items()
        for other in others - {ROOT / "sims_kit/__init__.py"}
        if place_of[room_of(path)] < place_of[room_of(other)]
    }
    assert not up


def test_no_circle():
    """No two files import each other, directly or through others."""
    graph = {path: {other for other in others if other.name != "__init__.py"} for path, others in FILES.items()}
    assert len([*TopologicalSorter(graph).static_order()]) == len(FILES)


def test_only_fetch_touches_the_web():
    """Downloads have one place, and so have warnings, which point at the user's line."""
    assert {path for path in FILES if "warnings.warn(" in path.read_text()} == {ROOT / "sims_kit/text.py"}
    web = {path for path in FILES if any(word in path.read_text() for word in ("import pooch", "urllib", "requests"))}
    assert web == {ROOT / "sims_kit/datasets/fetch.py"}


def test_what_is_shown():
    """At most 30 names in `sims_kit`, 60 in all; each is there, documented, and nothing else is listed."""
    assert len(sk.__all__) <= 30 and dir(sk) == sorted(sk.__all__)
    stub = (ROOT / "sims_kit/__init__.pyi").read_text()  # for editors
    assert sorted(re.findall(r"^from sims_kit\S* import (\w+) as \1$", stub, re.MULTILINE)) == sk.__all__
    assert all(getattr(sk, name).__doc__ for name in sk.__all__ if name != "RECIPES")  # a mapping
    names = [f"{room}.{name}" for room in ROOMS for name in import_module(f"sims_kit.{room}").__all__]
    assert len({*sk.__all__, *names} - {"datasets.load", "datasets.read"}) <= 60  # these two are in both
    shown = [name for name in names if getattr(import_module(f"sims_kit.{name.split('.')[0]}"), name.split(".")[1])]
    assert shown == names
    with pytest.raises(AttributeError, match="annotate"):
        _ = sk.annotat


def test_importing_is_quick_and_changes_nothing():
    """`import sims_kit` loads no heavy library and leaves environment and warnings alone."""
    code = (
        "import os, sys, warnings; before = dict(os.environ), list(warnings.filters)\n"
        "import sims_kit; assert before == (dict(os.environ), list(warnings.filters))\n"
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("given, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep(given, found):
    """Threads do not spin while they wait, unless the user says so; decided before torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment.update({"OMP_WAIT_POLICY": given} if given else {})
    code = (
        "import os, sys; sys.modules['torch'] = None  # cannot be imported\n"
        "import sims_kit\ntry: sims_kit.fit\n"
        "except ImportError: print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == found
