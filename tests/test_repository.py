"""The files around the code agree with it and with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vtlite

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_route_installs_what_pyproject_asks_for() -> None:
    optional = PROJECT["optional-dependencies"]
    wanted = {
        *PROJECT["dependencies"],
        *optional["lab"],
        *optional["classroom"],
        *optional["data"],
        *optional["dev"],
    } - {"vtlite[lab,classroom,data]"}
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    found = re.findall(r"^      - (.+)$", environment, re.MULTILINE)
    assert sorted(found) == sorted(wanted)
    assert f"python{PROJECT['requires-python']}" in environment


def test_importing_needs_only_the_core_dependencies() -> None:
    """timm, peft and the notebook tools are for tests; a user of the package must not need them."""
    code = (
        "import sys; [sys.modules.__setitem__(m, None) for m in ('timm', 'peft', 'nbformat',"
        " 'pytest')]; import vtlite, vtlite.tour, vtlite.bench"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_makefile_says_what_its_targets_do() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    for target in ("tour", "test", "lab", "lint", "benchmark"):
        assert re.search(rf"make {target} +\w+", done.stdout)


def test_readme_names_only_files_that_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / document).parent / link).exists(), f"{document} links to {link}"


def test_changelog_and_version_agree() -> None:
    assert f"## {vtlite.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_pickles_are_loaded_anywhere() -> None:
    for path in (ROOT / "vtlite").rglob("*.py"):
        code = re.sub(
            r'"[^"\n]*"', "", path.read_text(encoding="utf-8")
        )  # an error message may name torch.load
        assert not re.search(r"torch\.load\(|\bpickle\.|import pickle", code), path


@pytest.mark.parametrize(
    "name", ["LICENSE", "vtlite/data/assets/README.md", "vtlite/backbones/weights/vtlite-tiny.md"]
)
def test_licences_and_cards_are_there(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8")) > 500
