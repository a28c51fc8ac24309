"""The three wheels, in an empty environment away from the repository: record, convert, train and serve with them.

Other packages come from the environment that runs the tests, so that nothing is downloaded but hatchling, which builds.
Left out of the suite; `make release` tests what it built: WHEELS=dist pytest -m install tests/test_wheels.py
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from p2p import __version__
from tests.serve.live import wait_until

pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

PROJECTS = {"pixel2play": ".", "p2p-convert": "convert", "p2p-serve": "serve"}
PACKAGES = {"pixel2play": "p2p", "p2p-convert": "p2p_convert", "p2p-serve": "p2p_serve"}
OURS = ("pixel2play", "_pixel2play", "p2p")  # how the entries of our own distributions in site-packages begin


@pytest.fixture(scope="module")
def wheels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distribution -> its wheel, built from its source archive."""
    folder = Path(os.environ.get("WHEELS") or tmp_path_factory.mktemp("dist"))
    if not os.environ.get("WHEELS"):
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        for project in PROJECTS.values():
            command = [uv, "build", "--quiet", "--out-dir", str(folder), str(repository / project)]
            subprocess.run(command, check=True)
    found = {name: folder / f"{name.replace('-', '_')}-{__version__}-py3-none-any.whl" for name in PROJECTS}
    assert {path.name for path in folder.glob("*.whl")} == {path.name for path in found.values()}
    return {name: path.resolve() for name, path in found.items()}


@dataclass(frozen=True)
class Away:
    """An environment that holds the wheels and what others made, and a folder of its own."""

    folder: Path

    def start(self, program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.folder / "venv" / "bin" / program), *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment | {"WANDB_MODE": "disabled"}, text=True, **options
        )

    def __call__(self, program: str, *arguments: object) -> str:
        """Run a program to its end; what it printed."""
        process = self.start(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            said, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode == 0, said[-6000:]
        return said


@pytest.fixture(scope="module")
def run(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Away:
    folder = tmp_path_factory.mktemp("away")
    others = folder / "others"
    others.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(OURS) and entry.suffix != ".pth":
            (others / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site_packages,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    (site_packages / "others.pth").write_text(f"{others}\n")
    away = Away(folder)
    links = ["--no-index", "--find-links", wheels["pixel2play"].parent]
    away("python", "-m", "pip", "install", *links, *(f"{name}=={__version__}" for name in PROJECTS))
    return away


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_says_what_it_is_and_names_no_place_of_its_builder(
    wheels: dict[str, Path], repository: Path, name: str
) -> None:
    facts = metadata(wheels[name])
    table = tomllib.loads((repository / PROJECTS[name] / "pyproject.toml").read_text())["project"]
    assert facts["License-Expression"] == "MIT"
    assert facts["License-File"] == "LICENSE"
    assert facts["Keywords"].split(",") == sorted(table["keywords"])
    assert facts["Description-Content-Type"] == "text/markdown"
    readme = facts.get_payload(decode=True)
    assert readme == (repository / PROJECTS[name] / "README.md").read_bytes()
    requirements = facts.get_all("Requires-Dist")
    assert not [each for each in requirements if "@" in each or str(repository) in each]
    asked = [each for each in requirements if each.startswith("pixel2play")]
    assert bool(asked) == (name != "pixel2play")
    assert all(each.partition(";")[0].endswith(f"=={__version__}") for each in asked)
    with zipfile.ZipFile(wheels[name]) as archive:
        names = archive.namelist()
        assert f"{PACKAGES[name]}/py.typed" in names
        licence = archive.read(next(name for name in names if name.endswith("licenses/LICENSE")))
        assert licence == (repository / "LICENSE").read_bytes()
        assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "../"))]


def test_the_wheel_brings_the_recipes(wheels: dict[str, Path], repository: Path) -> None:
    with zipfile.ZipFile(wheels["pixel2play"]) as archive:
        brought = {Path(name).stem for name in archive.namelist() if name.startswith("p2p/recipes/")}
    assert brought == {path.stem for path in (repository / "recipes").iterdir()}


def test_the_wheels_record_convert_train_and_serve_away_from_the_repository(run: Away, repository: Path) -> None:
    code = "import p2p, p2p_convert, p2p_serve as serve; print(p2p.__path__, p2p_convert.__path__, serve.__path__)"
    homes = run("python", "-P", "-c", code)
    assert homes.count("/venv/lib/") == 3
    run("p2p", "record", "--game", "doom:health_gathering", "--episodes", 3, "--out", "raw")
    run("p2p-convert", "raw", "shards", "--split", "val=0.5")
    data = ("data.train=shards/train", "data.val=shards/val", "eval.max_batches=1", "data.num_workers=0")
    said = run("p2p", "train", "doom-tiny", "max_duration=2ba", "run_folder=run", "schedule.warmup=1", *data)
    assert "step 2/2  loss" in said
    server = run.start("p2p-serve", "--policy", "run/policy", "--socket", "socket")
    try:
        wait_until(lambda: (run.folder / "socket").exists() or server.poll() is not None, "the server listens")
        said = run("p2p", "play", "--socket", "socket", "--game", "doom:health_gathering", "--episodes", 1)
    finally:
        server.terminate()
    assert server.wait(60) == 0
    assert "| policy | " in said
