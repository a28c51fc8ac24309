"""One raw recording becomes segments of the shard format."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2p.format import SYSTEM, USER, Segment, Text, check_segment
from p2p.gate import Refused
from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p.recording import ANNOTATION_FILE, VIDEO_FILE, parse_annotation
from p2p_convert.annotations import Actions, extract
from p2p_convert.errors import Rejected
from p2p_convert.packets import PacketList, read_packets
from p2p_convert.transcode import Encoding, transcode

ORIGINAL_VIDEO_FILE = "video.mp4"  # as recorded, of any size
MIN_SEGMENT_FRAMES = 256  # keyframes allowing; a chunk of 200 steps then lies in at most two segments


@dataclass(frozen=True)
class RawRecording:
    """The files of one recording: its id (the folder's name), where it lies, and {file name: content or path}."""

    id: str
    where: str
    files: Mapping[str, bytes | Path]


@dataclass(frozen=True)
class Converted:
    """A recording ready to be written; `counts` holds what is odd about it, by kind."""

    id: str
    game: str
    num_frames: int
    segments: list[Segment]
    taken: NDArray[np.uint8]
    actions: Actions
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def system_runs(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of rows whose action is the system's."""
        is_system = np.concatenate([[False], self.taken == SYSTEM, [False]])
        edges = np.flatnonzero(is_system[1:] != is_system[:-1])
        return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))

    @property
    def num_user(self) -> int:
        return int(np.count_nonzero(self.taken == USER))

    @property
    def num_system(self) -> int:
        return int(np.count_nonzero(self.taken == SYSTEM))


def convert_recording(raw: RawRecording, encoding: Encoding | None = None) -> Converted:
    """The segments of a recording; with an `encoding`, or where only the original video is there, encoded anew.

    Raises:
        Rejected: when it cannot be used, with the reason.
    """
    counts: Counter[str] = Counter()
    if ANNOTATION_FILE not in raw.files:
        raise Rejected("no annotation", f"{raw.where} has no {ANNOTATION_FILE}")
    content = _read(raw.files[ANNOTATION_FILE])
    annotation = _parse(content, f"{raw.where}/{ANNOTATION_FILE}")
    video_name = video_file(raw.files)
    if video_name is None:
        raise Rejected("no video", f"{raw.where} has neither {VIDEO_FILE} nor {ORIGINAL_VIDEO_FILE}")
    video = raw.files[video_name]
    source = {name: _describe(raw.files[name]) for name in sorted((ANNOTATION_FILE, video_name))}
    if encoding is not None or video_name == ORIGINAL_VIDEO_FILE:
        encoding = encoding or Encoding()
        video, annotation = transcode(video, annotation, encoding, f"{raw.where}/{video_name}")
        source["encoded"] = {"gop": encoding.gop, "crf": encoding.crf}
        counts["recordings encoded anew: frames are not those of the source bit by bit"] += 1
    packets = read_packets(video, f"{raw.where}/{video_name}")
    actions, texts = extract(annotation, packets.num_frames, counts)
    num_annotations = len(annotation.frame_annotations)
    if num_annotations != packets.num_frames:
        counts["more annotations than frames" if num_annotations > packets.num_frames else "fewer annotations"] += 1
    if packets.num_frames < 2:
        counts["recordings of one frame, which give no chunk"] += 1
    segments = _cut(raw.id, packets, actions, texts, content, source)
    try:
        for segment in segments:
            check_segment(segment, raw.where)
    except Refused as error:
        raise Rejected("outside the limits of the format", str(error)) from error
    if packets.doubtful:
        _try_to_decode(video, packets.doubtful, segments, f"{raw.where}/{video_name}")
    return Converted(raw.id, game_name(annotation), packets.num_frames, segments, actions.taken, actions, counts)


def _read(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _describe(file: bytes | Path) -> dict[str, object]:
    """Size and SHA-256 of a file."""
    if isinstance(file, bytes):
        return {"bytes": len(file), "sha256": hashlib.sha256(file).hexdigest()}
    with open(file, "rb") as opened:
        return {"bytes": os.fstat(opened.fileno()).st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _parse(content: bytes, where: str) -> VideoAnnotation:
    if not content:
        raise Rejected("empty annotation", f"{where} has 0 bytes")
    try:
        annotation = parse_annotation(content, where)
    except ValueError as error:
        raise Rejected("annotation is not protobuf", str(error)) from error
    if not annotation.frame_annotations:
        raise Rejected("empty annotation", f"{where} describes no frame")
    return annotation


def game_name(annotation: VideoAnnotation) -> str:
    """env, or env/env_subtype where there is one."""
    env = annotation.metadata.env
    return f"{env.env}/{env.env_subtype}" if env.env_subtype else env.env


def video_file(names: Mapping[str, object]) -> str | None:
    """The video of a recording to convert, out of its file names."""
    return next((name for name in (VIDEO_FILE, ORIGINAL_VIDEO_FILE) if name in names), None)


def _cut(
    recording: str,
    packets: PacketList,
    actions: Actions,
    texts: list[Text],
    annotation: bytes,
    source: dict[str, dict[str, object]],
) -> list[Segment]:
    segments: list[Segment] = []
    for first_packet, end_packet in _cut_points(packets):
        frames = packets.frames[first_packet:end_packet]
        first = int(frames[frames >= 0].min())
        n = int(np.count_nonzero(frames >= 0))
        rows = slice(first, first + n)
        starts = packets.starts[(packets.starts >= first_packet) & (packets.starts < end_packet)]
        segment = Segment(
            recording=recording,
            index=len(segments),
            first_frame=first,
            num_frames=n,
            video=packets.video,
            packets=packets.pieces(first_packet, end_packet),
            packet_sizes=packets.sizes[first_packet:end_packet],
            packet_frames=np.where(frames >= 0, frames - first, -1).astype(np.int32),
            packet_starts=(starts - first_packet).astype(np.int32),
            keys=actions.keys[rows],
            buttons=actions.buttons[rows],
            mouse_px=actions.mouse_px[rows],
            taken=actions.taken[rows],
            texts=tuple(t for t in texts if _reaches(t, first, first + n)),
            annotation=b"" if segments else annotation,
            source=None if segments else source,
        )
        segments.append(segment)
    return segments


def _reaches(text: Text, first: int, end: int) -> bool:
    """Whether the instruction begins in, or still holds in, the rows of frames first .. end - 1."""
    return text.frame < end and (text.frame >= first or text.frame + text.num_rows > first)


def _cut_points(packets: PacketList) -> list[tuple[int, int]]:
    """Ranges of packets: cut where decoding can start, with at least MIN_SEGMENT_FRAMES frames before."""
    shown_before = np.concatenate([[0], np.cumsum(packets.frames >= 0)])
    total = int(shown_before[-1])
    cuts = [0]
    for start in packets.starts[1:].tolist():
        num_frames = shown_before[start] - shown_before[cuts[-1]]
        if num_frames >= MIN_SEGMENT_FRAMES and shown_before[start] < total:
            cuts.append(start)
    return list(zip(cuts, [*cuts[1:], len(packets.sizes)], strict=True))


def _try_to_decode(video: bytes | Path, doubt: str, segments: list[Segment], where: str) -> None:
    """Decode the file and the segments, and compare.

    Raises:
        Rejected: when they differ, or the file does not decode.
    """
    from p2p_convert.verify import decode_file, decode_segments

    try:
        expected = decode_file(video)
    except ValueError as error:
        raise Rejected("video does not decode", f"{where}: {error}") from error
    if decode_segments(segments) != expected:
        raise Rejected("video does not decode packet by packet", f"{where}: {doubt}")
