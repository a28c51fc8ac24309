"""Samples whose hash is right and whose content cannot be: refused in words, with file, recording and segment."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_hexdigest

from p2p.data import ShardError
from p2p.format import COLUMNS, compress, decode_index, decode_segment, decompress, shard_head, split_samples
from tests.data.conftest import open_dataset, read_all

STORED = Path(__file__).parent / "stream_1_0"
NAME = "shard.00000.000.mds"
Columns = dict[str, bytes]
FIXED = ("first_frame", "num_frames", "segment")


def stored_samples() -> list[bytes]:
    content = (STORED / NAME).read_bytes()
    return [bytes(sample) for sample in split_samples(memoryview(content), 2, NAME)]


def columns_of(sample: bytes) -> Columns:
    variable = [name for name in sorted(COLUMNS) if name not in FIXED]
    sizes = dict(zip(variable, np.frombuffer(sample[: 4 * len(variable)], "<u4").tolist(), strict=True))
    begin, found = 4 * len(variable), {}
    for name in sorted(COLUMNS):
        found[name] = sample[begin : begin + sizes.get(name, 8)]
        begin += sizes.get(name, 8)
    return found


def joined(columns: Columns) -> bytes:
    variable = [name for name in sorted(COLUMNS) if name not in FIXED]
    return np.array([len(columns[n]) for n in variable], "<u4").tobytes() + b"".join(
        columns[n] for n in sorted(COLUMNS)
    )


def write_stream(folder: Path, content: bytes) -> Path:
    """The stored stream with another content of its shard, of which the index tells the true hash."""
    folder.mkdir()
    index = json.loads((STORED / "index.json").read_text())
    index["shards"][0]["raw_data"].update(bytes=len(content), hashes={"xxh3_64": xxh3_64_hexdigest(content)})
    (folder / "index.json").write_text(json.dumps(index))
    (folder / NAME).write_bytes(content)
    return folder


def rewrite_shard(stream: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Other samples in the only shard of a stream, of which the index then tells the true hash."""
    index = json.loads((stream / "index.json").read_text())
    (shard,) = index["shards"]
    path = stream / shard["raw_data"]["basename"]
    stored = split_samples(memoryview(path.read_bytes()), shard["samples"], path.name)
    content = shard_of(change([bytes(sample) for sample in stored]))
    shard["raw_data"].update(bytes=len(content), hashes={"xxh3_64": xxh3_64_hexdigest(content)})
    path.write_bytes(content)
    (stream / "index.json").write_text(json.dumps(index))


def shard_of(samples: list[bytes]) -> bytes:
    return shard_head([len(sample) for sample in samples]) + b"".join(samples)


def to(name: str, value: bytes) -> Callable[[Columns], None]:
    return lambda columns: columns.__setitem__(name, value)


def number(value: int) -> bytes:
    return struct.pack("<q", value)


def at(name: str, dtype: str, place: int, value: Any) -> Callable[[Columns], None]:
    """One number of an array."""

    def change(columns: Columns) -> None:
        values = np.frombuffer(columns[name], dtype).copy()
        values[place] = value
        columns[name] = values.tobytes()

    return change


def in_json(name: str, *path: Any) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        value = json.loads(columns[name])
        place = value
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]
        columns[name] = json.dumps(value).encode()

    return change


def wrapping(sizes: bytes) -> bytes:
    """Sizes with the same sum modulo 2^32."""
    values = np.frombuffer(sizes, "<u4").copy()
    values[:2] += np.array([1 << 31, 1 << 31], np.uint32)
    return values.tobytes()


