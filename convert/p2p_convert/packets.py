"""The packets of a video file as they are, in decoding order, and where decoding can start among them.

What comes from outside is a video only if it is an MP4 file with one H.264 stream of a plausible size; for the one
that is trained on, about 20 frames a second as well.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from p2p import gate
from p2p.format import Video
from p2p_convert.budget import MAX_VIDEO_BYTES, Budget
from p2p_convert.errors import Rejected

MIN_RATE_HZ, MAX_RATE_HZ = 19, 21  # of a video that is taken frame by frame; the same bounds as upstream's
PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv444p", "yuvj444p", "gbrp")  # 8 bits; "j" is the full range
MIN_PIXELS, MAX_PIXELS = 16, 4096  # of a side
_ODD_TIMES_S = 0.25  # a first or last frame that comes late must not cost a short recording
_IDR_SLICE = 5  # H.264 NAL unit type: a picture after which nothing before it is needed
_PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE
_CHECK_EVERY = 256  # packets
# Only this file: no others that it names, over any protocol, whatever it is called.
_NOTHING_ELSE = {"enable_drefs": "0", "use_absolute_path": "0", "protocol_whitelist": "none"}


@dataclass(frozen=True)
class PacketList:
    """All packets of a video, where they lie in `content` (the file itself).

    places int64 [p] and sizes uint32 [p] delimit the packets. frames int32 [p]: the frame (in the order of
    showing) that each packet becomes, -1 when it is decoded but never shown. starts int32 [k]: packets at which
    decoding can start, having shown exactly the frames before. doubtful: why the packets alone may not tell what
    a player shows ("" when they do), so that it must be tried.
    """

    video: Video
    content: memoryview
    places: NDArray[np.int64]
    sizes: NDArray[np.uint32]
    frames: NDArray[np.int32]
    starts: NDArray[np.int32]
    doubtful: str

    @property
    def num_frames(self) -> int:
        return int(np.count_nonzero(self.frames >= 0))

    def pieces(self, first: int, end: int) -> list[memoryview]:
        """The packets first .. end - 1, in as few pieces as they lie in."""
        places, ends = self.places[first:end], self.places[first:end] + self.sizes[first:end]
        breaks = np.flatnonzero(places[1:] != ends[:-1]) + 1
        begins = places[np.concatenate([[0], breaks])].tolist()
        return [self.content[a:b] for a, b in zip(begins, ends[[*(breaks - 1), -1]].tolist(), strict=True)]


@dataclass
class _Demuxed:
    """What a demuxer tells of each packet, in decoding order; keys are the numbers of keyframes that are IDR."""

    places: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pts: list[int | None] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    changes_codec: bool = False
    is_cut_off: bool = False


def read_packets(video: bytes | Path, where: str, budget: Budget | None = None) -> PacketList:
    """The packets of a video to be trained on, given as its content or its path; `where` names it in errors.

    Raises:
        Rejected: when it is not such a video, holds no frame, or was cut off.
    """
    content = _file_bytes(video, where)
    with open_video(video, where) as container:
        stream = the_stream(container, where)
        demuxed = _demux(container, stream, content, budget or Budget(where))
        _check(demuxed, stream, len(content), where)
        return _arrange(stream, demuxed, content)


@contextlib.contextmanager
def open_video(video: bytes | Path, where: str = "") -> Iterator[InputContainer]:
    """A container to read from, of an MP4 video's content or its path.

    Raises:
        Rejected: when it is none, here or while it is read.
    """
    where = where or (str(video) if isinstance(video, Path) else "a video")
    with io.BytesIO(video) if isinstance(video, bytes) else gate.open_regular(video) as file:
        plain = file.raw if isinstance(file, io.BufferedReader) else file  # FFmpeg has a buffer of its own
        try:
            with av.open(plain, mode="r", format="mov", options=_NOTHING_ELSE, metadata_errors="replace") as container:
                yield container
        except av.error.FFmpegError as error:
            raise Rejected("unreadable video", f"{where}: {error.strerror}") from error


def the_stream(container: InputContainer, where: str) -> VideoStream:
    """The one video stream of a file, H.264 of a plausible size and pixel format.

    Raises:
        Rejected: when there is none, or another one.
    """
    streams = container.streams.video
    if len(streams) != 1:
        reason = "several video streams" if streams else "no video stream"
        raise Rejected(reason, f"{where} holds {len(streams)}; expected one, of H.264")
    context = streams[0].codec_context
    if context is None or context.name != "h264":
        raise Rejected("not H.264", f"{where}: its video is {gate.shown(getattr(context, 'name', None))}, not h264")
    width, height = context.width, context.height
    if not (MIN_PIXELS <= width <= MAX_PIXELS and MIN_PIXELS <= height <= MAX_PIXELS):
        message = f"{where}: pictures of {width}x{height}; expected {MIN_PIXELS} to {MAX_PIXELS} pixels a side"
        raise Rejected("implausible size", message)
    if context.pix_fmt not in PIXEL_FORMATS:
        message = f"{where}: its pixels are {context.pix_fmt}; expected one of {', '.join(PIXEL_FORMATS)}"
        raise Rejected("foreign pixel format", message)
    return streams[0]


def seconds(pts: Sequence[int | None], stream: VideoStream) -> NDArray[np.float64]:
    """Time stamps, ascending, in seconds."""
    assert stream.time_base is not None
    return np.sort(np.array([p for p in pts if p is not None], np.float64)) * float(stream.time_base)


def rate_problem(num_frames: int, duration_s: float) -> str:
    """Why frames, the first and the last of which are so far apart, are not about 20 a second; "" when they are.

    The mean counts: single frames may come early or late.
    """
    steps = num_frames - 1
    if steps < 1:
        return ""
    if steps / MAX_RATE_HZ - _ODD_TIMES_S <= duration_s <= steps / MIN_RATE_HZ + _ODD_TIMES_S:
        return ""
    return f"{steps + 1} frames in {duration_s:.6g} s; expected {MIN_RATE_HZ} to {MAX_RATE_HZ} a second"


def _demux(container: InputContainer, stream: VideoStream, content: memoryview, budget: Budget) -> _Demuxed:
    """Raises Rejected where a packet does not lie in the file as it is: then it could not be carried over."""
    found = _Demuxed()
    places, sizes, pts = found.places, found.sizes, found.pts
    is_cut_off = False
    extradata = stream.codec_context.extradata or b""
    for packet in container.demux(stream):
        size = packet.size
        if not size:
            continue
        number = len(sizes)
        if number % _CHECK_EVERY == 0:
            budget.check(number)
        is_cut_off |= packet.is_corrupt
        if packet.is_discard:
            found.hidden.append(number)
        place = packet.pos
        if place is None:
            raise Rejected("packets without a place", f"{budget.where}: packet {number} does not lie in the file")
        if packet.is_keyframe:
            key = bytes(packet)
            if not is_cut_off and content[place : place + size].tobytes() != key:  # bytes compare faster
                raise Rejected("packets are wrapped", f"{budget.where}: packet {number} lies in the file otherwise")
            if _has_idr_slice(key, extradata):
                found.keys.append(number)
            found.changes_codec |= packet.has_sidedata("new_extradata")
        pts.append(packet.pts)
        places.append(place)
        sizes.append(size)
    found.is_cut_off = is_cut_off
    return found


def _check(found: _Demuxed, stream: VideoStream, num_bytes: int, where: str) -> None:
    """Reject what is cut off, empty, or cannot be put in order."""
    count = len(found.sizes)
    if found.is_cut_off:
        raise Rejected("truncated video", f"{where}: the file ends inside packet {count} of {stream.frames}")
    if count < stream.frames and max(e.pos + e.size for e in stream.index_entries) > num_bytes:
        raise Rejected("truncated video", f"{where}: {count} of {stream.frames} packets are there")
    if count == len(found.hidden):
        raise Rejected("empty video", f"{where}: no frame")
    if None in found.pts:
        raise Rejected("video without timestamps", f"{where}: packet {found.pts.index(None)} has none")
    if found.changes_codec:
        raise Rejected("video changes its parameters", f"{where}: new codec parameters inside the stream")
    assert stream.time_base is not None
    duration = (max(found.pts) - min(found.pts)) * stream.time_base  # type: ignore[type-var, operator]
    problem = rate_problem(count, float(duration))
    if problem:
        raise Rejected("not 20 frames a second", f"{where}: {problem}")


def _file_bytes(video: bytes | Path, where: str) -> memoryview:
    if isinstance(video, bytes):
        return memoryview(video)
    with gate.open_regular(video) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if not 0 < num_bytes <= MAX_VIDEO_BYTES:
            raise Rejected("unreadable video", f"{where}: {num_bytes} bytes; expected 1 to {MAX_VIDEO_BYTES}")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _arrange(stream: VideoStream, found: _Demuxed, content: memoryview) -> PacketList:
    pts = np.array(found.pts, np.int64)
    order = np.argsort(pts, kind="stable")
    rank = np.empty(len(pts), np.int64)
    rank[order] = np.arange(len(pts))
    shown = np.ones(len(pts), bool)
    shown[found.hidden] = False
    frames = np.where(shown, (np.cumsum(shown[order]) - 1)[rank], -1).astype(np.int32)
    lowest_later = np.minimum.accumulate(rank[::-1])[::-1]
    context = stream.codec_context
    starts = [number for number in found.keys if rank[number] == number == lowest_later[number]]
    doubts = {
        "two frames with one timestamp": len(np.unique(pts)) < len(pts),
        "it does not start with a keyframe": not starts or starts[0] != 0,
        "it is interlaced": int(context.field_order) not in _PROGRESSIVE,
    }
    if not starts or starts[0] != 0:
        starts = [0, *starts]
    video = Video(
        codec=context.name,
        width=context.width,
        height=context.height,
        extradata=context.extradata or b"",
        color_range=int(context.color_range),
        color_primaries=int(context.color_primaries),
        color_trc=int(context.color_trc),
        colorspace=int(context.colorspace),
        reordered=bool(np.any(rank != np.arange(len(rank)))),
    )
    doubtful = ", ".join(doubt for doubt, holds in doubts.items() if holds)
    places, sizes = np.array(found.places, np.int64), np.array(found.sizes, np.uint32)
    return PacketList(video, content, places, sizes, frames, np.array(starts, np.int32), doubtful)


def _has_idr_slice(packet: bytes, extradata: bytes) -> bool:
    """Whether an H.264 access unit holds an IDR picture; `extradata` tells how NAL units are delimited."""
    if extradata[:1] != b"\x01":  # start codes, not lengths
        return any(packet[i + 3] & 31 == _IDR_SLICE for i in _start_codes(packet))
    length_size = (extradata[4] & 3) + 1
    position = 0
    while position + length_size < len(packet):
        length = int.from_bytes(packet[position : position + length_size], "big")
        if packet[position + length_size] & 31 == _IDR_SLICE:
            return True
        position += length_size + length
    return False


def _start_codes(packet: bytes) -> list[int]:
    found = []
    position = packet.find(b"\x00\x00\x01")
    while 0 <= position < len(packet) - 3:
        found.append(position)
        position = packet.find(b"\x00\x00\x01", position + 3)
    return found
