"""The server's life: listen, give each connection a session, keep only its newest frame, stop cleanly."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from p2p.protocol import MAX_MESSAGE_BYTES, Frame, MessageReader, ProtocolError, parse_frame
from p2p_serve.latency import LatencyLog, Marks
from p2p_serve.players import Player
from p2p_serve.worker import Channel, Worker

log = logging.getLogger(__name__)

MAX_UNREAD_BYTES = 64 * 1024  # answers that wait for a client that does not read; more are thrown away


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server.

    `message_timeout_s`: a message that has begun must be complete by then.
    `grace_s`: how long a client may wait for a session to become free before it is refused.
    `idle_takeover_s`: a session without a frame for so long gives way to a client that waits.
    `max_waiting`: clients that may wait at once.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    message_timeout_s: float = 10.0
    grace_s: float = 0.5
    idle_takeover_s: float = 10.0
    max_waiting: int = 64
    stop_timeout_s: float = 10.0


class Session(asyncio.Protocol):
    """One connection: it waits for a player, then each of its frames replaces the one before."""

    def __init__(self, server: Server, number: int) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(server.options.max_message_bytes)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._message_began = 0.0
        self.last_frame_s = time.monotonic()
        self.grace: asyncio.TimerHandle | None = None
        self.channel: Channel | None = None
        self.latency = LatencyLog()
        self.name = f"client {number}"
        self.reason = "the client left"

    # --- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._server.session_opened(self)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if not self._reader.num_pending_bytes:
            self._message_began = now
        try:
            payloads = self._reader.feed(data)
            for payload in payloads:
                marks = Marks(self._message_began)
                marks.end("receive", now)
                self._message_began = now
                self._frame(parse_frame(payload), marks)
        except ProtocolError as error:
            self.close(f"closed: {error}")
            return
        if self._reader.num_pending_bytes and self._timer is None:
            self._watch_message()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._timer, self.grace):
            if timer is not None:
                timer.cancel()
        if self._reader.num_pending_bytes:
            self.reason += f" in the middle of a message ({self._reader.num_pending_bytes} bytes of it had come)"
        self._server.session_closed(self)

    # --- called by the server

    def begin(self, channel: Channel) -> None:
        """A player is free: read from now on."""
        assert self._transport is not None
        if self.grace is not None:
            self.grace.cancel()
        self.channel = channel
        self.last_frame_s = time.monotonic()
        self._transport.resume_reading()
        log.info("%s: connected", self.name)

    def send(self, message: bytes, marks: Marks) -> None:
        """Send an answer, unless the client has left or does not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(message) > MAX_UNREAD_BYTES:
            self.latency.num_unread += 1
            return
        transport.write(message)
        marks.end("send")
        self.latency.add(marks)

    def close(self, reason: str) -> None:
        """Cut the connection; nothing more of it is read."""
        self.reason = reason
        if self._transport is not None:
            self._transport.abort()

    # --- inner

    def _frame(self, frame: Frame, marks: Marks) -> None:
        marks.end("decode")
        self.last_frame_s = time.monotonic()
        if self.channel is not None:
            self._server.worker.submit(self.channel, frame, marks)

    def _watch_message(self) -> None:
        timeout_s = self._server.options.message_timeout_s
        self._timer = None
        if not self._reader.num_pending_bytes:
            return
        left_s = self._message_began + timeout_s - time.monotonic()
        if left_s <= 0:
            self.close(f"closed: a message of which {self._reader.num_pending_bytes} bytes came within {timeout_s:g} s")
            return
        self._timer = self._loop.call_later(left_s, self._watch_message)


class Server:
    """Serves as many sessions at a time as it has players.

    Args:
        players: each has a state of its own.
        on_session_end: gets the latencies of a session that has answered a frame.
        on_warm: told, from the inference thread, whether the players could be warmed up.
    """

    def __init__(
        self,
        players: Sequence[Player],
        options: ServerOptions | None = None,
        on_session_end: Callable[[LatencyLog], None] | None = None,
        on_warm: Callable[[bool], None] | None = None,
    ) -> None:
        self.options = options or ServerOptions()
        self.worker = Worker()
        self._players = list(players)
        self._free = deque(players)
        self._waiting: deque[Session] = deque()
        self._active: list[Session] = []
        self._open: set[Session] = set()
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
    def sessions(self) -> list[Session]:
        """The sessions that have a player, oldest first."""
        return list(self._active)

    def forget(self) -> None:
        """Every session forgets its history before its next frame."""
        for session in self._active:
            if session.channel is not None:
                self.worker.forget(session.channel)

    # --- sessions report here

    def session_opened(self, session: Session) -> None:
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

    def session_closed(self, session: Session) -> None:
        self._open.discard(session)
        if session in self._waiting:
            self._waiting.remove(session)
        channel = session.channel
        if channel is None:
            log.info("%s: %s", session.name, session.reason)
            return
        session.latency.num_dropped = channel.num_dropped
        self.worker.end(channel)
        log.info("%s: %s; %s", session.name, session.reason, session.latency.summary())
        if self._on_session_end is not None and session.latency.num_answered:
            self._on_session_end(session.latency)

    # --- inner

    def _new_session(self) -> Session:
        self._num_connections += 1
        return Session(self, self._num_connections)

    def _begin(self, session: Session) -> None:
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

    def _from_worker(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has ended: nobody is there to be told
            log.debug("%s after the end", function)

    def _released(self, session: Session, player: Player) -> None:
        self._active.remove(session)
        self._free.append(player)
        while self._free and self._waiting:
            self._begin(self._waiting.popleft())

    def _grace_over(self, session: Session) -> None:
        if session not in self._waiting:
            return
        if any(active not in self._open for active in self._active):  # its client has left; it is being ended
            session.grace = self._loop.call_later(self.options.grace_s, self._grace_over, session)
            return
        now = time.monotonic()
        idle = [s for s in self._active if now - s.last_frame_s > self.options.idle_takeover_s]
        if idle:
            idle[0].close(f"closed: no frame for {now - idle[0].last_frame_s:.0f} s, and another client waits")
            return
        names = ", ".join(active.name for active in self._active)
        session.close(f"refused: {names} is being served and {len(self._players)} at a time is the limit (--sessions)")
