"""Whether stored packets decode: by the decoder that training uses, which takes no damaged picture.

H.264 has no checksum. Damage is found where it breaks the syntax of the stream, which it soon does unless it is small:
docs/format.md has the figures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import av.error
from av.video.frame import VideoFrame

from p2p.data.video import SegmentDecoder
from p2p.format import Segment
from p2p_convert.budget import Budget
from p2p_convert.errors import Rejected
from p2p_convert.packets import open_video, the_stream

ALL, SAMPLED, NONE = "all", "sampled", "none"
DECODE = (ALL, SAMPLED, NONE)  # what of a recording is decoded before it counts
BYTES_PER_S = 7e6  # of H.264 that one process decodes; only to tell how long it will take
SAMPLED_SHARE = 0.25  # of a recording of five minutes with keyframes every 250 frames
_NUM_SAMPLED = 2  # segments, beside the first
_CHECK_EVERY = 64  # frames
_STRICT = {"err_detect": "aggressive+explode"}


def check_decoding(segments: Sequence[Segment], decode: str, where: str, budget: Budget) -> None:
    """Decode all segments of a recording, or some, or none.

    Which are sampled hangs on the recording's id alone.

    Raises:
        Rejected: naming the first frame that does not decode, or is not as the video says.
    """
    decoder = SegmentDecoder()
    for segment in _chosen(segments, decode):
        number = segment.first_frame
        kind = (segment.video.width, segment.video.height)
        try:
            for frame in decoder.frames(segment, 0, segment.num_frames):
                if (frame.width, frame.height) != kind:
                    message = (
                        f"{where}: frame {number} has {frame.width}x{frame.height} pixels, not {kind[0]}x{kind[1]}"
                    )
                    raise Rejected("video changes its size", message)
                number += 1
                if number % _CHECK_EVERY == 0:
                    budget.check(number)
        except Rejected:
            raise
        except ValueError as error:
            raise Rejected("video does not decode", f"{where}: frame {number} is damaged ({error})") from error


def _chosen(segments: Sequence[Segment], decode: str) -> Sequence[Segment]:
    if decode == NONE:
        return ()
    if decode == ALL or len(segments) <= 1 + _NUM_SAMPLED:
        return segments
    sampled = random.Random(segments[0].recording).sample(range(1, len(segments)), _NUM_SAMPLED)
    return [segments[0], *(segments[k] for k in sorted(sampled))]


def file_frames(video: bytes | Path, where: str, budget: Budget) -> Iterator[VideoFrame]:
    """The frames of a video file in order.

    Raises:
        Rejected: naming the first frame that does not decode.
    """
    number = 0
    with open_video(video, where) as container:
        stream = the_stream(container, where)
        stream.thread_count = 1
        stream.codec_context.options = dict(_STRICT)
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise Rejected("video does not decode", f"{where}: frame {number} is damaged")
                yield frame
                number += 1
                if number % _CHECK_EVERY == 0:
                    budget.check(number)
        except av.error.FFmpegError as error:
            raise Rejected("video does not decode", f"{where}: frame {number}: {error.strerror}") from error
