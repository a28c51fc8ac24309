"""Starts `p2p-serve` in a process of its own for the time that something plays."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2p.agents.remote import TEXT_SUFFIX
from p2p.processes.reaper import mark_children
from p2p.processes.scratch import Scratch
from p2p.sockets import connect

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


@contextlib.contextmanager
def served(policy: Path, seed: int | None = None, options: Sequence[str] = ()) -> Iterator[str]:
    """The address of a server of the policy folder, which ends with the block; it takes instructions (`client.tell`).

    Args:
        seed: of its sampling; None: fresh random numbers.
        options: further options of p2p-serve.

    Raises:
        ValueError: when the server ends before it listens; the message is its own last line.
    """
    if not (policy / "model.safetensors").is_file():
        raise ValueError(f"{policy}: no model.safetensors there; expected a policy folder (p2p export makes one)")
    mark_children()
    scratch = Scratch("play")
    address, log_path = scratch.path / "socket", scratch.path / "serve.log"
    command = [sys.executable, "-m", "p2p_serve.cli", "--policy", str(policy), "--socket", str(address)]
    command += ["--text-socket", f"{address}{TEXT_SUFFIX}"]
    command += [*(["--seed", str(seed)] if seed is not None else []), *options]
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_until_it_listens(process, address, log_path)
            yield str(address)
        finally:
            _stop(process)
    finally:
        scratch.close()


def _wait_until_it_listens(process: "subprocess.Popen[bytes]", address: Path, log_path: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            lines = log_path.read_text(errors="replace").strip().splitlines() or ["(no message)"]
            raise ValueError(f"p2p-serve ended with status {process.returncode}: {lines[-1]}")
        if address.exists():
            with contextlib.suppress(ValueError):
                connect(str(address)).close()
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise ValueError(f"p2p-serve does not listen on {address} after {START_TIMEOUT_S:g} s")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
