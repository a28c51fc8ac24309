"""Programs and a policy folder for the tests of the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p.actions import Action
from p2p_serve.players import EchoPlayer
from tests.serve.live import DEADLINE_S, TINY, Program, environment, serving, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a server of the test listens."""
    return tmp_path / "s"


@pytest.fixture
def echo(path: Path) -> Iterator[Path]:
    """A server in this process that answers every frame with one and the same action."""
    with serving(path, [EchoPlayer(Action(("w",), ("0",), 3, -4))], message_timeout_s=2.0):
        yield path


@pytest.fixture
def p2p_serve(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts `p2p-serve ARGUMENTS`, waits until it listens, and ends it after the test."""
    programs: list[Program] = []

    def start(*arguments: object, env: dict[str, str] | None = None, stdin: Any = subprocess.DEVNULL) -> Program:
        log_file = tmp_path / f"log-{len(programs)}"
        command = [sys.executable, "-m", "p2p_serve.cli", *map(str, arguments)]
        with open(log_file, "wb") as log:
            process = subprocess.Popen(command, stdin=stdin, stderr=log, env=environment(repository) | (env or {}))
        program = Program(process, log_file)
        programs.append(program)
        wait_until(lambda: "listening on" in program.log or process.poll() is not None, "the server listens")
        assert process.poll() is None, program.log
        return program

    yield start
    for program in programs:
        if program.process.poll() is None:
            assert program.stop() == 0, program.log


@pytest.fixture
def run_p2p_serve(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `p2p-serve ARGUMENTS` to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "p2p_serve.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment(repository), timeout=DEADLINE_S * 2
        )

    return run


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder: TINY with random weights, such that what it does depends on what it sees and has seen."""
    import torch

    from p2p.model import Policy, save_policy

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    policy = Policy(TINY)
    with torch.no_grad():
        policy.decoder.position.mul_(0.03)
        for name in ("keys", "buttons", "mouse_x", "mouse_y"):
            getattr(policy.heads, name).weight.mul_(10)
    save_policy(policy, folder)
    return folder
