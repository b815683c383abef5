"""The project's frame: packaging, environments, addresses, notebooks and the commands of the Makefile."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import run_notebooks
import set_address

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {  # where conda-forge calls a package otherwise
    "torch": {"pytorch-cpu", "pytorch-gpu"},
    "tables": {"pytables"},
    "igraph": {"python-igraph"},
    "matplotlib": {"matplotlib-base"},
}
MAKE = shutil.which("make")
needs_make = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def ranges(*requirements: str) -> dict[str, str]:
    """Canonical name -> version range of `requirements`, the project's own extras left out."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name): str(r.specifier) for r in parsed if r.name != "sims_kit"}


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment for a child that must not see the make or pytest that runs this test."""
    hidden = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTEST_ADDOPTS", "SIMS_KIT_FAST")
    return {key: value for key, value in os.environ.items() if key not in hidden} | extra


def small_notebook(path: Path, *sources: str) -> Path:
    """Write a notebook of a colab, a parameters and then the given code cells."""
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell("if False:\n    !pip install nothing", metadata={"tags": ["colab"]}),
        v4.new_code_cell('REFERENCE, LABEL, QUERY, OUT = "pbmc68k", "", "", "."', metadata={"tags": ["parameters"]}),
        *map(v4.new_code_cell, sources),
    ]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": run_notebooks.KERNEL}), path)
    return path


# --- packaging and environments -------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_wheel_carries_registry_and_package_only(tmp_path):
    """A wheel has the registry of datasets inside the package, byte for byte, and no tests or notebooks."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        assert wheel.read("sims_kit/data_registry.yaml") == (ROOT / "data_registry.yaml").read_bytes()
    assert "sims_kit/__init__.py" in names
    assert {name.split("/")[0] for name in names} == {"sims_kit", "sims_kit-0.1.0.dist-info"}
    assert "sims_kit-0.1.0.dist-info/licenses/LICENSE" in names


def test_environments_in_step_with_pyproject():
    """Both conda environments ask for the packages and ranges of pyproject.toml, no more and no fewer."""
    base = ranges(*PROJECT["dependencies"], *EXTRAS["lab"])
    wanted = {"environment.yml": base | ranges(*EXTRAS["test"]), "binder/environment.yml": base}
    for file, torch in [("environment.yml", "pytorch-gpu"), ("binder/environment.yml", "pytorch-cpu")]:
        listed = yaml.safe_load((ROOT / file).read_text())["dependencies"]
        assert listed[:2] == ["python=3.11", "pip"], file
        found = ranges(*listed[2:])
        assert torch in found, file
        to_pip = {conda: pip for pip, condas in CONDA_NAMES.items() for conda in condas}
        assert {to_pip.get(name, name): spec for name, spec in found.items()} == wanted[file], file


def test_constraints_pin_every_dependency_within_its_range():
    """constraints.txt is exact pins only, and has each dependency of base, lab, test and peers inside its range."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
        pins[canonicalize_name(name)] = version
    for text in [*PROJECT["dependencies"], *EXTRAS["lab"], *EXTRAS["test"], *EXTRAS["peers"]]:
        requirement = Requirement(text)
        if requirement.name != "sims_kit":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_extras_are_the_promised_ones():
    """The extras that README and CONTRIBUTING speak of exist."""
    assert set(EXTRAS) == {"lab", "test", "peers", "tracking", "dev"}


def test_binder_hook_is_executable_and_keeps_the_environment():
    """Binder can run postBuild, which adds the package and resolves nothing anew."""
    hook = ROOT / "binder/postBuild"
    assert os.access(hook, os.X_OK) and os.access(ROOT / ".ci/run", os.X_OK)
    assert "--no-deps" in hook.read_text()


# --- one address ----------------------------------------------------------------------------------------------


def test_address_and_version_are_in_step():
    """Badges, clone command, citation and Colab cells have the address and version of pyproject.toml."""
    assert not set_address.stale(), "run `make address`"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]


def test_address_is_rewritten_everywhere(tmp_path):
    """After an edit of pyproject.toml alone, one call leaves no trace of the old address or version."""
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    install = '!pip install -q "sims_kit @ git+https://github.com/sims-kit/sims_kit@v0.1.0" -c present.txt'
    small_notebook(tmp_path / "notebooks/10_tiny.ipynb", install)
    table = (ROOT / "pyproject.toml").read_text()
    table = table.replace("sims-kit/sims_kit", "some.one/Else-1").replace('version = "0.1.0"', 'version = "0.2.0"')
    (tmp_path / "pyproject.toml").write_text(table)
    assert {path.name for path in set_address.stale(tmp_path)} == {"README.md", "CITATION.cff", "10_tiny.ipynb"}
    for path in set_address.files(tmp_path):
        text = set_address.rewrite(path.read_text(), set_address.project(tmp_path))
        assert "sims-kit/" not in text and "0.1.0" not in text
        assert "some.one/Else-1" in text
    assert "git+https://github.com/some.one/Else-1@v0.2.0" in "".join(nbformat.reads(text, 4).cells[-1].source)


def test_address_of_another_host_is_refused(tmp_path):
    """An address that Binder and Colab links cannot be made of is refused by name."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nversion = "1"\n[project.urls]\nRepository = "https://gitlab.com/a/b"\n'
    )
    with pytest.raises(SystemExit, match=r"gitlab\.com/a/b.*github\.com/<owner>/<name>"):
        set_address.project(tmp_path)


