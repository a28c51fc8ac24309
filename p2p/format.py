"""The shard format: its version, the columns of a stored sample, and the index of a stream.

A stream is a folder of MDS shards (the container of mosaicml-streaming) and an `index.json`. One stored sample
is a *segment*: consecutive frames of one recording as H.264 packets that decode without any other segment, the
actions of those frames, and the instructions that reach into them. `index.json` also holds a table of all
recordings, so that a reader knows every chunk of every recording without opening a shard. docs/format.md
describes the bytes; `encode_segment` stands beside `decode_segment` here, and nobody else touches them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import ACTION_SPACE_VERSION

FORMAT_NAME = "p2p-segments"
FORMAT_VERSION = (1, 0)  # major: an older reader cannot read it; minor: it can, and ignores what is new
FRAME_RATE_HZ = 20
MAX_KEYS, MAX_BUTTONS = 6, 3  # stored slots; a reader takes the first few of them
UNKNOWN, USER, SYSTEM = 0, 1, 2  # whose action a row holds
INDEX_KEY = "p2p"  # where index.json keeps what is ours

COLUMNS = {
    "annotation": "bytes",  # zstd of the recording's whole annotation.proto; first segment only, else empty
    "buttons": "bytes",  # uint8 [n, MAX_BUTTONS] ids, ascending, padded with 0
    "first_frame": "int",  # number in the recording of this segment's first frame
    "keys": "bytes",  # uint8 [n, MAX_KEYS] ids, ascending, padded with 0
    "mouse_px": "bytes",  # int32 [n, 2] motion right and down
    "num_frames": "int",  # n
    "packet_frames": "bytes",  # int32 [p] frame (0 = first_frame) that each packet becomes, -1: decoded, never shown
    "packet_sizes": "bytes",  # uint32 [p] in decoding order
    "packet_starts": "bytes",  # int32 [k] packets at which decoding can start, ascending, the first is 0
    "packets": "bytes",  # the packets, one after another
    "recording": "str",
    "segment": "int",  # 0, 1, ...
    "source": "json",  # the files it was made from and their SHA-256; first segment only, else {}
    "taken": "bytes",  # uint8 [n] UNKNOWN, USER or SYSTEM
    "text_frames": "bytes",  # int32 [e] frame of the recording whose row is the first of each instruction
    "text_rows": "bytes",  # int32 [e] how many rows it holds for
    "text_values": "bytes",  # float32, all embeddings one after another
    "texts": "json",  # [e] {version, provider, instruction, embeddings: {tokenizer: [offset, [shape]]}}
    "video": "json",  # codec, width, height, colour tags, extradata (hex), reordered
}
_COLUMN_NAMES = sorted(COLUMNS)
_FIXED_SIZE = {"int": 8}


@dataclass(frozen=True)
class Video:
    """What a decoder must know before the first packet.

    The colour tags are FFmpeg's numbers as the container gave them; `reordered` is true when frames are not
    shown in the order in which they are decoded.
    """

    codec: str
    width: int
    height: int
    extradata: bytes
    color_range: int = 0
    color_primaries: int = 2
    color_trc: int = 2
    colorspace: int = 2
    reordered: bool = True


@dataclass(frozen=True)
class Text:
    """An instruction: from the row of frame `frame`, for `num_rows` rows (0: it never holds)."""

    frame: int
    num_rows: int
    version: str
    provider: str
    instruction: str
    embeddings: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Segment:
    """Frames first_frame .. first_frame + n - 1 of a recording, with the action that followed each of them.

    keys uint8 [n, 6], buttons uint8 [n, 3], mouse_px int32 [n, 2], taken uint8 [n]; packet_sizes uint32 [p],
    packet_frames int32 [p] and packet_starts int32 [k] as in COLUMNS; packets are the packets in as many pieces
    as they came in (`payload` joins them); annotation is the raw file, b"" after the first segment.
    """

    recording: str
    index: int
    first_frame: int
    num_frames: int
    video: Video
    packets: Sequence[bytes | memoryview]
    packet_sizes: NDArray[np.uint32]
    packet_frames: NDArray[np.int32]
    packet_starts: NDArray[np.int32]
    keys: NDArray[np.uint8]
    buttons: NDArray[np.uint8]
    mouse_px: NDArray[np.int32]
    taken: NDArray[np.uint8]
    texts: tuple[Text, ...] = ()
    annotation: bytes = b""
    source: Mapping[str, Any] | None = None

    def payload(self) -> memoryview:
        """All packets, one after another."""
        return memoryview(self.packets[0] if len(self.packets) == 1 else b"".join(self.packets))


def encode_segment(segment: Segment) -> list[bytes | memoryview]:
    """The MDS sample of a segment in pieces, to be written one after another (joining packets would cost).

    First the sizes of the variable columns, then the columns in alphabetical order.
    """
    columns: dict[str, Sequence[bytes | memoryview]] = {
        **{name: (value,) for name, value in _columns(segment).items()},
        "packets": segment.packets,
    }
    variable = [columns[name] for name in _COLUMN_NAMES if COLUMNS[name] not in _FIXED_SIZE]
    sizes = [sum(map(len, pieces)) for pieces in variable]
    return [np.array(sizes, "<u4").tobytes(), *(piece for name in _COLUMN_NAMES for piece in columns[name])]


def _columns(segment: Segment) -> dict[str, bytes]:
    texts, text_values = _encode_texts(segment.texts)
    video = {**vars(segment.video), "extradata": segment.video.extradata.hex()}
    n = segment.num_frames
    return {
        "annotation": compress(segment.annotation) if segment.annotation else b"",
        "buttons": _array(segment.buttons, "<u1", (n, MAX_BUTTONS), "buttons"),
        "first_frame": np.array(segment.first_frame, "<i8").tobytes(),
        "keys": _array(segment.keys, "<u1", (n, MAX_KEYS), "keys"),
        "mouse_px": _array(segment.mouse_px, "<i4", (n, 2), "mouse_px"),
        "num_frames": np.array(n, "<i8").tobytes(),
        "packet_frames": _array(segment.packet_frames, "<i4", segment.packet_sizes.shape, "packet_frames"),
        "packet_sizes": _array(segment.packet_sizes, "<u4", segment.packet_sizes.shape, "packet_sizes"),
        "packet_starts": _array(segment.packet_starts, "<i4", segment.packet_starts.shape, "packet_starts"),
        "recording": segment.recording.encode(),
        "segment": np.array(segment.index, "<i8").tobytes(),
        "source": _json(segment.source or {}),
        "taken": _array(segment.taken, "<u1", (n,), "taken"),
        "text_frames": np.array([t.frame for t in segment.texts], "<i4").tobytes(),
        "text_rows": np.array([t.num_rows for t in segment.texts], "<i4").tobytes(),
        "text_values": text_values,
        "texts": _json(texts),
        "video": _json(video),
    }


def _array(values: NDArray[Any], dtype: str, shape: tuple[int, ...], name: str) -> bytes:
    assert values.shape == shape, f"{name} has shape {values.shape}, not {shape}"
    return np.ascontiguousarray(values, dtype).tobytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _encode_texts(texts: Sequence[Text]) -> tuple[list[dict[str, Any]], bytes]:
    described: list[dict[str, Any]] = []
    values: list[bytes] = []
    offset = 0
    for text in texts:
        embeddings: dict[str, Any] = {}
        for tokenizer, embedding in sorted(text.embeddings.items()):
            embeddings[tokenizer] = [offset, list(embedding.shape)]
            values.append(np.ascontiguousarray(embedding, "<f4").tobytes())
            offset += embedding.size
        described.append(
            {
                "version": text.version,
                "provider": text.provider,
                "instruction": text.instruction,
                "embeddings": embeddings,
            }
        )
    return described, b"".join(values)


def decode_segment(sample: bytes | memoryview, with_annotation: bool = False) -> Segment:
    """The segment in an MDS sample; arrays are read-only views of `sample`.

    `annotation` stays b"" unless `with_annotation`.

    Raises:
        ValueError: when the bytes are not a sample of this format.
    """
    columns = _split_columns(memoryview(sample))
    n, first = _int(columns["num_frames"]), _int(columns["first_frame"])
    try:
        video = json.loads(bytes(columns["video"]))
        video["extradata"] = bytes.fromhex(video["extradata"])
        known = {name: video[name] for name in Video.__dataclass_fields__}
        return Segment(
            recording=bytes(columns["recording"]).decode(),
            index=_int(columns["segment"]),
            first_frame=first,
            num_frames=n,
            video=Video(**known),
            packets=(columns["packets"],),
            packet_sizes=np.frombuffer(columns["packet_sizes"], "<u4"),
            packet_frames=np.frombuffer(columns["packet_frames"], "<i4"),
            packet_starts=np.frombuffer(columns["packet_starts"], "<i4"),
            keys=np.frombuffer(columns["keys"], "<u1").reshape(n, MAX_KEYS),
            buttons=np.frombuffer(columns["buttons"], "<u1").reshape(n, MAX_BUTTONS),
            mouse_px=np.frombuffer(columns["mouse_px"], "<i4").reshape(n, 2),
            taken=np.frombuffer(columns["taken"], "<u1").reshape(n),
            texts=_decode_texts(columns),
            annotation=decompress(bytes(columns["annotation"])) if with_annotation else b"",
            source=json.loads(bytes(columns["source"])),
        )
    except (KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a sample of {FORMAT_NAME} {version_text()}: {error!r}") from error


def _int(column: memoryview) -> int:
    return int(np.frombuffer(column, "<i8")[0])


def _split_columns(sample: memoryview) -> dict[str, memoryview]:
    variable = [name for name in _COLUMN_NAMES if COLUMNS[name] not in _FIXED_SIZE]
    begin = 4 * len(variable)
    if len(sample) < begin:
        raise ValueError(f"sample of {len(sample)} bytes: too short for {FORMAT_NAME} {version_text()}")
    sizes = dict(zip(variable, np.frombuffer(sample[:begin], "<u4").tolist(), strict=True))
    columns: dict[str, memoryview] = {}
    for name in _COLUMN_NAMES:
        end = begin + sizes.get(name, 8)
        columns[name] = sample[begin:end]
        begin = end
    if begin != len(sample):
        raise ValueError(f"sample of {len(sample)} bytes: its columns need {begin}; the shard is damaged")
    return columns


def _decode_texts(columns: Mapping[str, memoryview]) -> tuple[Text, ...]:
    frames = np.frombuffer(columns["text_frames"], "<i4").tolist()
    rows = np.frombuffer(columns["text_rows"], "<i4").tolist()
    values = np.frombuffer(columns["text_values"], "<f4")
    texts = []
    for frame, num_rows, text in zip(frames, rows, json.loads(bytes(columns["texts"])), strict=True):
        embeddings = {
            tokenizer: values[offset : offset + int(np.prod(shape))].reshape(shape)
            for tokenizer, (offset, shape) in text["embeddings"].items()
        }
        texts.append(Text(frame, num_rows, text["version"], text["provider"], text["instruction"], embeddings))
    return tuple(texts)


def compress(data: bytes, level: int = 3) -> bytes:
    """zstd frame of `data`."""
    import zstd

    return bytes(zstd.compress(data, level))


def decompress(data: bytes) -> bytes:
    """The bytes in a zstd frame; b"" gives b"".

    Raises:
        ValueError: when it is not a zstd frame.
    """
    import zstd

    if not data:
        return b""
    try:
        return bytes(zstd.decompress(data))
    except zstd.Error as error:
        raise ValueError(f"not a zstd frame: {error}") from error


def shard_head(sample_sizes: Sequence[int]) -> bytes:
    """What an MDS shard file begins with, before its samples: their count, their offsets, a JSON header.

    Raises:
        ValueError: when it would pass 4 GiB, the reach of MDS's 32-bit offsets.
    """
    header = _json({**_shard_config(None, ()), "size_limit": None})
    begin = 4 + 4 * (len(sample_sizes) + 1) + len(header)
    offsets = begin + np.concatenate([[0], np.cumsum(sample_sizes, dtype=np.int64)])
    if offsets[-1] >= 2**32:
        raise ValueError(f"a shard of {offsets[-1]} bytes; MDS shards must stay below 4 GiB: use smaller shards")
    return np.array(len(sample_sizes), "<u4").tobytes() + offsets.astype("<u4").tobytes() + header


def _shard_config(compression: str | None, hashes: Iterable[str]) -> dict[str, Any]:
    return {
        "column_encodings": [COLUMNS[name] for name in _COLUMN_NAMES],
        "column_names": _COLUMN_NAMES,
        "column_sizes": [_FIXED_SIZE.get(COLUMNS[name]) for name in _COLUMN_NAMES],
        "compression": compression,
        "format": "mds",
        "hashes": sorted(hashes),
        "version": 2,
    }


def shard_entry(
    num_samples: int, raw_data: Mapping[str, Any], zip_data: Mapping[str, Any] | None, compression: str | None
) -> dict[str, Any]:
    """The entry of one shard in `index.json`; raw_data and zip_data are {basename, bytes, hashes}."""
    return {
        **_shard_config(compression, raw_data["hashes"]),
        "raw_data": dict(raw_data),
        "zip_data": dict(zip_data) if zip_data else None,
        "samples": num_samples,
        "size_limit": None,
    }


def version_text(version: tuple[int, int] = FORMAT_VERSION) -> str:
    return f"{version[0]}.{version[1]}"


@dataclass(frozen=True)
class RecordingEntry:
    """What the index says about one recording.

    first_sample is the number, in the whole stream, of the sample that holds segment 0; the other segments
    follow it. system_runs are half-open ranges of rows [begin, end) whose action is the system's.
    """

    id: str
    game: str
    num_frames: int
    first_sample: int
    segment_frames: tuple[int, ...]
    system_runs: tuple[tuple[int, int], ...]
    num_user: int
    num_system: int

    def __post_init__(self) -> None:
        if sum(self.segment_frames) != self.num_frames:
            raise ValueError(
                f"recording {self.id}: segments hold {sum(self.segment_frames)} frames, not {self.num_frames}"
            )


def entry_from_json(values: Mapping[str, Any]) -> RecordingEntry:
    """The entry with these fields as JSON gives them back: lists for tuples."""
    runs = tuple((int(begin), int(end)) for begin, end in values["system_runs"])
    return RecordingEntry(**{**values, "segment_frames": tuple(values["segment_frames"]), "system_runs": runs})


def encode_index(shards: Sequence[Mapping[str, Any]], recordings: Sequence[RecordingEntry]) -> bytes:
    """The bytes of a stream's `index.json`."""
    table = {name: [getattr(r, name) for r in recordings] for name in RecordingEntry.__dataclass_fields__}
    ours = {
        "format": FORMAT_NAME,
        "version": list(FORMAT_VERSION),
        "action_space_version": ACTION_SPACE_VERSION,
        "frame_rate_hz": FRAME_RATE_HZ,
        "recordings": table,
    }
    return _json({"version": 2, "shards": [dict(s) for s in shards], INDEX_KEY: ours}) + b"\n"


