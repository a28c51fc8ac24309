"""Run a server until it is told to stop: sockets, signals, control, reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p_serve.control import Control
from p2p_serve.latency import LatencyLog, check_png
from p2p_serve.options import ServerOptions
from p2p_serve.players import Player
from p2p_serve.quiet import QuietLog
from p2p_serve.server import Server
from p2p_serve.sockets import UnixListener, listen_tcp, who_can_reach
from p2p_serve.text import TextSource

log = logging.getLogger(__name__)

_GIL_INTERVAL_S = 0.0005  # Python's 5 ms would be seen in every answer


@dataclass(frozen=True)
class AppOptions:
    """Where a server listens, and what it reports."""

    socket: Path | None
    socket_mode: int = 0o600
    tcp: str | None = None
    text_file: Path | None = None
    text_socket: Path | None = None
    latency_png: Path | None = None
    what: str = ""
    server: ServerOptions = ServerOptions()

    def __post_init__(self) -> None:
        if self.latency_png is not None:
            check_png(self.latency_png)


def run(players: Sequence[Player], options: AppOptions, text: TextSource | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status: 0, or 1 when the players cannot run here.

    Raises:
        ValueError: when a socket cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        listeners = _open(options, stack)
        sys.setswitchinterval(_GIL_INTERVAL_S)
        return asyncio.run(_serve(players, options, listeners, text))


@dataclass(frozen=True)
class _Listeners:
    """What the server listens on."""

    frames: UnixListener | None
    text: UnixListener | None
    tcp: socket.socket | None

    def leave(self) -> None:
        """Let the next server have the paths."""
        for listener in (self.frames, self.text):
            if listener is not None:
                listener.remove()


def _open(options: AppOptions, stack: contextlib.ExitStack) -> _Listeners:
    """Open them all; the stack closes them."""

    def unix(path: Path | None, mode: int, option: str) -> UnixListener | None:
        return None if path is None else stack.enter_context(contextlib.closing(UnixListener(path, mode, option)))

    frames = unix(options.socket, options.socket_mode, "--socket")
    text = unix(options.text_socket, 0o600, "--text-socket")
    tcp = None if options.tcp is None else stack.enter_context(listen_tcp(options.tcp))
    return _Listeners(frames, text, tcp)


async def _serve(
    players: Sequence[Player],
    options: AppOptions,
    listeners: _Listeners,
    text: TextSource | None,
) -> int:
    status = 0
    stopped = asyncio.Event()
    _stop_on_signals(stopped)
    loop = asyncio.get_running_loop()

    say, picture = QuietLog(log), Picture(options.latency_png)

    def session_ended(latency: LatencyLog) -> None:
        say.info("%s", latency.report())
        picture.draw(latency)

    def warm(all_well: bool) -> None:
        nonlocal status
        if all_well:
            log.info("warm: answers are at full speed from now on")
        else:
            status = 1
            log.error("the policy does not run here, see above; stopping")
            stopped.set()

    server = Server(players, options.server, session_ended, lambda well: _tell(loop, warm, well))
    control = Control(text, {"report": lambda: _report(server, picture), "forget": lambda: _forget(server)})
    loop.add_signal_handler(signal.SIGUSR1, lambda: log.info("%s", _report(server, picture)))
    frames = None if listeners.frames is None else listeners.frames.socket
    await server.start([listener for listener in (frames, listeners.tcp) if listener is not None])
    _announce(options, listeners)
    await _take_instructions(control, options, listeners, text)
    await stopped.wait()
    log.info("stopping")
    _notify("STOPPING=1")
    listeners.leave()
    await control.stop()
    await server.stop()
    await picture.finish()
    return status


def _announce(options: AppOptions, listeners: _Listeners) -> None:
    where = [] if listeners.frames is None else [str(listeners.frames.path)]
    if listeners.tcp is not None:
        where.append(_tcp_name(listeners.tcp))
    log.info("listening on %s · %s · warming up in the background", " and ".join(where), options.what)
    if listeners.tcp is not None:
        log.warning("%s", who_can_reach(listeners.tcp))
    _notify("READY=1")


async def _take_instructions(
    control: Control, options: AppOptions, listeners: _Listeners, text: TextSource | None
) -> None:
    if text is not None and sys.stdin is not None and not sys.stdin.closed:
        control.read_terminal()
    if options.text_file is not None:
        control.watch_file(options.text_file)
    if listeners.text is not None:
        await control.listen(listeners.text.socket)


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[bool], None], value: bool) -> None:
    """Call the function in the loop, from another thread, unless the loop has ended."""
    try:
        loop.call_soon_threadsafe(function, value)
    except RuntimeError:
        log.debug("the loop has ended")


def _stop_on_signals(stopped: asyncio.Event) -> None:
    """The first SIGINT or SIGTERM stops in order, a second one at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def _tcp_name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"tcp {host}:{port}"


def _report(server: Server, picture: Picture) -> str:
    if not server.sessions:
        return "no session is being served"
    for session in server.sessions:
        picture.draw(session.latency)
    return "\n".join(f"{session.name}\n{session.latency.report()}" for session in server.sessions)


def _forget(server: Server) -> str:
    server.forget()
    return "the history is forgotten from the next frame on"


class Picture:
    """The latencies of the newest session that has ended or was asked about, drawn at `path` (None: nowhere).

    It is drawn in another thread: it takes a second, and a session may be going on. While one is being drawn, the
    newest of the next ones waits, and only that.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._next: LatencyLog | None = None
        self._drawing: asyncio.Task[None] | None = None

    def draw(self, latency: LatencyLog) -> None:
        """Draw it as soon as possible, unless a newer one comes first."""
        if self._path is None:
            return
        self._next = latency
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._draw(self._path))

    async def finish(self) -> None:
        """Wait until the last one is drawn."""
        if self._drawing is not None:
            await self._drawing

    async def _draw(self, path: Path) -> None:
        while self._next is not None:
            latency, self._next = self._next, None
            try:
                await asyncio.to_thread(latency.write_png, path)
            except (ValueError, OSError) as error:
                log.warning("%s", error)
        self._drawing = None


def _notify(state: str) -> None:
    """Tell a service manager of the kind of systemd, if one asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.debug("the service manager was not told: %s", error)
