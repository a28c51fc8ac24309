"""`pip install . ./serve` where nothing but pip and torch is installed: what it brings, and how quickly it starts.

Needs a package index, so it is left out of the suite; run it with: make test-serve-install [TORCH=torch==2.13.0]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.install, pytest.mark.timeout(1800)]

OURS = {"pixel2play", "p2p-serve"}
# numpy, protobuf, safetensors and omegaconf, and what they need (antlr only in some versions of omegaconf).
BROUGHT = {"numpy", "protobuf", "safetensors", "omegaconf", "pyyaml", "antlr4-python3-runtime"}
HELP_LIMIT_S = 2.0


def pip(environment: Path, *arguments: str) -> str:
    command = [str(environment / "bin" / "python"), "-m", "pip", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def installed(environment: Path) -> set[str]:
    return {each["name"].lower() for each in json.loads(pip(environment, "list", "--format=json"))}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, set[str]]:
    """An environment with the server, and the names of what stood there before it was installed."""
    folder = tmp_path_factory.mktemp("serve") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip(folder, "install", os.environ.get("TORCH") or "torch")
    before = installed(folder)
    pip(folder, "install", str(repository), str(repository / "serve"))
    return folder, before


def test_the_server_brings_its_light_core_and_nothing_else(environment: tuple[Path, set[str]]) -> None:
    folder, before = environment
    brought = installed(folder) - before
    assert brought >= OURS | {"protobuf", "safetensors", "omegaconf"}
    assert brought - OURS <= BROUGHT


def test_the_server_answers_help_at_once(environment: tuple[Path, set[str]], tmp_path: Path) -> None:
    program = environment[0] / "bin" / "p2p-serve"
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([str(program), "--help"], capture_output=True, text=True, cwd=tmp_path)
        durations.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
        assert "usage: p2p-serve" in result.stdout
    assert min(durations) < HELP_LIMIT_S


def test_the_core_command_works_there_and_names_what_is_missing(
    environment: tuple[Path, set[str]], tmp_path: Path
) -> None:
    program = environment[0] / "bin" / "p2p"
    doctor = subprocess.run([str(program), "doctor"], capture_output=True, text=True, cwd=tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    assert "-> pip install 'pixel2play[train]'" in doctor.stdout
    download = subprocess.run([str(program), "download", "model", "150M"], capture_output=True, text=True, cwd=tmp_path)
    assert download.returncode == 2
    assert "pixel2play[hub]" in download.stderr
