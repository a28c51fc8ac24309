"""A client that sends frames at a steady rate, and says how long each answer took."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.protocol import MessageReader, encode_frame, parse_action
from p2p_serve.latency import AMBER_MS, GREEN_MS, colour_of

_DRAIN_S = 5.0
_MAX_ACTION_BYTES = 1 << 20


@dataclass(frozen=True)
class LoadResult:
    """What came of it: round trips in milliseconds, in the order of the answers."""

    num_sent: int
    round_trips_ms: NDArray[np.float64]

    def report(self) -> str:
        """A few lines for the screen."""
        values = self.round_trips_ms
        head = f"sent {self.num_sent}, answered {len(values)}, dropped {self.num_sent - len(values)}"
        if not len(values):
            return head + "; no answer came: is the server still loading, or is another client being served?"
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        green, red = float((values <= GREEN_MS).mean()), float((values > AMBER_MS).mean())
        return (
            f"{head}\nround trip ms: p50 {p50:.2f} · p95 {p95:.2f} · p99 {p99:.2f} ({colour_of(float(p99))}) "
            f"· max {values.max():.2f}\ngreen (to 50 ms) {green:.1%} · amber (to 60) {max(0.0, 1 - green - red):.1%} "
            f"· red {red:.1%}"
        )


def run_load(connection: socket.socket, rate_hz: float, seconds: float, size: tuple[int, int]) -> LoadResult:
    """Send frames of noise, `size` (height, width), at `rate_hz` for so long; then wait shortly for late answers.

    Raises:
        ValueError: when the server closes the connection, or answers what was not asked.
    """
    num_frames = max(1, round(rate_hz * seconds))
    sent_at: dict[int, float] = {}  # of the frames that are not answered
    sender = threading.Thread(target=_send, args=(connection, rate_hz, num_frames, size, sent_at), daemon=True)
    reader = MessageReader(_MAX_ACTION_BYTES)
    round_trips: list[float] = []
    last_id = -1
    end_s = time.monotonic() + seconds + _DRAIN_S
    sender.start()
    try:
        while last_id < num_frames - 1 and (left_s := end_s - time.monotonic()) > 0:
            connection.settimeout(min(left_s, _DRAIN_S + 1 / rate_hz))
            data = connection.recv(65536)
            now = time.monotonic()
            if not data:
                raise ValueError("the server closed the connection; its log says why")
            for payload in reader.feed(data):
                _, last_id = parse_action(payload)
                sent_s = sent_at.pop(last_id, None)
                if sent_s is None:
                    raise ValueError(f"the server answered frame {last_id}, which was not sent or has its answer")
                round_trips.append((now - sent_s) * 1000)
    except TimeoutError:
        pass
    except ConnectionError as error:
        raise ValueError(f"the server closed the connection ({error}); its log says why") from error
    return LoadResult(len(sent_at) + len(round_trips), np.array(round_trips))


def _send(
    connection: socket.socket, rate_hz: float, num_frames: int, size: tuple[int, int], sent_at: dict[int, float]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (8, *size, 3), dtype=np.uint8)
    begin = time.monotonic()
    for frame_id in range(num_frames):
        message = encode_frame(pictures[frame_id % len(pictures)], frame_id)
        wait_s = begin + frame_id / rate_hz - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        sent_at[frame_id] = time.monotonic()
        try:
            connection.sendall(message)
        except OSError:  # the receiving side notices and reports it
            return
