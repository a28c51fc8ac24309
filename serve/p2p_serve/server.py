"""The server's life: listen, give each connection a session, keep only its newest frame, stop cleanly."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from p2p_serve.connection import Connection
from p2p_serve.latency import LatencyLog
from p2p_serve.options import ServerOptions
from p2p_serve.players import Player
from p2p_serve.quiet import QuietLog
from p2p_serve.worker import Channel, Worker

log = logging.getLogger(__name__)


class Server:
    """Serves as many sessions at a time as it has players.

    Args:
        players: each has a state of its own.
        on_session_end: gets the latencies of a session that has answered a frame.
        on_warm: told, from the inference thread, whether the players could be warmed up.
        clock: seconds, by which a client is found to be slow.
    """

    def __init__(
        self,
        players: Sequence[Player],
        options: ServerOptions | None = None,
        on_session_end: Callable[[LatencyLog], None] | None = None,
        on_warm: Callable[[bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or ServerOptions()
        self.clock = clock
        self.worker = Worker()
        self.say = QuietLog(log)
        self._players = list(players)
        self._free = deque(players)
        self._waiting: deque[Connection] = deque()
        self._active: list[Connection] = []
        self._open: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._on_session_end = on_session_end
        self._on_warm = on_warm or (lambda _: None)
        self._num_connections = 0
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop

    async def start(self, listeners: Sequence[socket.socket]) -> None:
        """Begin to accept on sockets that listen already; the players warm up in the background."""
        self._loop = asyncio.get_running_loop()
        for listener in listeners:
            self._listeners.append(await self._loop.create_server(self._new_session, sock=listener))
        self.worker.start(self._players, on_warm=self._on_warm)

    async def stop(self) -> None:
        """Accept no more, close every connection, let the players finish."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for session in list(self._open):
            session.close("the server stops")
        while self._open:
            await asyncio.sleep(0)
        stopped = await asyncio.to_thread(self.worker.stop, self.options.stop_timeout_s)
        if not stopped:
            log.warning("the inference thread did not finish within %g s", self.options.stop_timeout_s)

    @property
    def sessions(self) -> list[Connection]:
        """The sessions that have a player, oldest first."""
        return list(self._active)

    @property
    def is_shared(self) -> bool:
        """Whether a session has others beside it."""
        return len(self._active) > 1

    def forget(self) -> None:
        """Every session forgets its history before its next frame."""
        for session in self._active:
            if session.channel is not None:
                self.worker.forget(session.channel)

    # --- connections report here

    def opened(self, session: Connection) -> None:
        self._open.add(session)
        if self._stopping:
            session.close("the server stops")
        elif self._free:
            self._begin(session)
        elif len(self._waiting) >= self.options.max_waiting:
            session.close(f"refused: {len(self._waiting)} clients wait already")
        else:
            self._waiting.append(session)
            session.grace = self._loop.call_later(self.options.grace_s, self._grace_over, session)

    def closed(self, session: Connection) -> None:
        self._open.discard(session)
        if session in self._waiting:
            self._waiting.remove(session)
        channel = session.channel
        if channel is None:
            self.say.info("%s: %s", session.name, session.reason)
            return
        self.worker.end(channel)
        self.say.info("%s: %s; %s", session.name, session.reason, session.latency.summary())
        if self._on_session_end is not None and session.latency.num_answered:
            self._on_session_end(session.latency)

    # --- inner

    def _new_session(self) -> Connection:
        self._num_connections += 1
        return Connection(self, self._num_connections)

    def _begin(self, session: Connection) -> None:
        player = self._free.popleft()
        self._active.append(session)
        session.begin(
            Channel(
                player,
                deliver=lambda message, marks: self._from_worker(session.send, message, marks),
                fail=lambda: self._from_worker(session.close, "closed: the player failed"),
                release=lambda: self._from_worker(self._released, session, player),
            )
        )
        self.say.info("%s: connected", session.name)

    def _from_worker(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has ended: nobody is there to be told
            log.debug("%s after the end", function)

    def _released(self, session: Connection, player: Player) -> None:
        self._active.remove(session)
        session.release()
        self._free.append(player)
        while self._free and self._waiting:
            self._begin(self._waiting.popleft())

    def _grace_over(self, session: Connection) -> None:
        if session not in self._waiting:
            return
        if any(active not in self._open for active in self._active):  # its client has left; it is being ended
            session.grace = self._loop.call_later(self.options.grace_s, self._grace_over, session)
            return
        slow = [s for s in self._active if s.slow_s > self.options.idle_takeover_s]
        if slow:
            seconds = f"{slow[0].slow_s:.0f} s"
            slow[0].close(f"closed: fewer than {self.options.min_frames} frames in {seconds}, and another client waits")
            return
        names = ", ".join(active.name for active in self._active)
        session.close(f"refused: {names} is being served and {len(self._players)} at a time is the limit (--sessions)")
