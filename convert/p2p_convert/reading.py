"""Converted streams read back shard by shard, without Streaming: for checks and for looking at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from p2p.format import RecordingEntry, Segment, decode_index, decode_segment, decompress
from p2p_convert.storage import Store
from p2p_convert.writer import HASH

INDEX = "index.json"


def stream_names(store: Store) -> list[str]:
    """The streams below an address, "" for one that is a stream itself.

    Raises:
        ValueError: when there is none.
    """
    streams = [name.removesuffix(INDEX).rstrip("/") for name in store.names() if name.rpartition("/")[2] == INDEX]
    if not streams:
        raise ValueError(f"{store.address}: no index.json below it; expected the OUT of a p2p-convert that has ended")
    return streams


def read_index(store: Store, stream: str) -> tuple[list[dict[str, Any]], list[RecordingEntry]]:
    """Shard entries and recordings of a stream."""
    name = _join(stream, INDEX)
    return decode_index(store.read(name), f"{store.address}/{name}")


def read_shard(store: Store, stream: str, entry: Mapping[str, Any]) -> list[memoryview]:
    """The samples of a shard, its size and hashes checked.

    Raises:
        ValueError: naming the file, when it is missing or damaged.
    """
    stored = entry["zip_data"] or entry["raw_data"]
    name = _join(stream, stored["basename"])
    where = f"{store.address}/{name}"
    try:
        content = store.read(name)
    except FileNotFoundError as error:
        raise ValueError(f"{where}: missing, but the index lists it") from error
    _check(content, stored, where)
    if entry["zip_data"]:
        content = decompress(content)
        _check(content, entry["raw_data"], f"{where} (unpacked)")
    return _samples(memoryview(content), entry["samples"], where)


def _check(content: bytes, expected: Mapping[str, Any], where: str) -> None:
    if len(content) != expected["bytes"]:
        raise ValueError(f"{where}: {len(content)} bytes, the index says {expected['bytes']}")
    if HASH in expected["hashes"] and xxhash.xxh3_64_hexdigest(content) != expected["hashes"][HASH]:
        raise ValueError(f"{where}: its {HASH} is not the one in the index")


def _samples(content: memoryview, expected: int, where: str) -> list[memoryview]:
    count = int(np.frombuffer(content[:4], "<u4")[0])
    if count != expected:
        raise ValueError(f"{where}: {count} samples, the index says {expected}")
    offsets = np.frombuffer(content[4 : 4 + 4 * (count + 1)], "<u4").tolist()
    return [content[begin:end] for begin, end in pairwise(offsets)]


def segments_of(
    store: Store, stream: str, with_annotation: bool = False
) -> Iterator[tuple[dict[str, Any], list[Segment]]]:
    """(shard entry, its segments) one shard after another."""
    entries, _ = read_index(store, stream)
    for entry in entries:
        samples = read_shard(store, stream, entry)
        yield entry, [decode_segment(sample, with_annotation) for sample in samples]


def _join(stream: str, name: str) -> str:
    return f"{stream}/{name}" if stream else name
