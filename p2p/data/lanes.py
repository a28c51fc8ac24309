"""Recordings that are being read, each with a decoder that stays where its latest chunk ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2p.data.assemble import ChunkReader
from p2p.data.table import SegmentPlace
from p2p.data.video import RgbConverter, SegmentDecoder
from p2p.format import RecordingEntry, Segment

MAX_OPEN = 256  # recordings that one process has open
MAX_PACKET_BYTES = 1 << 29  # of the segments that they stand in

Key = tuple[int, str]  # stream, recording
ReadSegment = Callable[[int, RecordingEntry, SegmentPlace], Segment]


@dataclass
class _Open:
    decoder: SegmentDecoder
    key: Key | None = None
    segments: dict[int, Segment] = field(default_factory=dict)

    def num_bytes(self) -> int:
        return sum(len(segment.payload()) for segment in self.segments.values())


class Lanes:
    """Reads chunks; those of one lane follow each other, and what the lane has open goes on from one to the next.

    A decoder of 192 x 192 takes 1.3 MB beside the packets of its segment. Where more lanes are open than MAX_OPEN, or
    than MAX_PACKET_BYTES hold, the others share a decoder that finds its place anew for each chunk.
    """

    def __init__(self, chunks: ChunkReader, read_segment: ReadSegment) -> None:
        self._chunks, self._read_segment = chunks, read_segment
        self._converter = RgbConverter()
        self._shared = _Open(SegmentDecoder(self._converter))
        self._open: dict[int, _Open] = {}

    def read(
        self, lane: int | None, stream: int, recording: RecordingEntry, start: int, places: Sequence[SegmentPlace]
    ) -> dict[str, Any]:
        """The sample of the chunk at `start`, which lies in `places`; without a lane, of one that is read alone.

        Raises:
            ValueError: as ChunkReader's `read` and `read_segment`.
        """
        at = self._shared if lane is None else self._open.get(lane) or self._new(lane)
        if at.key != (stream, recording.id):
            at.key, at.segments = (stream, recording.id), {}
        at.segments = {
            place.index: at.segments.get(place.index) or self._read_segment(stream, recording, place)
            for place in places
        }
        segments = list(at.segments.values())
        sample = self._chunks.read(recording, start, segments, at.decoder)
        at.segments = {segments[-1].index: segments[-1]}  # the only one that the next chunk can share
        return sample

    def _new(self, lane: int) -> _Open:
        if len(self._open) >= MAX_OPEN or sum(each.num_bytes() for each in self._open.values()) > MAX_PACKET_BYTES:
            return self._shared
        return self._open.setdefault(lane, _Open(SegmentDecoder(self._converter)))