# --- notebooks ------------------------------------------------------------------------------------------------


def test_readme_lists_the_lessons_that_exist():
    """README's table of lessons and the folder of notebooks have the same files."""
    assert set(re.findall(r"\]\(notebooks/([\w.]+)\)", (ROOT / "README.md").read_text())) == {
        path.name for path in LESSONS
    }


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_committed_notebook_is_whole(path):
    """A lesson is committed run, tidied and small, with its own Binder and Colab badges in the first cell."""
    assert not run_notebooks.problems(path), "run `make notebooks`"
    title = nbformat.read(path, as_version=4).cells[0].source
    facts = set_address.project()
    for service in ("mybinder.org", "colab.research.google.com"):
        assert re.search(rf"{re.escape(service)}/\S*{facts['slug']}/\S*notebooks/{path.name}", title), service


def test_executed_notebook_is_tidied(tmp_path):
    """Running saves outputs without stderr, widgets, timestamps or stale counts, and keeps text and tags."""
    source = 'import sys\nprint("kept")\nprint("dropped", file=sys.stderr)'
    slider = "import ipywidgets\ndisplay(ipywidgets.IntSlider())"
    path = small_notebook(tmp_path / "tiny.ipynb", source, slider)
    run_notebooks.execute(path)
    assert run_notebooks.problems(path) == []
    saved = json.loads(path.read_text())
    assert "kept" in path.read_text() and "dropped\\n" not in json.dumps(saved["cells"][2]["outputs"])
    assert saved["cells"][3]["outputs"] == [] and set(saved["metadata"]) == {"kernelspec", "language_info"}
    assert [cell["metadata"] for cell in saved["cells"]] == [{"tags": ["colab"]}, {"tags": ["parameters"]}, {}, {}]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda nb: [cell.update(outputs=[], execution_count=None) for cell in nb.cells], "was not run"),
        (lambda nb: [cell.update(outputs=[]) for cell in nb.cells], "has no outputs"),
        (lambda nb: nb.cells[2].update(execution_count=7), "was not run"),
        (lambda nb: nb.metadata.update(widgets={}), "metadata.widgets"),
        (lambda nb: nb.metadata.update(papermill={}), "metadata.papermill"),
        (lambda nb: nb.metadata.kernelspec.update(name="sims"), "another kernel"),
        (lambda nb: nb.cells[1].metadata.update(tags=[]), "'parameters'"),
        (lambda nb: nb.cells[2].update(source="%pip install x"), "installs packages"),
        (lambda nb: nb.cells[2].outputs[0].update(text="in /home/someone/cells.h5ad"), "/home/someone"),
        (lambda nb: nb.cells[2].outputs[0].update(text="in C:\\Users\\someone"), "path of this machine"),
        (lambda nb: nb.cells[2].outputs[0].update(name="stderr"), "stderr"),
        (lambda nb: nb.cells[2].outputs[0].update(text="x" * 1_000_000), "bytes"),
    ],
)
def test_unfit_notebook_is_refused(tmp_path, damage, complaint):
    """Each thing that a committed notebook must not have is found and named; without it nothing is."""
    harmless = "T/B cells, CD4+/CD45RA+/CD25- T, https://a.b/c/d, results/demo"
    path = small_notebook(tmp_path / "tiny.ipynb", f"print({harmless!r})")
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(notebook.cells, 1):
        cell.execution_count = count
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text=f"{harmless}\n")]
    nbformat.write(notebook, path)
    assert run_notebooks.problems(path) == []
    damage(notebook)
    nbformat.write(notebook, path)
    assert any(complaint in problem for problem in run_notebooks.problems(path))


