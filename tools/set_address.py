"""Write the repository's address and version, as pyproject.toml has them, wherever else they stand.

`make address` runs this after an edit of ``[project.urls] Repository`` or of the version. A release is the
git tag ``v`` + version; Binder, Colab and their installation cells open that tag, so that lesson and package
always fit.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = r"[\w.-]+"  # of an owner, a repository or a tag
PLACES = {  # where an address stands -> what it becomes
    rf"(mybinder\.org/v2/gh/){NAME}/{NAME}/{NAME}": r"\g<1>{slug}/{tag}",
    rf"(colab\.research\.google\.com/github/){NAME}/{NAME}/blob/{NAME}": r"\g<1>{slug}/blob/{tag}",
    rf"git\+https://{NAME}/{NAME}/{NAME}@{NAME}": "git+{url}@{tag}",
    rf"git clone https://{NAME}/{NAME}/{NAME}": "git clone {url}",
    r'(?m)^repository-code: ".*"$': 'repository-code: "{url}"',
    r"(?m)^version: \d[\w.]*$": "version: {version}",
}


def project(root: Path = ROOT) -> dict[str, str]:
    """The ``url``, ``slug`` (owner/name), ``version`` and ``tag`` of the project.

    Raises
    ------
    SystemExit
        If the address is not of the form that Binder and Colab open.
    """
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url = table["urls"]["Repository"].rstrip("/")
    match = re.fullmatch(rf"https://github\.com/({NAME}/{NAME})", url)
    if match is None or url.endswith(".git"):
        raise SystemExit(
            f"Repository = {url!r} in pyproject.toml, but the badges need https://github.com/<owner>/<name>."
        )
    return {"url": url, "slug": match[1], "version": table["version"], "tag": f"v{table['version']}"}


def files(root: Path = ROOT) -> list[Path]:
    """The files that repeat the address."""
    named = [root / name for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff")]
    return [path for path in named if path.exists()] + sorted((root / "notebooks").glob("*.ipynb"))


def rewrite(text: str, facts: dict[str, str]) -> str:
    """`text` with every known place of the address, and the citation's version, as in `facts`."""
    for pattern, replacement in PLACES.items():
        text = re.sub(pattern, replacement.format(**facts), text)
    return text


def stale(root: Path = ROOT) -> list[Path]:
    """The files whose address or version is not that of pyproject.toml."""
    facts = project(root)
    texts = {path: path.read_text(encoding="utf-8") for path in files(root)}
    return [path for path, text in texts.items() if text != rewrite(text, facts)]


if __name__ == "__main__":
    for path in stale():
        path.write_text(rewrite(path.read_text(encoding="utf-8"), project()), encoding="utf-8")
        print(f"rewrote {path.relative_to(ROOT)}")
    print(f"address: {project()['url']} at {project()['tag']}")
