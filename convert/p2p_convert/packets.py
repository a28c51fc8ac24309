"""The packets of a video file as they are, in decoding order, and where decoding can start among them."""

from __future__ import annotations

import io
from dataclasses import dataclass
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
    """All packets of a video.

    frames int32 [p]: the frame (in the order of showing) that each packet becomes, -1 when it is decoded but
    never shown. starts int32 [k]: packets at which decoding can start, having shown exactly the frames before.
    doubtful: why the packets alone may not tell what a player shows ("" when they do), so that it must be tried.
    """

    video: Video
    data: list[bytes]
    frames: NDArray[np.int32]
    starts: NDArray[np.int32]
    doubtful: str

    @property
    def num_frames(self) -> int:
        return int(np.count_nonzero(self.frames >= 0))


def read_packets(video: bytes | Path, where: str) -> PacketList:
    """The packets of a video, given as its content or its path; `where` names it in errors.

    Raises:
        Rejected: when it is not a video, holds no frame, or was cut off.
    """
    num_bytes = len(video) if isinstance(video, bytes) else video.stat().st_size
    try:
        with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video), mode="r") as container:
            if not container.streams.video:
                raise Rejected("no video stream", f"{where} holds no video")
            return _read_stream(container, num_bytes, where)
    except av.error.FFmpegError as error:
        raise Rejected("unreadable video", f"{where} ({num_bytes} bytes): {error.strerror}") from error


def _read_stream(container: InputContainer, num_bytes: int, where: str) -> PacketList:
    stream = container.streams.video[0]
    data: list[bytes] = []
    pts: list[int | None] = []
    hidden: list[int] = []
    keys: list[int] = []
    changes_codec = is_cut_off = False
    for packet in container.demux(stream):
        content = bytes(packet)
        if not content:
            continue
        is_cut_off = packet.is_corrupt
        if packet.is_discard:
            hidden.append(len(data))
        if packet.is_keyframe:
            keys.append(len(data))
            changes_codec |= packet.has_sidedata("new_extradata")
        pts.append(packet.pts)
        data.append(content)
    if is_cut_off:
        raise Rejected("truncated video", f"{where}: the file ends inside packet {len(data)} of {stream.frames}")
    if len(data) < stream.frames and max(e.pos + e.size for e in stream.index_entries) > num_bytes:
        raise Rejected("truncated video", f"{where}: {len(data)} of {stream.frames} packets are there")
    if not len(data) > len(hidden):
        raise Rejected("empty video", f"{where}: no frame")
    if None in pts:
        raise Rejected("video without timestamps", f"{where}: packet {pts.index(None)} has none")
    if changes_codec:
        raise Rejected("video changes its parameters", f"{where}: new codec parameters inside the stream")
    return _arrange(stream, data, np.array(pts, np.int64), np.array(hidden, np.int64), keys)


def _arrange(
    stream: VideoStream, data: list[bytes], pts: NDArray[np.int64], hidden: NDArray[np.int64], keys: list[int]
) -> PacketList:
    order = np.argsort(pts, kind="stable")
    rank = np.empty(len(pts), np.int64)
    rank[order] = np.arange(len(pts))
    shown = np.ones(len(pts), bool)
    shown[hidden] = False
    frames = np.where(shown, (np.cumsum(shown[order]) - 1)[rank], -1).astype(np.int32)
    lowest_later = np.minimum.accumulate(rank[::-1])[::-1]
    context = stream.codec_context
    extradata = context.extradata or b""
    is_h264 = context.name == "h264"
    starts = [
        i for i in keys if rank[i] == i == lowest_later[i] and (not is_h264 or _has_idr_slice(data[i], extradata))
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
    return PacketList(video, data, frames, np.array(starts, np.int32), doubtful)


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