def test_gate_fails_on_a_cell_that_raises(tmp_path):
    """nbval, called as `make test` calls it, passes a good cell and fails one that raises."""
    path = small_notebook(tmp_path / "tiny.ipynb", "1 + 1", "raise ValueError('a lesson broke')")
    recipe = (ROOT / "Makefile").read_text()
    flags = re.search(r"-m pytest (--nbval[\w -]*) notebooks", recipe)[1].split()
    command = [sys.executable, "-m", "pytest", *flags, "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=clean_environment())
    assert result.returncode == 1, result.stdout
    assert "1 failed, 3 passed" in result.stdout and "a lesson broke" in result.stdout


# --- the Makefile ---------------------------------------------------------------------------------------------


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run make in the repository with this test's own environment as VENV, never installing."""
    command = [MAKE, "-C", str(ROOT), f"--assume-old={sys.prefix}/.installed", f"VENV={sys.prefix}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=clean_environment(**environment))


@needs_make
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_demo_passes_parameters_and_runs_in_its_own_environment(tmp_path):
    """`make demo` takes paths with spaces and quotes as they are, runs .venv's Python, and leaves a report."""
    folder = tmp_path / "my cells"
    folder.mkdir()
    reference, out = folder / "a reference's.h5ad", folder / "out"
    reference.touch()
    seen = (
        'import sys, pathlib\npathlib.Path(OUT, "seen.txt").write_text("|".join([REFERENCE, LABEL, QUERY, sys.prefix]))'
    )
    tiny = small_notebook(folder / "tiny.ipynb", seen)
    bad = folder / "kernels/python3/kernel.json"  # somebody else's kernel of the same name
    bad.parent.mkdir(parents=True)
    bad.write_text('{"argv": ["false"], "display_name": "bad", "language": "python"}')
    arguments = [f"NOTEBOOK={tiny}", f"REFERENCE={reference}", "LABEL=1", f"OUT={out}"]
    result = make("demo", *arguments, JUPYTER_PATH=str(folder), OUT="from the shell", QUERY="from the shell")
    assert result.returncode == 0, result.stderr
    assert (out / "seen.txt").read_text() == f"{reference}|1||{sys.prefix}"
    assert "a reference" in (out / "report.html").read_text() and not (out / "report.ipynb").exists()


@needs_make
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["REFERENCE=no such.h5ad", "LABEL=x"], "There is no file no such.h5ad"),
        (["QUERY=missing/query.h5ad"], "There is no file missing/query.h5ad"),
        (["REFERENCE=pyproject.toml"], "needs LABEL="),
        (["LABELFILE=labels"], "There is no label file labels"),
        (["ORIENTATION=sideways"], "neither cells_by_genes nor genes_by_cells"),
        (["PYTHON=no-such-python"], "Install Python 3.11 or newer"),
    ],
)
def test_demo_names_bad_input_before_installing(tmp_path, arguments, complaint):
    """A missing file, label or Python is said at once, and no environment is begun."""
    result = make("demo", f"VENV={tmp_path}/venv", *arguments)
    assert result.returncode != 0 and complaint in result.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_old_python_is_refused_with_a_way_out(tmp_path):
    """A Python before 3.11 is refused with its version and the argument that names another."""
    old = tmp_path / "python3"
    old.write_text(f"#!/bin/sh\nshift; exec '{sys.executable}' -c \"import sys; sys.version_info = (3, 9, 1); $1\"\n")
    old.chmod(0o755)
    result = make("check-python", f"PYTHON={old}")
    assert result.returncode != 0
    assert "Python 3.9; sims_kit needs 3.11 or newer" in result.stderr and "make PYTHON=" in result.stderr


@needs_make
def test_help_lists_the_targets():
    """`make` alone lists every target that README and CONTRIBUTING name."""
    listed = make().stdout
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)):
        assert re.search(rf"^  {target} ", listed, re.MULTILINE), target
