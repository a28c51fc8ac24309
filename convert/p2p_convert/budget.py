"""What one recording may cost a conversion: bytes, frames, processor time. p2p/recording/memory.py bounds its memory.

The bounds are far above any real recording (24 hours, where five minutes are usual). What passes them is rejected; it
neither stops the conversion nor takes the machine with it.
"""

from __future__ import annotations

import time

from p2p.format import MAX_RECORDING_FRAMES
from p2p_convert.errors import Rejected

MAX_FRAMES = MAX_RECORDING_FRAMES
MAX_VIDEO_BYTES = 1 << 36
START_S = 30.0
FRAME_S = 0.25  # fifty times what decoding, stretching and encoding a frame takes


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
        allowed = START_S + FRAME_S * num_frames
        if spent > allowed:
            message = f"{self.where}: frame {num_frames} after {spent:.0f} s of processor time; allowed {allowed:.0f}"
            raise Rejected("takes too long", message)
