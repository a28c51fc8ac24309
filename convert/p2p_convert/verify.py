"""Proofs on converted data: segments decode to the frames of their source, shards are whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import av
import av.error
from av.video.reformatter import VideoReformatter

from p2p.data.video import SegmentDecoder
from p2p.format import Segment


def decode_file(video: bytes | Path) -> list[bytes]:
    """SHA-256 of each RGB frame that PyAV decodes from a video file, in order.

    Raises:
        ValueError: when PyAV cannot decode all of it.
    """
    reformatter = VideoReformatter()
    digests = []
    with av.open(io.BytesIO(video) if isinstance(video, bytes) else str(video), mode="r") as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            rgb = reformatter.reformat(frame, format="rgb24").to_ndarray()
            digests.append(hashlib.sha256(rgb.tobytes()).digest())
    return digests


def decode_segments(segments: Iterable[Segment]) -> list[bytes]:
    """SHA-256 of each RGB frame of the segments, in order; ends where one does not decode."""
    decoder = SegmentDecoder()
    digests = []
    try:
        for segment in segments:
            for rgb in decoder.rgb(segment, 0, segment.num_frames):
                digests.append(hashlib.sha256(rgb.tobytes()).digest())
    except ValueError:
        pass
    return digests
