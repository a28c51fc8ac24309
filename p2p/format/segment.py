"""One stored sample: a segment of a recording, its encoding beside its decoding.

What is decoded is checked once, array by array, so that nobody who uses a segment need ask again: shapes fit the
number of frames, ids lie in the vocabulary, packets lie in the payload and give every frame once, numbers are finite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import NUM_BUTTONS, NUM_KEYS
from p2p.format import columns as c
from p2p.format.packed import compress, decompress
from p2p.gate import Refused, finite, mapping, parse_json, plain_name, sequence, shown, text, whole_number

_VARIABLE = [name for name, size in c.LAYOUT if size is None]
_MAX_DIMENSIONS, _MAX_EMBEDDINGS = 4, 64


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
    variable = [columns[name] for name in _VARIABLE]
    sizes = [sum(map(len, pieces)) for pieces in variable]
    return [np.array(sizes, "<u4").tobytes(), *(piece for name, _ in c.LAYOUT for piece in columns[name])]


def _columns(segment: Segment) -> dict[str, bytes]:
    texts, text_values = _encode_texts(segment.texts)
    video = {**vars(segment.video), "extradata": segment.video.extradata.hex()}
    n = segment.num_frames
    return {
        "annotation": compress(segment.annotation) if segment.annotation else b"",
        "buttons": _array(segment.buttons, "<u1", (n, c.MAX_BUTTONS), "buttons"),
        "first_frame": np.array(segment.first_frame, "<i8").tobytes(),
        "keys": _array(segment.keys, "<u1", (n, c.MAX_KEYS), "keys"),
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
    for each in texts:
        embeddings: dict[str, Any] = {}
        for tokenizer, embedding in sorted(each.embeddings.items()):
            embeddings[tokenizer] = [offset, list(embedding.shape)]
            values.append(np.ascontiguousarray(embedding, "<f4").tobytes())
            offset += embedding.size
        described.append(
            {
                "version": each.version,
                "provider": each.provider,
                "instruction": each.instruction,
                "embeddings": embeddings,
            }
        )
    return described, b"".join(values)


def decode_segment(
    sample: bytes | memoryview, with_annotation: bool = False, layout: c.Layout = c.LAYOUT, where: str = "sample"
) -> Segment:
    """The segment in an MDS sample; arrays are read-only views of `sample`.

    `annotation` stays b"" unless `with_annotation`. `layout` tells the columns that the sample has, of which those
    that this reader does not know are passed over. `where` names the sample in errors.

    Raises:
        Refused: when the bytes are not a sample of this format, or hold what no segment can.
    """
    raw = _split_columns(memoryview(sample), layout, where)
    recording = plain_name(_utf8(raw["recording"], f"{where}: recording"), f"{where}: recording")
    index, n, first = (_int(raw[name]) for name in ("segment", "num_frames", "first_frame"))
    where = f"{where}: recording {recording}, segment {index}"
    whole_number(n, f"{where}: num_frames", 1, c.MAX_RECORDING_FRAMES)  # shapes follow from it
    annotation = bytes(raw["annotation"]) if with_annotation else b""
    segment = Segment(
        recording=recording,
        index=index,
        first_frame=first,
        num_frames=n,
        video=_decode_video(raw["video"], f"{where}: video"),
        packets=(raw["packets"],),
        packet_sizes=_view(raw, "packet_sizes", "<u4", where),
        packet_frames=_view(raw, "packet_frames", "<i4", where),
        packet_starts=_view(raw, "packet_starts", "<i4", where),
        keys=_view(raw, "keys", "<u1", where, n, c.MAX_KEYS),
        buttons=_view(raw, "buttons", "<u1", where, n, c.MAX_BUTTONS),
        mouse_px=_view(raw, "mouse_px", "<i4", where, n, 2),
        taken=_view(raw, "taken", "<u1", where, n),
        texts=_decode_texts(raw, where),
        annotation=decompress(annotation, c.MAX_ANNOTATION_BYTES, f"{where}: annotation"),
        source=mapping(_from_json(raw["source"], f"{where}: source"), f"{where}: source"),
    )
    check_segment(segment, where)
    return segment


def _split_columns(sample: memoryview, layout: c.Layout, where: str) -> dict[str, memoryview]:
    num_variable = sum(size is None for _, size in layout)
    begin = 4 * num_variable
    if len(sample) < begin:
        raise Refused(f"{where}: {len(sample)} bytes, too short for {c.FORMAT_NAME} {c.version_text()}")
    sizes = iter(np.frombuffer(sample[:begin], "<u4").tolist())
    found: dict[str, memoryview] = {}
    for name, size in layout:
        end = begin + (next(sizes) if size is None else size)
        found[name] = sample[begin:end]
        begin = end
    if begin != len(sample):
        raise Refused(f"{where}: {len(sample)} bytes, but its columns need {begin}; the shard is damaged")
    return found


def _int(column: memoryview) -> int:
    return int(np.frombuffer(column, "<i8")[0])


def _utf8(column: memoryview, where: str) -> str:
    try:
        return bytes(column).decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{where}: not UTF-8: {error}") from None


def _from_json(column: memoryview, where: str) -> Any:
    return parse_json(bytes(column), where, c.MAX_JSON_COLUMN_BYTES)


def _view(raw: Mapping[str, memoryview], name: str, dtype: str, where: str, *shape: int) -> NDArray[Any]:
    """A column as an array: of this shape, or without one a vector of any length."""
    item, num_bytes = np.dtype(dtype).itemsize, len(raw[name])
    expected = math.prod(shape) * item if shape else num_bytes - num_bytes % item
    if num_bytes != expected:
        raise Refused(f"{where}: {name} has {num_bytes} bytes; expected {expected}, {dtype} {list(shape)}")
    return np.frombuffer(raw[name], dtype).reshape(shape or -1)


def _decode_video(column: memoryview, where: str) -> Video:
    values = mapping(_from_json(column, where), where)
    missing = Video.__dataclass_fields__.keys() - values.keys()
    if missing:
        raise Refused(f"{where}: {sorted(missing)} is missing")
    if not isinstance(values["reordered"], bool):
        raise Refused(f"{where}: reordered is {shown(values['reordered'])}; expected true or false")
    try:
        extradata = bytes.fromhex(text(values["extradata"], f"{where}: extradata", 2 * c.MAX_EXTRADATA_BYTES))
    except ValueError as error:
        raise Refused(f"{where}: extradata is not hexadecimal: {error}") from None
    tags = ("color_range", "color_primaries", "color_trc", "colorspace")
    return Video(
        codec=text(values["codec"], f"{where}: codec", c.MAX_TEXT_CHARACTERS),
        width=whole_number(values["width"], f"{where}: width", 1, c.MAX_VIDEO_SIDE),
        height=whole_number(values["height"], f"{where}: height", 1, c.MAX_VIDEO_SIDE),
        extradata=extradata,
        reordered=values["reordered"],
        **{name: whole_number(values[name], f"{where}: {name}", 0, 255) for name in tags},
    )


def _decode_texts(raw: Mapping[str, memoryview], where: str) -> tuple[Text, ...]:
    frames, rows = _view(raw, "text_frames", "<i4", where), _view(raw, "text_rows", "<i4", where)
    values = _view(raw, "text_values", "<f4", where)
    described = sequence(_from_json(raw["texts"], f"{where}: texts"), f"{where}: texts", c.MAX_TEXTS)
    if not len(frames) == len(rows) == len(described):
        raise Refused(f"{where}: {len(described)} texts for {len(frames)} text_frames and {len(rows)} text_rows")
    return tuple(
        _decode_text(frame, num_rows, entry, values, f"{where}: text {number}")
        for number, (frame, num_rows, entry) in enumerate(zip(frames.tolist(), rows.tolist(), described, strict=True))
    )


def _decode_text(frame: int, num_rows: int, entry: Any, values: NDArray[np.float32], where: str) -> Text:
    entry = mapping(entry, where)
    embeddings = mapping(entry.get("embeddings"), f"{where}: embeddings")
    words = {
        name: text(entry.get(name), f"{where}: {name}", c.MAX_TEXT_CHARACTERS)
        for name in ("version", "provider", "instruction")
    }
    return Text(
        frame,
        num_rows,
        **words,
        embeddings={
            text(tokenizer, f"{where}: tokenizer", c.MAX_TEXT_CHARACTERS): _embedding(place, values, where)
            for tokenizer, place in embeddings.items()
        },
    )


def _embedding(place: Any, values: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """The numbers at [offset, shape]."""
    place = sequence(place, f"{where}: embedding", 2)
    if len(place) != 2:
        raise Refused(f"{where}: embedding is {shown(place)}; expected [offset, shape]")
    offset = whole_number(place[0], f"{where}: offset", 0, values.size)
    shape = [
        whole_number(size, f"{where}: shape", 0, values.size)
        for size in sequence(place[1], f"{where}: shape", _MAX_DIMENSIONS)
    ]
    size = math.prod(shape)
    if offset + size > values.size:
        raise Refused(f"{where}: numbers {offset}..{offset + size - 1} of {values.size}")
    return values[offset : offset + size].reshape(shape)


def check_segment(segment: Segment, where: str) -> None:
    """Refuse what no reader takes; a writer asks before it writes.

    Raises:
        Refused: when something lies outside the limits of the format, or contradicts something else.
    """
    plain_name(segment.recording, f"{where}: recording")
    n = whole_number(segment.num_frames, f"{where}: num_frames", 1, c.MAX_RECORDING_FRAMES)
    whole_number(segment.index, f"{where}: segment", 0, c.MAX_RECORDING_FRAMES)
    whole_number(segment.first_frame, f"{where}: first_frame", 0, c.MAX_RECORDING_FRAMES - n)
    _check_video(segment.video, f"{where}: video")
    _check_packets(segment, where)
    for name, end in (("keys", NUM_KEYS), ("buttons", NUM_BUTTONS), ("taken", c.SYSTEM + 1)):
        largest = int(getattr(segment, name).max())
        if largest >= end:
            raise Refused(f"{where}: {name} holds {largest}; expected less than {end}")
    if len(segment.texts) > c.MAX_TEXTS:
        raise Refused(f"{where}: {len(segment.texts)} texts; at most {c.MAX_TEXTS} are taken")
    for number, each in enumerate(segment.texts):
        _check_text(each, segment.first_frame + n, f"{where}: text {number}")
    if len(segment.annotation) > c.MAX_ANNOTATION_BYTES:
        raise Refused(f"{where}: an annotation of {len(segment.annotation)} bytes; at most {c.MAX_ANNOTATION_BYTES}")


def _check_video(video: Video, where: str) -> None:
    if video.codec != c.CODEC:
        raise Refused(f"{where}: codec {shown(video.codec)}; expected {c.CODEC}")
    whole_number(video.width, f"{where}: width", 1, c.MAX_VIDEO_SIDE)
    whole_number(video.height, f"{where}: height", 1, c.MAX_VIDEO_SIDE)
    if len(video.extradata) > c.MAX_EXTRADATA_BYTES:
        raise Refused(f"{where}: extradata of {len(video.extradata)} bytes; at most {c.MAX_EXTRADATA_BYTES}")


def _check_packets(segment: Segment, where: str) -> None:
    """Sizes fill the payload, every frame comes out of one packet, starts ascend from 0."""
    sizes, frames, starts = segment.packet_sizes, segment.packet_frames, segment.packet_starts
    num_bytes, stated = sum(map(len, segment.packets)), int(sizes.sum(dtype=np.int64))
    if len(sizes) != len(frames) or stated != num_bytes:
        raise Refused(f"{where}: {len(sizes)} packets of {stated} bytes; expected {len(frames)} of {num_bytes}")
    given = np.sort(frames[frames != -1])
    if len(given) != segment.num_frames or not np.array_equal(given, np.arange(len(given))):
        raise Refused(f"{where}: its packets do not give each of the {segment.num_frames} frames once")
    if not len(starts) or starts[0] != 0 or starts[-1] >= len(sizes) or np.any(np.diff(starts) <= 0):
        raise Refused(f"{where}: packet_starts {starts[:6].tolist()}; expected ascending from 0, below {len(sizes)}")


def _check_text(given: Text, end: int, where: str) -> None:
    """`end`: the frame of the recording that is the first after the segment."""
    whole_number(given.frame, f"{where}: frame", 0, end - 1)
    whole_number(given.num_rows, f"{where}: rows", 0, 2**31 - 1)
    for name in ("version", "provider", "instruction"):
        text(getattr(given, name), f"{where}: {name}", c.MAX_TEXT_CHARACTERS)
    if len(given.embeddings) > _MAX_EMBEDDINGS:
        raise Refused(f"{where}: {len(given.embeddings)} embeddings; at most {_MAX_EMBEDDINGS} are taken")
    for tokenizer, values in given.embeddings.items():
        text(tokenizer, f"{where}: tokenizer", c.MAX_TEXT_CHARACTERS)
        if values.ndim > _MAX_DIMENSIONS:
            raise Refused(f"{where}: an embedding of {values.ndim} dimensions; at most {_MAX_DIMENSIONS} are taken")
        if not np.isfinite(values).all():  # asked first, for naming a tokenizer in words takes longer
            finite(values, f"{where}: the {shown(tokenizer)} embedding")
