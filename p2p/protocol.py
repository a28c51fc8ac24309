"""The real-time protocol as pure functions: bytes of a stream <-> frames and actions. docs/protocol.md states it.

Each message is a 4-byte little-endian unsigned length, then that many bytes of one serialized
`video_inference.Frame` (client to server) or `video_inference.Action` (server to client).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.proto import video_inference_pb2 as messages

MAX_MESSAGE_BYTES = 32 * 2**20  # a longer one is believed to be a mistake
MAX_FRAME_PIXELS = 1920 * 1200  # a larger frame is not worth its way: what the policy sees is 192 x 192
_LENGTH = struct.Struct("<I")
_BLOCK_BYTES = 2**16
_INT32_MAX = 2**31 - 1
_MAX_GAP = 3600 * FRAME_RATE_HZ


class ProtocolError(ValueError):
    """The peer sent what the protocol does not allow; the connection cannot go on."""


@dataclass(frozen=True)
class Frame:
    """One frame as it came: `image` uint8 [Y, X, 3] RGB, `id` the number that its answer repeats."""

    image: NDArray[np.uint8]
    id: int


class MessageReader:
    """Cuts a stream of bytes into payloads; holds at most one unfinished message.

    Args:
        max_message_bytes: a message that announces more ends the connection: its length cannot be trusted.
        max_kept_bytes: a message that announces more is read past, counted in `num_skipped`, and takes no memory.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES, max_kept_bytes: int | None = None) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_kept_bytes = max_message_bytes if max_kept_bytes is None else max_kept_bytes
        self.num_skipped = 0
        self.last_skipped_bytes = 0
        self._reset()

    def _reset(self) -> None:
        self._prefix = bytearray()
        self._blocks: list[bytearray] = []  # of the payload; a large message never moves while it grows
        self._length = self._num_missing = 0

    @property
    def num_pending_bytes(self) -> int:
        """Bytes of a message that has not arrived completely."""
        return len(self._prefix) + self._length - self._num_missing

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Add what arrived; returns the payloads that are complete now, in order.

        Raises:
            ProtocolError: when a length prefix announces more than the limit; nothing of it is kept.
        """
        rest = memoryview(data)
        payloads: list[bytes] = []
        while rest:
            if len(self._prefix) < _LENGTH.size:
                rest = self._take_prefix(rest)
                if len(self._prefix) < _LENGTH.size:
                    break
            part = rest[: self._num_missing]
            rest = rest[len(part) :]
            self._num_missing -= len(part)
            if self._length <= self._max_kept_bytes:
                self._keep(part)
            if not self._num_missing:
                self._complete(payloads)
        return payloads

    def _keep(self, part: memoryview) -> None:
        if self._blocks and len(self._blocks[-1]) < _BLOCK_BYTES:
            self._blocks[-1] += part
        elif part:
            self._blocks.append(bytearray(part))

    def _complete(self, payloads: list[bytes]) -> None:
        if self._length <= self._max_kept_bytes:
            payloads.append(b"".join(self._blocks))
        else:
            self.num_skipped += 1
            self.last_skipped_bytes = self._length
        self._reset()

    def _take_prefix(self, rest: memoryview) -> memoryview:
        """Move bytes of the length prefix over; returns what follows them."""
        num_bytes = _LENGTH.size - len(self._prefix)
        self._prefix += rest[:num_bytes]
        if len(self._prefix) == _LENGTH.size:
            (length,) = _LENGTH.unpack(self._prefix)
            if length > self._max_message_bytes:
                self._reset()
                raise ProtocolError(
                    f"a message of {length} bytes is announced, at most {self._max_message_bytes} are accepted; "
                    "the length prefix must be 4 bytes, little-endian"
                )
            self._length = self._num_missing = length
        return rest[num_bytes:]


def frame_message(payload: bytes) -> bytes:
    """Any payload with its length prefix."""
    return _LENGTH.pack(len(payload)) + payload


def encode_frame(image: NDArray[np.uint8], frame_id: int) -> bytes:
    """The message, length prefix included, of a frame uint8 [Y, X, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"frame of type {image.dtype} and shape {image.shape}: expected uint8 [height, width, 3]")
    frame = messages.Frame(width=image.shape[1], height=image.shape[0], data=image.tobytes(), id=frame_id)
    return frame_message(frame.SerializeToString())


def parse_frame(payload: bytes) -> Frame:
    """The frame in a payload; its image is a read-only view of the payload's bytes.

    Raises:
        ProtocolError: when it is no `Frame`, a side is not positive, or the data is not width * height * 3 bytes.
    """
    frame = _parse(messages.Frame, payload, "Frame")
    height, width, data = frame.height, frame.width, frame.data  # each look at .data copies it
    num_bytes = len(data)
    if height < 1 or width < 1 or height * width * 3 != num_bytes:
        raise ProtocolError(
            f"frame {frame.id} is {width} x {height} with {num_bytes} bytes of data; "
            "expected width * height * 3 bytes of RGB, row by row"
        )
    return Frame(np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3), frame.id)


def encode_action(action: Action, frame_id: int) -> bytes:
    """The message, length prefix included, that answers the frame `frame_id`."""
    message = messages.Action(keys=action.keys, id=frame_id)
    message.mouse_action.mouse_delta_px.x = action.dx
    message.mouse_action.mouse_delta_px.y = action.dy
    message.mouse_action.buttons_down.extend(action.buttons)
    return frame_message(message.SerializeToString())


def parse_action(payload: bytes) -> tuple[Action, int]:
    """(action, id of the frame it answers) of a payload.

    Raises:
        ProtocolError: when the payload is no `Action`.
    """
    message = _parse(messages.Action, payload, "Action")
    mouse = message.mouse_action
    action = Action(
        tuple(message.keys), tuple(mouse.buttons_down), int(mouse.mouse_delta_px.x), int(mouse.mouse_delta_px.y)
    )
    return action, message.id


def next_frame_id(frame_id: int) -> int:
    """The id after `frame_id`; an int32 that starts anew at 0 when it is used up."""
    return 0 if frame_id >= _INT32_MAX else frame_id + 1


def num_missing_frames(last_id: int, frame_id: int, num_between: int = 0) -> int:
    """How many frames a client left out between two that came, by their ids, which count up by one.

    An int32 that is used up goes on at 0 or at its lowest value; both are 0 here. An id that does not count on from the
    last (it repeats, goes back, or leaps by more than an hour of play) begins a new count.

    Args:
        num_between: frames that came between the two, whose ids nobody looked at.
    """
    advance = (frame_id - last_id) & _INT32_MAX
    return max(0, advance - 1 - num_between) if advance <= _MAX_GAP else 0


def _parse(message_type: Any, payload: bytes, name: str) -> Any:
    try:
        return message_type.FromString(payload)
    except DecodeError as error:
        raise ProtocolError(f"a payload of {len(payload)} bytes is not a video_inference.{name}: {error}") from error