WRONG: dict[str, Callable[[Columns], None]] = {
    "key out of the vocabulary": at("keys", "<u1", 3, 255),
    "button out of the vocabulary": at("buttons", "<u1", 0, 4),
    "row of nobody": at("taken", "<u1", 0, 3),
    "no frames": to("num_frames", number(0)),
    "negative frames": to("num_frames", number(-25)),
    "endless frames": to("num_frames", number(1 << 62)),
    "one frame more than rows": to("num_frames", number(26)),
    "negative first frame": to("first_frame", number(-1)),
    "endless first frame": to("first_frame", number(1 << 62)),
    "negative segment": to("segment", number(-1)),
    "climbing recording": to("recording", b"../one"),
    "recording that is no text": to("recording", b"\xff"),
    "rows of odd length": to("mouse_px", b"\0" * 199),
    "packet sizes of odd length": to("packet_sizes", b"\0" * 99),
    "packet larger than the payload": at("packet_sizes", "<u4", 0, 2**32 - 1),
    "packet sizes that wrap around to the payload's": lambda c: c.update(packet_sizes=wrapping(c["packet_sizes"])),
    "fewer packet frames": to("packet_frames", b"\0" * 4),
    "packet of a frame far away": at("packet_frames", "<i4", 0, 2**31 - 1),
    "packet of a negative frame": at("packet_frames", "<i4", 0, -2),
    "frame that two packets give": at("packet_frames", "<i4", 0, 1),
    "no start": to("packet_starts", b""),
    "start beyond the packets": to("packet_starts", struct.pack("<2i", 0, 25)),
    "negative start": to("packet_starts", struct.pack("<2i", 0, -1)),
    "first start that is not 0": to("packet_starts", struct.pack("<i", 1)),
    "number that is none in an embedding": at("text_values", "<f4", 0, np.nan),
    "infinite embedding": at("text_values", "<f4", 3, np.inf),
    "texts that are no list": to("texts", b'{"0": 1}'),
    "texts that are no JSON": to("texts", b"[" * 100_000),
    "fewer texts": to("texts", b"[]"),
    "text of numbers": in_json("texts", 0, "instruction", 7),
    "text without embeddings": in_json("texts", 0, "embeddings", None),
    "embedding before the values": in_json("texts", 0, "embeddings", {"gemma": [-8, [1, 8]]}),
    "embedding beyond the values": in_json("texts", 0, "embeddings", {"gemma": [1 << 40, [1, 8]]}),
    "embedding of endless shape": in_json("texts", 0, "embeddings", {"gemma": [0, [1 << 40, 1 << 40]]}),
    "embedding of negative shape": in_json("texts", 0, "embeddings", {"gemma": [0, [-1, -8]]}),
    "embedding without a place": in_json("texts", 0, "embeddings", {"gemma": []}),
    "text at a frame of another segment": at("text_frames", "<i4", 0, 25),
    "text at a negative frame": at("text_frames", "<i4", 0, -1),
    "text of negative rows": at("text_rows", "<i4", 0, -1),
    "video of another codec": in_json("video", "codec", "rawvideo"),
    "absurd width": in_json("video", "width", 1 << 31),
    "no height": in_json("video", "height", 0),
    "height as text": in_json("video", "height", "64"),
    "extradata that is not hexadecimal": in_json("video", "extradata", "xy"),
    "endless extradata": in_json("video", "extradata", "00" * (1 << 17)),
    "reordered by a number": in_json("video", "reordered", 1),
    "video that is a list": to("video", b"[]"),
    "video without width": to("video", b'{"codec": "h264"}'),
    "source that is a list": to("source", b"[]"),
    "endless JSON": to("source", b" " * (1 << 24) + b"{}"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_segment_that_cannot_be_is_refused(kind: str) -> None:
    columns = columns_of(stored_samples()[0])
    assert decode_segment(joined(columns)).recording == "one"
    WRONG[kind](columns)
    with pytest.raises(ValueError, match=r"^shard x, sample 0: ") as caught:
        decode_segment(joined(columns), where="shard x, sample 0")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_flipped_byte_anywhere_is_no_crash() -> None:
    """Whatever a sample holds, it decodes or is refused."""
    sample = bytearray(stored_samples()[0])
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(sample), 3000).tolist():
        before = sample[place]
        sample[place] ^= int(rng.integers(1, 256))
        try:
            decode_segment(bytes(sample), with_annotation=True)
        except ValueError:
            refused += 1
        sample[place] = before
    assert refused > 100


def test_the_loader_names_file_recording_and_segment(tmp_path: Path) -> None:
    first, second = stored_samples()
    columns = columns_of(first)
    at("keys", "<u1", 0, 255)(columns)
    stream = write_stream(tmp_path / "stream", shard_of([joined(columns), second]))
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match=rf"{NAME}, sample 0: recording one, segment 0: keys holds 255") as caught:
            read_all(open_dataset(stream, size=(32, 32)), num_workers)
        assert "ShardError" in f"{type(caught.value).__name__} {caught.value}"


