"""One connection: bytes become frames, the newest frame goes to a player, its answer goes back."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from p2p.protocol import Frame, MessageReader, ProtocolError, num_missing_frames, parse_frame
from p2p_serve.latency import LatencyLog, Marks
from p2p_serve.options import ServerOptions
from p2p_serve.quiet import QuietLog
from p2p_serve.worker import Channel, Worker

MAX_UNREAD_BYTES = 64 * 1024  # answers that wait for a client that does not read; more are thrown away
READ_BYTES = 128 * 1024  # one frame of 192 x 192 in one read
_FLOOD_READ_BYTES = 8 * 1024  # up to two thousand messages, in some 2 ms
MAX_FRAMES_PER_READ = 8  # the newest; whoever sends more at once is not playing
_FREE_CPU_S = 0.002  # of a read; a frame of 192 x 192 takes a twentieth of it
_REST = 4.0  # times what a costly read took,
_LONGEST_REST_S = 0.05  # but no longer than this, which is also what a flood gets: a frame's time


class Owner(Protocol):
    """What a session needs of the server that made it."""

    options: ServerOptions
    clock: Callable[[], float]
    worker: Worker
    say: QuietLog

    @property
    def is_shared(self) -> bool:
        """Whether a session has others beside it."""

    def opened(self, connection: Connection) -> None:
        """A client has connected."""

    def closed(self, connection: Connection) -> None:
        """Its connection has ended."""


class Connection(asyncio.BufferedProtocol):
    """One connection: it waits for a player, then each of its frames replaces the one before.

    What is no frame is dropped and counted; only a length prefix beyond belief, or a message that does not end, closes
    the connection, because nothing that follows could be understood.
    """

    def __init__(self, server: Owner, number: int) -> None:
        options = server.options
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(options.max_message_bytes, options.max_kept_bytes)
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._message_began = 0.0
        self._last_id: int | None = None
        self._num_unidentified = 0  # messages since the frame with that id
        self._num_overtaken = 0
        self._recent_s: deque[float] = deque(maxlen=options.min_frames)
        self.grace: asyncio.TimerHandle | None = None
        self.channel: Channel | None = None
        self._latency = LatencyLog()
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
        self._server.opened(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        if not self._buffer:  # not before it is read from: clients that wait take no memory
            self._buffer = bytearray(READ_BYTES)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        began_s = time.thread_time()
        num_messages = self._received(memoryview(self._buffer)[:nbytes])
        spent_s = time.thread_time() - began_s
        if num_messages > MAX_FRAMES_PER_READ:
            self._buffer = bytearray(_FLOOD_READ_BYTES)
            self._rest_for(_LONGEST_REST_S)
        elif spent_s > _FREE_CPU_S and self._server.is_shared:
            self._rest_for(min(_REST * spent_s, _LONGEST_REST_S))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._timer, self._rest, self.grace):
            if timer is not None:
                timer.cancel()
        if self._reader.num_pending_bytes:
            self.reason += f" in the middle of a message ({self._reader.num_pending_bytes} bytes of it had come)"
        self._transport, self._buffer = None, bytearray()
        self._server.closed(self)

    # --- called by the server

    def begin(self, channel: Channel) -> None:
        """A player is free: read from now on."""
        assert self._transport is not None
        if self.grace is not None:
            self.grace.cancel()
        self.channel = channel
        now = self._server.clock()
        self._recent_s.extend([now] * self._server.options.min_frames)
        self._transport.resume_reading()

    def release(self) -> None:
        """The player has ended the session; without the channel, which knows it, nothing keeps the session alive."""
        if self.channel is not None:
            self._num_overtaken += self.channel.num_dropped
            self.channel = None

    def send(self, message: bytes, marks: Marks) -> None:
        """Send an answer, unless the client has left or does not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() + len(message) > MAX_UNREAD_BYTES:
            self._latency.num_unread += 1
            return
        transport.write(message)
        marks.end("send")
        self._latency.add(marks)

    def close(self, reason: str) -> None:
        """Cut the connection; nothing more of it is read."""
        self.reason = reason
        if self._transport is not None:
            self._transport.abort()

    @property
    def slow_s(self) -> float:
        """Seconds that the client took for its last `min_frames` frames, up to now."""
        return self._server.clock() - self._recent_s[0]

    @property
    def latency(self) -> LatencyLog:
        """What became of the frames so far."""
        self._latency.num_dropped = self._num_overtaken + (0 if self.channel is None else self.channel.num_dropped)
        self._latency.num_too_large = self._reader.num_skipped
        return self._latency

    # --- inner

    def _rest_for(self, seconds: float) -> None:
        """Read nothing for so long: large frames, or a flood of small ones, leave time to the other clients."""
        if self._transport is not None:
            self._transport.pause_reading()
            self._rest = self._loop.call_later(seconds, self._transport.resume_reading)

    def _received(self, data: memoryview) -> int:
        """Do what the bytes say; returns how many messages they completed."""
        now = time.monotonic()
        if not self._reader.num_pending_bytes:
            self._message_began = now
        num_skipped = self._reader.num_skipped
        try:
            payloads = self._reader.feed(data)
        except ProtocolError as error:
            self.close(f"closed: {error}")
            return 0
        if self._reader.num_skipped > num_skipped:
            self._too_large(self._reader.num_skipped - num_skipped)
            self._message_began = now
        num_overtaken = max(0, len(payloads) - MAX_FRAMES_PER_READ)
        self._num_overtaken += num_overtaken
        self._num_unidentified += num_overtaken
        for payload in payloads[num_overtaken:]:
            marks = Marks(self._message_began)
            marks.end("receive", now)
            self._message_began = now
            self._payload(payload, marks)
        if self._reader.num_pending_bytes and self._timer is None:
            self._watch_message()
        return len(payloads)

    def _payload(self, payload: bytes, marks: Marks) -> None:
        try:
            frame = parse_frame(payload)
        except ProtocolError as error:
            self._num_unidentified += 1
            self._latency.num_malformed += 1
            if self._latency.num_malformed == 1:
                self._server.say.warning(
                    "%s: dropped: %s (the first of its kind; more are only counted)", self.name, error
                )
            return
        marks.end("decode")
        self._frame(frame, marks)

    def _frame(self, frame: Frame, marks: Marks) -> None:
        self._recent_s.append(self._server.clock())
        if self._last_id is not None:
            self._latency.num_not_sent += num_missing_frames(self._last_id, frame.id, self._num_unidentified)
        self._last_id, self._num_unidentified = frame.id, 0
        if self.channel is not None:
            self._server.worker.submit(self.channel, frame, marks)

    def _too_large(self, count: int) -> None:
        self._num_unidentified += count
        if self._reader.num_skipped == count:
            self._server.say.warning(
                "%s: dropped: a message of %d bytes; a frame may have at most %d pixels (--max-frame). "
                "Send 192 x 192, which costs least (the first of its kind; more are only counted)",
                self.name,
                self._reader.last_skipped_bytes,
                self._server.options.max_frame_pixels,
            )

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
