"""The package: pyproject.toml, requirements*.txt and the folders on disk agree."""

import re
import sys

import pytest
from conftest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
if sys.version_info >= (3, 11):
    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def required(name: str) -> list[str]:
    """The requirements of a file, without its comments and the files that it includes."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def test_one_list_of_dependencies():
    """pyproject.toml installs what requirements*.txt install, and each extra is what its file adds."""
    project = PROJECT["project"]
    assert project["dependencies"] == required("requirements.txt")
    for extra in ("dev", "bench"):
        assert project["optional-dependencies"][extra] == required(f"requirements-{extra}.txt")


def test_every_module_is_in_the_package():
    """Files and folders of the root with Python code, tests aside, are those that an editable install makes importable."""
    setup = PROJECT["tool"]["setuptools"]
    assert setup["py-modules"] == sorted(path.stem for path in ROOT.glob("*.py"))
    assert setup["packages"] == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def test_version_is_one():
    """CITATION.cff, CHANGELOG.md and pyproject.toml name the same version."""
    version = PROJECT["project"]["version"]
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
