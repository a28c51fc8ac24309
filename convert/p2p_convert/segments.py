"""One raw recording becomes segments of the shard format."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p import gate
from p2p.format import SYSTEM, USER, Segment, Text, check_segment
from p2p.manifest import MANIFEST, FileRecord, compare, decode_manifest
from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p.recording import ANNOTATION_FILE, MANIFEST_KIND, MAX_ANNOTATION_BYTES, VIDEO_FILE, parse_annotation
from p2p_convert.amend import Amendments
from p2p_convert.annotations import Actions, extract
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.decoding import ALL, NONE, check_decoding, file_frames
from p2p_convert.errors import Rejected
from p2p_convert.packets import PacketList, read_packets
from p2p_convert.transcode import Encoding, transcode

ORIGINAL_VIDEO_FILE = "video.mp4"  # as recorded, of any size
MAX_MANIFEST_BYTES = 1 << 20
MAX_STORED_NUMBERS = 1 << 26  # of all embeddings of a recording, as often as segments repeat them
_MAX_GAME_CHARACTERS = 200
MIN_SEGMENT_FRAMES = 256  # keyframes allowing; a chunk of 200 steps then lies in at most two segments


@dataclass(frozen=True)
class RawRecording:
    """The files of one recording: its id (the folder's name), where it lies, and {file name: content or path}.

    `origin` stands for one that was made of foreign files, and says of which; `counts` what was odd about them.
    """

    id: str
    where: str
    files: Mapping[str, bytes | Path]
    origin: Mapping[str, Mapping[str, Any]] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


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


def convert_recording(
    raw: RawRecording, encoding: Encoding | None = None, decode: str = ALL, amend: Amendments | None = None
) -> Converted:
    """The segments of a recording; with an `encoding`, or where only the original video is there, encoded anew.

    `decode` says which of the carried packets are decoded before they count: one of DECODE.

    Raises:
        Rejected: when it cannot be used, with the reason.
    """
    counts = Counter(raw.counts)
    content = _read_annotation(raw)
    video_name = video_file(raw.files)
    if video_name is None:
        raise Rejected("no video", f"{raw.where} has neither {VIDEO_FILE} nor {ORIGINAL_VIDEO_FILE}")
    video, where = raw.files[video_name], f"{raw.where}/{video_name}"
    budget = Budget(where)
    source: dict[str, Mapping[str, Any]] = {ANNOTATION_FILE: _describe(content), video_name: _describe(video)}
    _compare_with_manifest(raw, source)
    annotation = _parse(content, f"{raw.where}/{ANNOTATION_FILE}")
    game = game_name(annotation)
    if amend:
        amend.apply(annotation, counts, f"{raw.where}/{ANNOTATION_FILE}")
    if encoding is not None or video_name == ORIGINAL_VIDEO_FILE:
        encoding = encoding or Encoding()
        video, annotation = transcode(video, annotation, encoding, budget)
        source["encoded"] = {"gop": encoding.gop, "crf": encoding.crf}
        counts["recordings encoded anew: frames are not those of the source bit by bit"] += 1
        decode = NONE  # every frame of the source was, and x264 wrote what is stored
    if raw.origin is not None:
        source = dict(raw.origin)
        decode = NONE
    packets = read_packets(video, where, budget)
    actions, texts = extract(annotation, packets.num_frames, counts, f"{raw.where}/{ANNOTATION_FILE}")
    num_annotations = len(annotation.frame_annotations)
    if num_annotations != packets.num_frames:
        counts["more annotations than frames" if num_annotations > packets.num_frames else "fewer annotations"] += 1
    if packets.num_frames < 2:
        counts["recordings of one frame, which give no chunk"] += 1
    segments = _cut(raw.id, packets, actions, texts, content, source)
    try:
        for segment in segments:
            check_segment(segment, raw.where)
    except gate.Refused as error:
        raise Rejected("outside the limits of the format", str(error)) from error
    if packets.doubtful:
        _try_to_decode(video, packets.doubtful, segments, budget)
    else:
        check_decoding(segments, decode, where, budget)
    return Converted(raw.id, game, packets.num_frames, segments, actions.taken, actions, counts)


def _read_annotation(raw: RawRecording) -> bytes:
    """The bytes of a recording's annotation, within bounds."""
    if ANNOTATION_FILE not in raw.files:
        raise Rejected("no annotation", f"{raw.where} has no {ANNOTATION_FILE}")
    where = f"{raw.where}/{ANNOTATION_FILE}"
    file = raw.files[ANNOTATION_FILE]
    content = file if isinstance(file, bytes) else gate.read_regular(file, MAX_ANNOTATION_BYTES)
    if len(content) > MAX_ANNOTATION_BYTES:
        raise Rejected("annotation too large", f"{where} has {len(content)} bytes; at most {MAX_ANNOTATION_BYTES}")
    return content


def _compare_with_manifest(raw: RawRecording, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold what was read of the files, lengths and hashes, against the recording's manifest, where it has one.

    Raises:
        Rejected: when something was changed, one or the other.
    """
    file = raw.files.get(MANIFEST)
    if file is None:
        return
    content = file if isinstance(file, bytes) else gate.read_regular(file, MAX_MANIFEST_BYTES)
    try:
        manifest = decode_manifest(content, MANIFEST_KIND, f"{raw.where}/{MANIFEST}")
        for name, facts in found.items():
            compare(Path(raw.where) / name, FileRecord(facts["bytes"], facts["sha256"]), manifest)
        if VIDEO_FILE in manifest.files and VIDEO_FILE not in raw.files:
            raise gate.Refused(f"{raw.where}/{VIDEO_FILE}: missing, but {MANIFEST} names it")
    except gate.Refused as error:
        advice = f"copy the recording again, or remove its {MANIFEST} if the change is meant"
        raise Rejected("not what its manifest says", f"{error}; {advice}") from error


def _describe(file: bytes | Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    if isinstance(file, bytes):
        return {"bytes": len(file), "sha256": hashlib.sha256(file).hexdigest()}
    with gate.open_regular(file) as opened:
        return {"bytes": os.fstat(opened.fileno()).st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _parse(content: bytes, where: str) -> VideoAnnotation:
    if not content:
        raise Rejected("empty annotation", f"{where} has 0 bytes")
    try:
        annotation = parse_annotation(content, where)
    except ValueError as error:
        raise Rejected("annotation is not protobuf", str(error)) from error
    num_annotations = len(annotation.frame_annotations)
    if not num_annotations:
        raise Rejected("empty annotation", f"{where} describes no frame")
    if num_annotations > MAX_FRAMES:
        raise Rejected("too long", f"{where}: {num_annotations} annotations; at most {MAX_FRAMES}, that is 24 hours")
    env = annotation.metadata.env
    if max(len(env.env), len(env.env_subtype)) > _MAX_GAME_CHARACTERS:
        message = f"{where}: the game is called {gate.shown(game_name(annotation))}; at most {_MAX_GAME_CHARACTERS}"
        raise Rejected("implausible game", f"{message} characters")
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
    source: Mapping[str, Mapping[str, Any]],
) -> list[Segment]:
    segments: list[Segment] = []
    num_numbers = 0
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
        num_numbers += sum(value.size for text in segment.texts for value in text.embeddings.values())
        if num_numbers > MAX_STORED_NUMBERS:
            raise Rejected("too much text", f"{recording}: its embeddings hold more than {MAX_STORED_NUMBERS} numbers")
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


def _try_to_decode(video: bytes | Path, doubt: str, segments: list[Segment], budget: Budget) -> None:
    """Decode the file and the segments, and compare.

    Raises:
        Rejected: when they differ, or the file does not decode.
    """
    from p2p_convert.verify import decode_segments, digests

    if decode_segments(segments) != digests(file_frames(video, budget.where, budget)):
        raise Rejected("video does not decode packet by packet", f"{budget.where}: {doubt}")
