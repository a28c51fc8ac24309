"""Converted streams read back shard by shard, without Streaming: for checks and for looking at them.

What lies there may be a stranger's: sizes come from the checked index, and files are regular ones of that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from p2p.format import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    Recordings,
    Segment,
    content_damage,
    decode_index,
    decode_segment,
    decompress,
    layout_of,
    split_samples,
)
from p2p_convert.storage import Store


def stream_names(store: Store) -> list[str]:
    """The streams below an address, "" for one that is a stream itself.

    Raises:
        ValueError: when there is none.
    """
    streams = [
        name.removesuffix(INDEX_FILE).rstrip("/") for name in store.sizes() if name.rpartition("/")[2] == INDEX_FILE
    ]
    if not streams:
        raise ValueError(f"{store.address}: no index.json below it; expected the OUT of a p2p-convert that has ended")
    return streams


def read_index(store: Store, stream: str) -> tuple[Sequence[dict[str, Any]], Recordings]:
    """Shard entries and recordings of a stream.

    Raises:
        ValueError: naming the file, when it is damaged or says what cannot be.
    """
    name = _join(stream, INDEX_FILE)
    return decode_index(store.read(name, MAX_INDEX_BYTES), f"{store.address}/{name}")


def read_shard(store: Store, stream: str, entry: Mapping[str, Any]) -> list[memoryview]:
    """The samples of a shard, its size and hashes checked.

    Raises:
        ValueError: naming the file, when it is missing or damaged.
    """
    stored = entry["zip_data"] or entry["raw_data"]
    name = _join(stream, stored["basename"])
    where = f"{store.address}/{name}"
    try:
        content = store.read(name, stored["bytes"])
    except FileNotFoundError as error:
        raise ValueError(f"{where}: missing, but the index lists it") from error
    _check(content, stored, where)
    if entry["zip_data"]:
        where = f"{where} (unpacked)"
        content = decompress(content, entry["raw_data"]["bytes"], where)
        _check(content, entry["raw_data"], where)
    return split_samples(memoryview(content), entry["samples"], where)


def read_segments(
    store: Store, stream: str, entry: Mapping[str, Any], with_annotation: bool = False
) -> Iterator[Segment]:
    """The segments of a shard, one after another.

    Raises:
        ValueError: naming file and sample, when one is damaged.
    """
    where = f"{store.address}/{_join(stream, entry['raw_data']['basename'])}"
    for number, sample in enumerate(read_shard(store, stream, entry)):
        yield decode_segment(sample, with_annotation, layout_of(entry), f"{where}, sample {number}")


def _check(content: bytes, expected: Mapping[str, Any], where: str) -> None:
    damage = content_damage(content, expected)
    if damage:
        raise ValueError(f"{where}: {damage}")


def _join(stream: str, name: str) -> str:
    return f"{stream}/{name}" if stream else name
