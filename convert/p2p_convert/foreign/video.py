"""The video of a foreign recording: a part of a file, its times and its frames.

Unlike our own recordings', it is decoded at once and never trained on as it is, so more codecs and Matroska are taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from p2p import gate
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.errors import Rejected
from p2p_convert.packets import MAX_PIXELS, MIN_PIXELS

_CONTAINERS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska"}
_CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4")
_CHECK_EVERY = 64
_SLACK_S = 1e-4  # times of a part are rounded
# Only this file: no others that it names, over any protocol, whatever it is called.
_NOTHING_ELSE = {"protocol_whitelist": "none"}


@dataclass(frozen=True)
class Clip:
    """The frames of a video file that are shown in [start_s, end_s)."""

    path: Path
    start_s: float = 0.0
    end_s: float = math.inf

    def holds(self, seconds: float) -> bool:
        return self.start_s - _SLACK_S <= seconds < self.end_s - _SLACK_S


def times(clip: Clip, budget: Budget) -> NDArray[np.float64]:
    """Seconds at which each frame of the clip is shown, ascending; the packets' word, nothing is decoded.

    Raises:
        Rejected: when the file is no such video.
    """
    found: list[float] = []
    with _open(clip.path) as container:
        stream = _stream(container, clip.path)
        base = _time_base(stream)
        _seek(container, stream, clip)
        for number, packet in enumerate(container.demux(stream)):
            if number % _CHECK_EVERY == 0:
                budget.check(number)
            if packet.dts is not None and packet.dts * base > clip.end_s + 1:  # in order of decoding
                break
            if packet.size and packet.pts is not None and not packet.is_discard and clip.holds(packet.pts * base):
                found.append(packet.pts * base)
    if len(found) > MAX_FRAMES:
        raise Rejected("too long", f"{clip.path}: more than {MAX_FRAMES} frames, that is 24 hours")
    return np.sort(np.array(found, np.float64))


def frames(clip: Clip, budget: Budget) -> Iterator[VideoFrame]:
    """The frames of the clip in order.

    Raises:
        Rejected: naming the first frame that does not decode.
    """
    number = 0
    with _open(clip.path) as container:
        stream = _stream(container, clip.path)
        stream.thread_count = 1
        base = _time_base(stream)
        _seek(container, stream, clip)
        try:
            for decoded, frame in enumerate(container.decode(stream)):
                if decoded % _CHECK_EVERY == 0:
                    budget.check(decoded)
                if frame.pts is None or frame.is_corrupt:
                    raise Rejected("video does not decode", f"{clip.path}: frame {number} is damaged")
                if frame.pts * base >= clip.end_s - _SLACK_S:
                    return
                if clip.holds(frame.pts * base):
                    yield frame
                    number += 1
        except av.error.FFmpegError as error:
            raise Rejected("video does not decode", f"{clip.path}: frame {number}: {error.strerror}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[InputContainer]:
    kind = _CONTAINERS.get(path.suffix.lower())
    if kind is None:
        raise Rejected("unreadable video", f"{path}: expected a video called {', '.join(_CONTAINERS)}")
    options = {**_NOTHING_ELSE, **({"enable_drefs": "0", "use_absolute_path": "0"} if kind == "mov" else {})}
    with gate.open_regular(path) as file:
        try:
            with av.open(file.raw, mode="r", format=kind, options=options, metadata_errors="replace") as container:
                yield container
        except av.error.FFmpegError as error:
            raise Rejected("unreadable video", f"{path}: {error.strerror}") from error


def _stream(container: InputContainer, path: Path) -> VideoStream:
    streams = container.streams.video
    if len(streams) != 1:
        raise Rejected("several video streams" if streams else "no video stream", f"{path} holds {len(streams)}")
    context = streams[0].codec_context
    if context is None or context.codec.canonical_name not in _CODECS:
        name = gate.shown(getattr(context, "name", None))
        raise Rejected("foreign codec", f"{path}: its video is {name}; expected one of {', '.join(_CODECS)}")
    width, height = context.width, context.height
    if not (MIN_PIXELS <= width <= MAX_PIXELS and MIN_PIXELS <= height <= MAX_PIXELS):
        message = f"{path}: pictures of {width}x{height}; expected {MIN_PIXELS} to {MAX_PIXELS} pixels a side"
        raise Rejected("implausible size", message)
    return streams[0]


def _time_base(stream: VideoStream) -> float:
    assert stream.time_base is not None
    return float(stream.time_base)


def _seek(container: InputContainer, stream: VideoStream, clip: Clip) -> None:
    """To the last keyframe at or before the clip's beginning."""
    if clip.start_s > 0:
        container.seek(int(clip.start_s / _time_base(stream)), stream=stream, backward=True)
