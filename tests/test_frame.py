"""The project's frame: packaging, environments, addresses and the commands of the Makefile."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import notebook_rules

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
NAMING = [
    *map(ROOT.joinpath, ("README.md", "docs/install.md", "docs/instructors.md", "CITATION.cff")),
    *ROOT.glob("packaging/*/*.yaml"),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TO_PIP = dict.fromkeys(["pytorch", "pytorch-cpu", "pytorch-gpu"], "torch") | {"matplotlib-base": "matplotlib"}
CONDA_ALONE = {"python-igraph", "leidenalg"}  # what pip gets by scanpy's extra, and conda-forge knows no extras
MAKE = shutil.which("make")
needs_make = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def ranges(*requirements: str) -> dict[str, str]:
    """Canonical name -> version range of `requirements`, the project's own extras left out."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name): str(r.specifier) for r in parsed if r.name != "sims_kit"}


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")
def test_wheel_carries_registry_and_package_only(tmp_path):
    """A wheel has the registry of datasets inside the package, byte for byte, and no tests or notebooks."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        assert wheel.read("sims_kit/data_registry.yaml") == (ROOT / "data_registry.yaml").read_bytes()
    info = f"sims_kit-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"sims_kit", info}
    needed = {"__init__.pyi", "py.typed", "datasets/cell_ontology.tsv", "models/human-blood.safetensors"}
    assert {f"{info}/licenses/LICENSE", *(f"sims_kit/{name}" for name in needed)} <= set(names)


def test_environments_in_step_with_pyproject():
    """Conda's environments and recipe ask for the packages and ranges of pyproject.toml; README's extras exist."""
    base = ranges(*PROJECT["dependencies"])
    lab = base | ranges(*EXTRAS["lab"], *EXTRAS["r"])  # lessons read files of R
    environments = [("environment.yml", "-gpu", lab | ranges(*EXTRAS["test"])), ("binder/environment.yml", "-cpu", lab)]
    for file, device, wanted in [*environments, ("packaging/conda-forge/recipe.yaml", "", base)]:
        page = yaml.safe_load((ROOT / file).read_text())
        python, *listed = page["dependencies"] if device else page["requirements"]["run"]
        assert not device or (python, listed.pop(0)) == ("python=3.11", "pip"), file
        found = ranges(*listed)
        assert f"pytorch{device}" in found and set(found) >= CONDA_ALONE, file
        found = {TO_PIP.get(name, name): spec for name, spec in found.items() if name not in CONDA_ALONE}
        assert found == wanted, file
    assert set(EXTRAS) == {"lab", "r", "test", "peers", "docs", "browser", "tracking", "dev"}


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-3.12.txt", "constraints-lowest.txt"])
def test_constraints_pin_every_dependency_within_its_range(file):
    """A constraints file is exact pins only, and has each dependency of what the Makefile installs inside its range."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    extras = ("lab", "r", "test") if "lowest" in file else ("lab", "r", "test", "peers", "docs", "browser")
    for name, spec in ranges(*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])).items():
        wanted = re.sub(r".*>=([\d.]+).*", r"==\1", spec) if "lowest" in file else spec
        assert Requirement(name + wanted).specifier.contains(pins[name]), name


@pytest.fixture
def python(tmp_path):
    """A Python that says it is of another release: its path by the release."""

    def write(release: tuple[int, ...]) -> Path:
        path, source = tmp_path / "python3", f"import sys; sys.version_info = {release}; $1"
        path.write_text(f"#!/bin/sh\nshift; exec '{sys.executable}' -c \"{source}\"\n")
        path.chmod(0o755)
        return path

    return write


@needs_make
@pytest.mark.parametrize(("release", "file"), [((3, 11, 9), "constraints.txt"), ((3, 13, 0), "constraints-3.12.txt")])
def test_make_takes_the_constraints_of_its_python(make, python, tmp_path, release, file):
    """The Makefile installs with the constraints file of the Python that it is given."""
    result = make("--dry-run", f"PYTHON={python(release)}", f"VENV={tmp_path}/venv", "lint")
    assert f"--constraint {file} " in result.stdout


def test_binder_hook_is_executable_and_keeps_the_environment():
    """Binder can run postBuild, which adds the package and resolves nothing anew."""
    hook, start = ROOT / "binder/postBuild", ROOT / "binder/start"
    assert all(os.access(file, os.X_OK) for file in (hook, start, ROOT / ".ci/run"))
    assert "--no-deps" in hook.read_text()
    assert subprocess.check_output([start, "printenv", "SIMS_KIT_FAST"], text=True) == "1\n"  # what the lessons see


