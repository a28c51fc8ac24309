"""What one recording may cost a conversion: bytes, frames, processor time and memory.

The bounds are far above any real recording (24 hours, where five minutes are usual). What passes them is rejected; it
neither stops the conversion nor takes the machine with it.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from p2p.format import MAX_RECORDING_FRAMES
from p2p_convert.errors import Rejected

MAX_FRAMES = MAX_RECORDING_FRAMES
MAX_ANNOTATION_BYTES = 1 << 29
MAX_VIDEO_BYTES = 1 << 36
MAX_MEMORY_BYTES = 4 << 30  # on top of what the process holds when it begins with a recording
_START_S = 30.0
_FRAME_S = 0.25  # fifty times what decoding, stretching and encoding a frame takes


class Budget:
    """The processor time of one recording; it grows with the frames that are done.

    Processor time and not the clock, so that a busy machine or a slow disk costs no recording.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._begin = time.thread_time()

    def check(self, num_frames: int) -> None:
        """To be called now and then, with the number of frames that one pass over the recording has done so far.

        Raises:
            Rejected: when that took too long, or there are too many.
        """
        if num_frames > MAX_FRAMES:
            raise Rejected("too long", f"{self.where}: more than {MAX_FRAMES} frames, that is 24 hours")
        spent = time.thread_time() - self._begin
        allowed = _START_S + _FRAME_S * num_frames
        if spent > allowed:
            message = f"{self.where}: frame {num_frames} after {spent:.0f} s of processor time; allowed {allowed:.0f}"
            raise Rejected("takes too long", message)


@contextlib.contextmanager
def limited_memory(num_bytes: int = MAX_MEMORY_BYTES) -> Iterator[None]:
    """Within it, the process gets at most this much more memory: what asks for more gets a MemoryError instead.

    Without it, the kernel would kill the process, and the conversion with it. Linux only; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit = used + num_bytes
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
