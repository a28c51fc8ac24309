"""A display, and servers to play against: the real p2p-serve without a model, a socket that misbehaves on demand."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2p.desktop.display import virtual_display


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """The name of a virtual display."""
    if shutil.which("Xvfb") is None:
        message = "Xvfb is not installed (apt install xvfb)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with virtual_display() as name:
        yield name


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """The address of a p2p-serve that answers every frame with the key w."""
    address = tmp_path / "echo.sock"
    command = [sys.executable, "-m", "p2p_serve.cli", "echo", "--keys", "w", "--socket", str(address)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(address))
                    break
            yield str(address)
        finally:
            process.terminate()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """`peer(behave)` listens on a socket, lets `behave` deal with the first connection, and gives the address."""
    listener = socket.socket(socket.AF_UNIX)
    threads = []

    def start(behave: Callable[[socket.socket], None]) -> str:
        address = str(tmp_path / "peer.sock")
        listener.bind(address)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                behave(connection)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return address

    yield start
    for thread in threads:
        thread.join(timeout=20)
    listener.close()
