"""A tiny policy, servers on real sockets (in a thread or in a process), and a client, for the tests of the server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from p2p.actions import Action
from p2p.protocol import Frame, MessageReader, encode_frame, parse_action
from p2p_serve.latency import Marks
from p2p_serve.options import ServerOptions
from p2p_serve.players import EchoPlayer, Player
from p2p_serve.server import Server
from p2p_serve.sockets import UnixListener
from tests.tiny import tiny_config

DEADLINE_S = 60.0
TINY = tiny_config(frame_height=96, frame_width=96, text_dim=16)


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, asked again and again until the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        threading.Event().wait(0.005)
    raise AssertionError(f"not within {deadline_s:g} s: {what}")


class Client:
    """A client that speaks the protocol through one connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(DEADLINE_S)
        self._reader = MessageReader()
        self._payloads: list[bytes] = []

    def send(self, image: np.ndarray, frame_id: int) -> None:
        self.socket.sendall(encode_frame(image, frame_id))

    def receive(self) -> tuple[Action, int]:
        while not self._payloads:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self._payloads += self._reader.feed(data)
        return parse_action(self._payloads.pop(0))

    def ask(self, image: np.ndarray, frame_id: int) -> Action:
        self.send(image, frame_id)
        action, answered = self.receive()
        assert answered == frame_id
        return action

    def is_closed_by_the_server(self) -> bool:
        """Reads until the end; False when the server is still there at the deadline."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


class GatedPlayer(EchoPlayer):
    """Answers only when the test lets it, so that frames pile up."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def act(self, frame: Frame, marks: Marks) -> Action:
        self.entered.release()
        assert self.gate.acquire(timeout=60)
        return super().act(frame, marks)


@contextmanager
def connect(path: Path) -> Iterator[Client]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(path))
        yield Client(connection)


def noise(seed: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """A frame of three by three random colours: an untrained network tells such frames apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    rows, columns = (np.arange(length) * 3 // length for length in size)
    return colours[rows][:, columns]


@contextmanager
def serving(
    path: Path, players: Sequence[Player], clock: Callable[[], float] = time.monotonic, **options: Any
) -> Iterator[Server]:
    """A server in a thread of this process, on a Unix socket at `path`; stopped in order at the end."""
    server = Server(players, ServerOptions(**options), clock=clock)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    started = threading.Event()
    errors: list[str] = []
    loop.set_exception_handler(lambda _, context: errors.append(repr(context.get("exception") or context["message"])))

    async def main() -> None:
        with closing(UnixListener(path)) as listener:
            await server.start([listener.socket])
            started.set()
            await stop.wait()
            listener.remove()
            await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert started.wait(DEADLINE_S)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        loop.close()
        assert errors == []


@dataclass
class Program:
    """A `p2p-serve` process that listens."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


def environment(repository: Path) -> dict[str, str]:
    paths = [str(repository), str(repository / "serve"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