def decode_index(data: bytes | str, where: str) -> tuple[list[dict[str, Any]], list[RecordingEntry]]:
    """The shard entries and the recordings of an `index.json`; `where` names it in errors.

    Raises:
        ValueError: when it is not JSON, not ours, or of a newer major version.
    """
    try:
        index = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: not a JSON file ({error}); convert the recordings again") from error
    ours = index.get(INDEX_KEY) if isinstance(index, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT_NAME:
        raise ValueError(f"{where}: not an index of {FORMAT_NAME}; make it with `p2p-convert RAW OUT`")
    check_version(ours.get("version"), where)
    try:
        table = ours["recordings"]
        columns = [table[name] for name in RecordingEntry.__dataclass_fields__]
        rows = zip(*columns, strict=True)
        recordings = [entry_from_json(dict(zip(RecordingEntry.__dataclass_fields__, row, strict=True))) for row in rows]
        return list(index["shards"]), recordings
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: a damaged index ({error}); convert the recordings again") from error


def check_version(version: Any, where: str) -> None:
    """Refuse what a newer major version wrote.

    Raises:
        ValueError: naming both versions and what to do.
    """
    try:
        major, minor = (int(part) for part in version)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: format version {version!r}; expected [major, minor]") from None
    if major != FORMAT_VERSION[0]:
        todo = "upgrade p2p" if major > FORMAT_VERSION[0] else "convert the recordings again"
        raise ValueError(
            f"{where}: {FORMAT_NAME} version {major}.{minor}; this p2p reads {FORMAT_VERSION[0]}.x: {todo}"
        )
