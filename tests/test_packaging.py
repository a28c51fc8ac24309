"""The three distributions, their pinned requirements, and what the documents tell people to type."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from p2p import __version__

CORE = {"numpy", "omegaconf", "protobuf", "pyyaml", "safetensors", "torch"}
PINNED = ("train", "dev", "serve", "test-serve")


def project(repository: Path, folder: str = ".") -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((repository / folder / "pyproject.toml").read_text())["project"]
    return table


def pinned(repository: Path, name: str) -> dict[str, str]:
    """Distribution -> version, of one requirements file; every line must be just that."""
    lines = (repository / "requirements" / f"{name}.txt").read_text().splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", line)]
    assert wrong == [], f"requirements/{name}.txt: not NAME==VERSION (hosts and paths do not belong there)"
    return dict(line.split("==") for line in lines)


def direct_requirements(table: dict[str, Any], extra: str | None) -> list[Requirement]:
    """What a project asks for, its own extras resolved."""
    texts = table["dependencies"] if extra is None else table["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, texts):
        if requirement.name == "pixel2play":
            found += [each for inner in requirement.extras for each in direct_requirements(table, inner)]
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize("name", PINNED)
def test_requirement_files_pin_versions_and_name_no_place(repository: Path, name: str) -> None:
    assert len(pinned(repository, name)) > 3


@pytest.mark.parametrize(("name", "extra"), [("train", "all"), ("dev", "dev"), ("dev", "all")])
def test_requirement_files_fulfil_what_the_project_asks_for(repository: Path, name: str, extra: str) -> None:
    versions = pinned(repository, name)
    asked = direct_requirements(project(repository), None) + direct_requirements(project(repository), extra)
    unmet = [
        str(each) for each in asked if not each.specifier.contains(versions.get(canonicalize_name(each.name), "0"))
    ]
    assert unmet == [], "run: make requirements"


def test_requirement_files_agree_with_each_other(repository: Path) -> None:
    everything = pinned(repository, "dev")
    for name in PINNED:
        assert pinned(repository, name).items() <= everything.items()


def test_no_lock_file_that_names_hosts_is_in_the_tree(repository: Path) -> None:
    assert list(repository.glob("*.lock")) == []


def test_the_core_is_light(repository: Path) -> None:
    assert {Requirement(each).name for each in project(repository)["dependencies"]} == CORE
    assert pinned(repository, "serve").keys() >= CORE - {"torch"}
    assert "torch" not in pinned(repository, "serve"), "whoever serves brings the torch that fits the device"


def test_the_server_and_the_converter_depend_on_this_very_version_and_on_no_path(repository: Path) -> None:
    assert project(repository, "serve")["dependencies"] == [f"pixel2play=={__version__}"]
    assert project(repository, "convert")["dependencies"] == [f"pixel2play[data,plot]=={__version__}"]
    for folder in ("serve", "convert"):
        for texts in project(repository, folder)["optional-dependencies"].values():
            for requirement in map(Requirement, texts):
                assert requirement.url is None
                assert requirement.name != "pixel2play" or requirement.specifier == f"=={__version__}"


@pytest.mark.parametrize("folder", ["convert", "serve"])
def test_each_distribution_carries_the_licence(repository: Path, folder: str) -> None:
    assert (repository / folder / "LICENSE").read_bytes() == (repository / "LICENSE").read_bytes()


def test_the_citation_names_this_version(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert {"cff-version", "title", "message", "type", "license", "authors"} <= citation.keys()


def test_make_alone_lists_the_targets(repository: Path) -> None:
    text = subprocess.run(["make", "--silent"], cwd=repository, capture_output=True, text=True, check=True).stdout
    for target in (
        "setup",
        "demo",
        "convert",
        "test",
        "check",
        "bench",
        "bench-gpu",
        "count-gpu",
        "accept-gpu",
        "fuzz",
        "release",
        "clean",
    ):
        assert f"  make {target} " in text


def test_make_convert_without_a_source_says_what_to_write(repository: Path, tmp_path: Path) -> None:
    ready = tmp_path / "venv"
    ready.mkdir()
    (ready / ".made").touch()
    (ready / ".run-ready").touch()
    command = ["make", "--silent", "convert", f"VENV={ready}"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert result.returncode == 2
    assert "make convert RAW=DIR OUT=DIR" in result.stderr


# Stands for an environment that holds only what the server's requirements bring: any other module is refused.
BARE_ENVIRONMENT = """
import importlib.metadata as metadata, re, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def closure(name, seen):
    if name in seen: return seen
    try: requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError: return seen
    seen.add(name)
    for requirement in map(Requirement, requires):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(canonicalize_name(requirement.name), seen)
    return seen

allowed = set()
for name in %(core)r: closure(name, allowed)
providers = metadata.packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        owners = {canonicalize_name(owner) for owner in providers.get(name.partition(".")[0], [])}
        if owners and not owners & allowed and not owners & {"pixel2play", "p2p-serve"}:
            raise ModuleNotFoundError(f"not in the bare environment: {name}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] == "packaging"]: del sys.modules[name]
sys.meta_path.insert(0, Refuse())
"""


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    setup = BARE_ENVIRONMENT % {"core": sorted(CORE)}
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=60)


def test_the_bare_environment_refuses_what_only_an_extra_brings() -> None:
    result = run_bare("import streaming")
    assert "not in the bare environment: streaming" in result.stderr


def test_the_server_runs_on_its_own_requirements_alone() -> None:
    result = run_bare(
        "import pkgutil, importlib, p2p_serve\n"
        "for module in pkgutil.iter_modules(p2p_serve.__path__):\n"
        "    if module.name != '__main__': importlib.import_module(f'p2p_serve.{module.name}')\n"
        "from p2p_serve.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: sys.exit(ended.code)\n"
    )
    assert result.returncode == 0, result.stderr
    assert "usage: p2p-serve" in result.stdout
