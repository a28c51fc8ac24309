"""What a server lets its clients do: sizes, times, how many may wait."""

from __future__ import annotations

from dataclasses import dataclass

from p2p.protocol import MAX_FRAME_PIXELS, MAX_MESSAGE_BYTES

_MOST_PIXELS = 2**26  # 192 MiB, and well below what protobuf takes
_FRAME_OVERHEAD_BYTES = 64  # of a serialized frame beside its pixels


@dataclass(frozen=True)
class ServerOptions:
    """Limits of a server.

    `max_frame_pixels`: a larger frame is read past, counted, and not answered.
    `message_timeout_s`: a message that has begun must be complete by then.
    `grace_s`: how long a client may wait for a session to become free before it is refused.
    `idle_takeover_s`: a session with fewer than `min_frames` frames in so long gives way to a client that waits.
    `max_waiting`: clients that may wait at once.
    """

    max_frame_pixels: int = MAX_FRAME_PIXELS
    message_timeout_s: float = 10.0
    grace_s: float = 0.5
    idle_takeover_s: float = 10.0
    min_frames: int = 10
    max_waiting: int = 64
    stop_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_frame_pixels <= _MOST_PIXELS or self.min_frames < 1:
            raise ValueError(
                f"a limit of {self.max_frame_pixels} pixels for a frame (--max-frame), {self.min_frames} frames: "
                f"expected 1 to {_MOST_PIXELS} pixels, and at least 1 frame"
            )

    @property
    def max_kept_bytes(self) -> int:
        """The longest message that is kept."""
        return 3 * self.max_frame_pixels + _FRAME_OVERHEAD_BYTES

    @property
    def max_message_bytes(self) -> int:
        """The longest message whose announcement is believed."""
        return max(MAX_MESSAGE_BYTES, self.max_kept_bytes)
