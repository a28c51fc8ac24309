"""A shard: the MDS file that holds samples. What it begins with, how a sample is found in it, whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.format.columns import COLUMNS, LAYOUT, MAX_SAMPLE_BYTES
from p2p.gate import Refused, open_regular

MAX_SHARD_BYTES = 2**32 - 1  # the reach of MDS's 32-bit offsets
_OFFSET_BYTES = 4

# Digits of the hashes that may stand in an index, by the names that Streaming has for them.
HASH_DIGITS = {
    **{
        name: 2 * hashlib.new(name).digest_size for name in sorted(hashlib.algorithms_guaranteed) if "shake" not in name
    },
    "xxh32": 8,
    **dict.fromkeys(("xxh64", "xxh3_64"), 16),
    **dict.fromkeys(("xxh128", "xxh3_128"), 32),
}


def shard_head(sample_sizes: Sequence[int]) -> bytes:
    """What an MDS shard file begins with, before its samples: their count, their offsets, a JSON header.

    Raises:
        ValueError: when it would pass 4 GiB, the reach of MDS's 32-bit offsets, or a sample what a reader takes.
    """
    if max(sample_sizes) > MAX_SAMPLE_BYTES:
        raise ValueError(f"a segment of {max(sample_sizes)} bytes; a reader takes at most {MAX_SAMPLE_BYTES}")
    header = json.dumps({**shard_config(None, ()), "size_limit": None}, sort_keys=True, separators=(",", ":")).encode()
    begin = 4 + _OFFSET_BYTES * (len(sample_sizes) + 1) + len(header)
    offsets = begin + np.concatenate([[0], np.cumsum(sample_sizes, dtype=np.int64)])
    if offsets[-1] > MAX_SHARD_BYTES:
        raise ValueError(f"a shard of {offsets[-1]} bytes; MDS shards must stay below 4 GiB: use smaller shards")
    return np.array(len(sample_sizes), "<u4").tobytes() + offsets.astype("<u4").tobytes() + header


def shard_config(compression: str | None, hashes: Iterable[str]) -> dict[str, Any]:
    """What MDS says of every shard, in its file and in the index."""
    return {
        "column_encodings": [COLUMNS[name] for name, _ in LAYOUT],
        "column_names": [name for name, _ in LAYOUT],
        "column_sizes": [size for _, size in LAYOUT],
        "compression": compression,
        "format": "mds",
        "hashes": sorted(hashes),
        "version": 2,
    }


def content_damage(content: bytes | memoryview, expected: Mapping[str, Any]) -> str:
    """What is wrong with a file by its size and every hash of the index, {bytes, hashes}; "" when it is whole."""
    if len(content) != expected["bytes"]:
        return f"{len(content)} bytes, the index says {expected['bytes']}"
    for algorithm, digest in expected["hashes"].items():
        if _digest(algorithm, content) != digest:
            return f"its {algorithm} is not the one in the index"
    return ""


def _digest(algorithm: str, content: bytes | memoryview) -> str:
    if algorithm.startswith("xxh"):
        import xxhash

        return str(getattr(xxhash, algorithm)(content).hexdigest())
    return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


def split_samples(content: memoryview, num_samples: int, where: str) -> list[memoryview]:
    """The samples of a shard's content; `where` names the file in errors.

    Raises:
        Refused: when it does not hold that many, one after another to its end.
    """
    head = content[: 4 + _OFFSET_BYTES * (num_samples + 1)]
    if len(head) < 4 + _OFFSET_BYTES * (num_samples + 1):
        raise Refused(f"{where}: {len(content)} bytes are too few for {num_samples} samples")
    offsets = np.frombuffer(head[4:], "<u4").astype(np.int64)
    _check_places(offsets, num_samples, len(content), where)
    count = int.from_bytes(head[:4], "little")
    if count != num_samples or offsets[-1] != len(content):
        raise Refused(f"{where}: {count} samples that end at byte {offsets[-1]}; expected {num_samples} to the end")
    return [content[begin:end] for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def read_sample(path: Path | str, sample: int, num_samples: int, num_bytes: int) -> bytes:
    """Sample number `sample` of a shard's file of `num_bytes`.

    Raises:
        Refused: when it is no regular file, or says that the sample lies where none can. OSError: when it
            cannot be read.
    """
    where = f"{path}, sample {sample}"
    with open_regular(path) as file:
        file.seek(4 + _OFFSET_BYTES * sample)
        head = file.read(2 * _OFFSET_BYTES)
        if len(head) < 2 * _OFFSET_BYTES:
            raise Refused(f"{where}: the file ends before it")
        places = np.frombuffer(head, "<u4").astype(np.int64)
        _check_places(places, num_samples, num_bytes, where)
        begin, end = places.tolist()
        file.seek(begin)
        content = file.read(end - begin)
    if len(content) != end - begin:
        raise Refused(f"{where}: the file ends inside it")
    return content


def _check_places(places: NDArray[np.int64], num_samples: int, num_bytes: int, where: str) -> None:
    """Refuse places int64 [k] of samples, and the end of the last, that lie in the head, beyond the end or apart."""
    least = 4 + _OFFSET_BYTES * (num_samples + 1)
    sizes = np.diff(places)
    if places[0] < least or places[-1] > num_bytes or sizes.min() < 0 or sizes.max() > MAX_SAMPLE_BYTES:
        raise Refused(
            f"{where}: samples at {places[:4].tolist()}; expected ascending places in {least}..{num_bytes}, "
            f"at most {MAX_SAMPLE_BYTES} bytes apart"
        )
