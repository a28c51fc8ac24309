"""The packets of a video file as they are, in decoding order, and where decoding can start among them."""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from p2p.format import Video
from p2p_convert.errors import Rejected

_IDR_SLICE = 5  # H.264 NAL unit type: a picture after which nothing before it is needed
_PROGRESSIVE = (0, 1)  # AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE


@dataclass(frozen=True)
class PacketList:
    """All packets of a video, where they lie in `content` (the file itself, where that can be).

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
    """What a demuxer tells of each packet, in decoding order; keys are {number of a keyframe: its bytes}."""

    places: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    pts: list[int | None] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    keys: dict[int, bytes] = field(default_factory=dict)
    changes_codec: bool = False
    is_cut_off: bool = False


def read_packets(video: bytes | Path, where: str) -> PacketList:
    """The packets of a video, given as its content or its path; `where` names it in errors.

    Raises:
        Rejected: when it is not a video, holds no frame, or was cut off.
    """
    num_bytes = len(video) if isinstance(video, bytes) else video.stat().st_size
    try:
        with open_video(video) as container:
            if not container.streams.video:
                raise Rejected("no video stream", f"{where} holds no video")
            stream = container.streams.video[0]
            demuxed = _demux(container, stream)
            _check(demuxed, stream, num_bytes, where)
            content, places = _locate(video, demuxed)
            return _arrange(stream, demuxed, content, places)
    except av.error.FFmpegError as error:
        raise Rejected("unreadable video", f"{where} ({num_bytes} bytes): {error.strerror}") from error


def open_video(video: bytes | Path) -> InputContainer:
    """A container to read from, of a video's content or its path."""
    return av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video), mode="r")


def _demux(container: InputContainer, stream: VideoStream) -> _Demuxed:
    found = _Demuxed()
    places, sizes, pts = found.places, found.sizes, found.pts
    for packet in container.demux(stream):
        size = packet.size
        if not size:
            continue
        found.is_cut_off = packet.is_corrupt
        if packet.is_discard:
            found.hidden.append(len(sizes))
        if packet.is_keyframe:
            found.keys[len(sizes)] = bytes(packet)
            found.changes_codec |= packet.has_sidedata("new_extradata")
        pts.append(packet.pts)
        places.append(packet.pos)
        sizes.append(size)
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


def _locate(video: bytes | Path, found: _Demuxed) -> tuple[memoryview, NDArray[np.int64]]:
    """(bytes that hold the packets, where each lies in them).

    MP4 holds the packets as they are: then these are the file's own bytes, and no packet is copied. That is
    checked on the keyframes; where it does not hold, they are what the demuxer gives.
    """
    if None not in found.places:
        content = _file_bytes(video)
        places = np.array(found.places, np.int64)
        if all(content[places[k] : places[k] + len(key)].tobytes() == key for k, key in found.keys.items()):
            return content, places
    with open_video(video) as container:
        content = memoryview(b"".join(bytes(packet) for packet in container.demux(video=0)))
    return content, np.cumsum([0, *found.sizes[:-1]], dtype=np.int64)


def _file_bytes(video: bytes | Path) -> memoryview:
    if isinstance(video, bytes):
        return memoryview(video)
    with open(video, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _arrange(stream: VideoStream, found: _Demuxed, content: memoryview, places: NDArray[np.int64]) -> PacketList:
    pts = np.array(found.pts, np.int64)
    order = np.argsort(pts, kind="stable")
    rank = np.empty(len(pts), np.int64)
    rank[order] = np.arange(len(pts))
    shown = np.ones(len(pts), bool)
    shown[found.hidden] = False
    frames = np.where(shown, (np.cumsum(shown[order]) - 1)[rank], -1).astype(np.int32)
    lowest_later = np.minimum.accumulate(rank[::-1])[::-1]
    context = stream.codec_context
    extradata = context.extradata or b""
    is_h264 = context.name == "h264"
    starts = [
        number
        for number, key in found.keys.items()
        if rank[number] == number == lowest_later[number] and (not is_h264 or _has_idr_slice(key, extradata))
    ]
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
        extradata=extradata,
        color_range=int(context.color_range),
        color_primaries=int(context.color_primaries),
        color_trc=int(context.color_trc),
        colorspace=int(context.colorspace),
        reordered=bool(np.any(rank != np.arange(len(rank)))),
    )
    doubtful = ", ".join(doubt for doubt, holds in doubts.items() if holds)
    sizes = np.array(found.sizes, np.uint32)
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
