"""Stored packets back into an MP4 file, unchanged: their order, their times, and what a decoder must know before."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np

from p2p.actions import FRAME_RATE_HZ
from p2p.format import Segment

_START = b"\x00\x00\x00\x01"
_TICKS = 512  # of a frame's time; FFmpeg's own choice for such a rate


class CannotBeCarried(ValueError):  # noqa: N818  a verdict on a recording
    """Packets that no MP4 file gives back as they are; the message says why, in words that can be counted."""


def write_mp4(path: Path, segments: Sequence[Segment]) -> None:
    """The packets of a whole recording as an MP4 file that shows its frames 20 times a second.

    Raises:
        CannotBeCarried: when some packets are never shown, or are no whole pictures.
    """
    frames = np.concatenate([np.where(s.packet_frames >= 0, s.packet_frames + s.first_frame, -1) for s in segments])
    if sorted(frames.tolist()) != list(range(len(frames))):
        raise CannotBeCarried("its video has packets that are never shown, or lacks frames")
    delay = int(np.max(np.arange(len(frames)) - frames))  # of showing behind decoding, in frames
    stream = io.BytesIO(b"".join(_annex_b(segments)))
    try:
        with av.open(stream, "r", format="h264") as source, av.open(f"file:{path}", "w", format="mp4") as target:
            video = target.add_stream_from_template(source.streams.video[0])
            video.time_base = base = Fraction(1, FRAME_RATE_HZ * _TICKS)
            number = 0
            for packet in source.demux(video=0):
                if not packet.size:
                    continue
                if number == len(frames):
                    raise CannotBeCarried("its packets are not one picture each")
                packet.time_base, packet.stream = base, video
                packet.pts, packet.dts = int(frames[number]) * _TICKS, (number - delay) * _TICKS
                packet.duration = _TICKS
                target.mux(packet)
                number += 1
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise CannotBeCarried("its packets cannot be written as an MP4 file") from error
    if number != len(frames):
        raise CannotBeCarried("its packets are not one picture each")


def _annex_b(segments: Sequence[Segment]) -> Iterator[bytes]:
    """Start codes in place of lengths, the parameter sets first."""
    size_bytes, sets = _parameter_sets(segments[0].video.extradata)
    for each in sets:
        yield _START + each
    for segment in segments:
        payload = segment.payload()
        ends = itertools.accumulate(segment.packet_sizes.tolist())
        begin = 0
        for end in ends:
            yield from _units(payload[begin:end], size_bytes)
            begin = end


def _units(packet: memoryview, size_bytes: int) -> Iterator[bytes]:
    place = 0
    while place < len(packet):
        size = int.from_bytes(packet[place : place + size_bytes], "big")
        place += size_bytes
        if not 0 < size <= len(packet) - place:
            raise CannotBeCarried("its packets are not made of whole units")
        yield _START + packet[place : place + size].tobytes()
        place += size


def _parameter_sets(extradata: bytes) -> tuple[int, list[bytes]]:
    """(bytes of a length, the sequence and picture parameter sets) of an AVC decoder configuration record."""
    if len(extradata) < 7 or extradata[0] != 1:
        raise CannotBeCarried("its video has no decoder configuration")
    sets: list[bytes] = []
    place = 5
    for mask in (31, 255):  # of the number of sequence, of picture parameter sets
        if place >= len(extradata):
            raise CannotBeCarried("its decoder configuration is cut off")
        count, place = extradata[place] & mask, place + 1
        for _ in range(count):
            size = int.from_bytes(extradata[place : place + 2], "big")
            sets.append(extradata[place + 2 : place + 2 + size])
            place += 2 + size
    if place > len(extradata) or not all(sets):
        raise CannotBeCarried("its decoder configuration is cut off")
    return (extradata[4] & 3) + 1, sets