@pytest.mark.parametrize("path", [*NAMING, *LESSONS])
def test_address_and_version_are_in_step(path):
    """Badges, clone command, citation, recipes and Colab cells have the address and version of pyproject.toml."""
    slug, tag = map(re.escape, (notebook_rules.ADDRESS.removeprefix("https://github.com/"), notebook_rules.TAG))
    text = path.read_text(encoding="utf-8")
    for place, expected in (
        (r"mybinder\.org/v2/gh/([^?]+)", f"{slug}/{tag}"),
        (r"colab\.research\.google\.com/github/(.+?)/learner", f"{slug}/blob/{tag}"),
        (r"git\+https://github\.com/([^\s\"\\]+)", f"{slug}@{tag}"),
        (r"(?:git clone |\w: \"?)https://github\.com/([\w-]+/[\w-]+)", slug),
        (r"(https://[\w-]+\.github\.io/\S*?)(?=[)\s])", re.escape(PROJECT["urls"]["Documentation"])),
        (r"(?m)^ *version: \"?([\d.]+)", tag[1:]),
    ):
        assert all(re.fullmatch(expected, found) for found in re.findall(place, text)), (place, expected)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_link_to_files_that_exist(path):
    """Links and pictures lead to files of the repository; README has 700 words, lessons.md every lesson."""
    assert not notebook_rules.broken_links(path)
    text = path.read_text(encoding="utf-8")
    if path.name == "README.md":
        shown = re.sub(r"!\[.*?\]\(.*?\)|\]\(.*?\)|<http.*?>|^```.*$", " ", text, flags=re.MULTILINE)
        assert len(re.findall(r"\S*\w\S*", shown)) <= 700
    if path == ROOT / "docs/lessons.md":
        assert re.findall(r"\]\(\.\./notebooks/([\w.]+)\)", text) == [lesson.name for lesson in LESSONS]


@pytest.fixture
def make(clean_environment):
    """Runs make in the repository with this test's own environment as VENV, never installing."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = [MAKE, "-C", str(ROOT), f"--assume-old={sys.prefix}/.installed", f"VENV={sys.prefix}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=180, env=clean_environment | environment)

    return run


@needs_make
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_demo_passes_parameters_and_runs_in_its_own_environment(make, make_notebook, tmp_path):
    """`make demo` takes paths with spaces and quotes as they are, runs .venv's Python, and leaves a report."""
    folder = tmp_path / "my cells"
    folder.mkdir()
    reference, out = folder / "a reference's.h5ad", folder / "out"
    reference.touch()
    seen = "import sys\nfrom pathlib import Path\n"
    seen += 'Path(OUT, "seen.txt").write_text("|".join([REFERENCE, LABEL, QUERY, sys.prefix]))'
    tiny = make_notebook(folder / "tiny.ipynb", seen)
    bad = folder / "kernels/python3/kernel.json"  # somebody else's kernel of the same name
    bad.parent.mkdir(parents=True)
    bad.write_text('{"argv": ["false"], "display_name": "bad", "language": "python"}')
    arguments = [f"TEMPLATE={tiny}", f"REFERENCE={reference}", "LABEL=1", f"OUT={out}"]
    result = make("demo", *arguments, JUPYTER_PATH=str(folder), OUT="from the shell", QUERY="from the shell")
    assert result.returncode == 0, result.stderr
    assert (out / "seen.txt").read_text() == f"{reference}|1||{sys.prefix}"
    (report,) = (path.read_text() for path in out.glob("report.*"))  # the .html, without the code
    assert "<title>Annotation of cells" in report and "a reference" not in report


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
        (["PYTHON={old}"], "Python 3.9; sims_kit needs 3.11 or newer. Name another one: make PYTHON="),
    ],
)
def test_demo_names_bad_input_before_installing(make, python, tmp_path, arguments, complaint):
    """A missing file, label or Python, or an old one, is said at once, and no environment is begun."""
    arguments = [argument.format(old=python((3, 9, 1))) for argument in arguments]
    result = make("demo", f"VENV={tmp_path}/venv", *arguments)
    assert result.returncode != 0 and complaint in result.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_help_lists_the_targets(make):
    """`make` alone lists every target that README, CONTRIBUTING and the installation's page name."""
    listed = make().stdout
    text = "".join((ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md", "docs/install.md"))
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^  {target} ", listed, re.MULTILINE), target