def test_swapped_recordings_are_not_trained_on(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", shard_of(stored_samples()[::-1]))
    with pytest.raises(ShardError, match=rf"{NAME}, sample 0: .*are \('two', 0, 0, 12\), the index says \('one'"):
        read_all(open_dataset(stream, size=(32, 32)))


@pytest.mark.parametrize(("place", "value"), [(4, 0), (4, 2**32 - 1), (8, 0), (8, 2**32 - 1), (12, 2**32 - 1), (12, 5)])
def test_offsets_that_lie_are_refused_by_the_loader(tmp_path: Path, place: int, value: int) -> None:
    content = bytearray(shard_of(stored_samples()))
    content[place : place + 4] = struct.pack("<I", value)
    stream = write_stream(tmp_path / "stream", bytes(content))
    with pytest.raises(ShardError, match=rf"{NAME}, sample [01]: "):
        read_all(open_dataset(stream, size=(32, 32)))
    shards, _ = decode_index((stream / "index.json").read_bytes(), "index.json")
    with pytest.raises(ValueError, match=r"^here: "):
        split_samples(memoryview(bytes(content)), shards[0]["samples"], "here")


BOMB = compress(b"\0" * (1 << 28))
# By the package `zstd` 1.5.7.2, which wrote shards before.
OLD = bytes.fromhex("28b52ffd60b0035d000020703270200100a9fc3b22")
EMPTY = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (BOMB, "268435456 bytes when unpacked; at most 1000"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x03\x00\x00", "here: "),
        (compress(b"x") + BOMB, "unused data"),
        (compress(b"x" * 100)[:-3], "did not decompress full frame"),
        (b"\x28\xb5\x2f\xfd\x00\x58" + b"\x03\x00\x00", "does not say how long"),
        (b"PK\x03\x04" * 10, "not one whole zstd frame"),
        (b"\x28\xb5\x2f\xfd\x20\x0a" + b"\x03\x00\x10z", "not one whole zstd frame"),
        (EMPTY + BOMB, "is empty"),
        (b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + BOMB, "is empty"),  # a frame that readers skip
    ],
)
def test_a_zstd_frame_gives_no_more_than_it_may(frame: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompress(frame, 1000, "here")


@pytest.mark.parametrize("size", [1, 255, 256, 65_535, 65_791, 65_792, 1 << 20])
def test_what_was_compressed_comes_back(size: int) -> None:
    content = np.random.default_rng(0).integers(0, 4, size, dtype=np.uint8).tobytes()
    assert decompress(compress(content), size, "here") == content


def test_what_another_version_compressed_is_read() -> None:
    assert decompress(OLD, 1200, "here") == b"p2p " * 300


def test_an_annotation_that_unpacks_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.format.columns.MAX_ANNOTATION_BYTES", 1 << 20)
    columns = columns_of(stored_samples()[0])
    columns["annotation"] = BOMB
    with pytest.raises(ValueError, match=r"recording one, segment 0: annotation: 268435456 bytes when unpacked"):
        decode_segment(joined(columns), with_annotation=True)
