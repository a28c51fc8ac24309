"""Proofs on converted data: segments decode to the frames of their source, shards are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from p2p.data.video import SegmentDecoder
from p2p.format import RecordingEntry, Segment
from p2p.recording import ANNOTATION_FILE, VIDEO_FILE
from p2p_convert.budget import Budget
from p2p_convert.decoding import file_frames
from p2p_convert.reading import read_index, read_segments
from p2p_convert.storage import Store


def decode_file(video: bytes | Path) -> list[bytes]:
    """SHA-256 of each RGB frame that PyAV decodes from a video file, in order.

    Raises:
        ValueError: when PyAV cannot decode all of it.
    """
    where = str(video) if isinstance(video, Path) else "the video"
    return digests(file_frames(video, where, Budget(where)))


def digests(frames: Iterable[VideoFrame]) -> list[bytes]:
    """SHA-256 of each frame as RGB."""
    reformatter = VideoReformatter()
    return [hashlib.sha256(reformatter.reformat(f, format="rgb24").to_ndarray().tobytes()).digest() for f in frames]


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


def verify_stream(store: Store, stream: str, decode: bool) -> tuple[list[str], int, int]:
    """(what is wrong, number of recordings, number of frames) of a stream.

    Every shard is read and its hashes compared; its segments must hold what a segment can, and be those that the
    table of recordings promises. `decode` decodes every frame, too.
    """
    problems: list[str] = []
    entries, recordings = read_index(store, stream)
    promised = {
        recording.first_sample + number: (recording, number)
        for recording in recordings
        for number in range(len(recording.segment_frames))
    }
    decoder = SegmentDecoder()
    sample = 0
    for entry in entries:
        try:
            segments = list(read_segments(store, stream, entry))
        except ValueError as error:
            problems.append(str(error))
            sample += entry["samples"]
            continue
        for segment in segments:
            problem = _segment_problem(segment, promised.pop(sample, None), decoder if decode else None)
            if problem:
                problems.append(f"{store.address}/{stream}, shard {entry['raw_data']['basename']}: {problem}")
            sample += 1
    problems += [f"{store.address}/{stream}: no segment {n} of {r.id}" for k, (r, n) in promised.items() if k >= sample]
    return problems, len(recordings), sum(recording.num_frames for recording in recordings)


def _segment_problem(
    segment: Segment, promised: tuple[RecordingEntry, int] | None, decoder: SegmentDecoder | None
) -> str:
    """What is wrong with a segment, "" if nothing is; one of a recording dropped from the table is not looked at."""
    if promised is None:
        return ""
    recording, number = promised
    found = (segment.recording, segment.index, segment.num_frames, segment.first_frame)
    wanted = (recording.id, number, recording.segment_frames[number], sum(recording.segment_frames[:number]))
    if found != wanted:
        return f"(recording, segment, frames, first frame) are {found}, the index says {wanted}"
    if decoder is not None:
        try:
            for _ in decoder.frames(segment, 0, segment.num_frames):
                pass
        except ValueError as error:
            return str(error)
    return ""


def compare_with_source(store: Store, stream: str, folders: Mapping[str, Path]) -> list[str]:
    """What differs between a stream and the recordings it was made from: annotations by byte, videos by frame."""
    problems = []
    by_recording: dict[str, list[Segment]] = {}
    entries, recordings = read_index(store, stream)
    num_segments = {recording.id: len(recording.segment_frames) for recording in recordings}
    for entry in entries:
        for segment in read_segments(store, stream, entry, with_annotation=True):
            have = by_recording.setdefault(segment.recording, [])
            have.append(segment)
            if len(have) == num_segments.get(segment.recording):
                problems += _differences(by_recording.pop(segment.recording), folders.get(segment.recording))
    return problems


def _differences(segments: list[Segment], folder: Path | None) -> list[str]:
    name = segments[0].recording
    if folder is None:
        return [f"{name}: its source is not there"]
    if (folder / ANNOTATION_FILE).read_bytes() != segments[0].annotation:
        return [f"{name}: {folder / ANNOTATION_FILE} is another one"]
    if decode_file(folder / VIDEO_FILE) != decode_segments(segments):
        return [f"{name}: {folder / VIDEO_FILE} decodes to other frames"]
    return []
