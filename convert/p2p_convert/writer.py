"""Segments become shard files; one task's part of every stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import xxhash

from p2p.format import RecordingEntry, compress, encode_segment, encode_shard, shard_entry
from p2p_convert.files import write_file
from p2p_convert.segments import Converted

HASH = "xxh3_64"
_OFFSET_BYTES = 4  # what a sample costs in the shard's head


class StreamPart:
    """The shards that one task adds to a stream; files appear complete, `finish` describes them.

    Args:
        folder: of the stream.
        task: its number, part of the shards' names.
        shard_bytes: a shard is closed before it would pass this size (a larger sample has its own).
        compression: "" or "zstd:LEVEL" for whole shards.
    """

    def __init__(self, folder: Path, task: int, shard_bytes: int, compression: str) -> None:
        self._folder = folder
        self._task = task
        self._shard_bytes = shard_bytes
        self._compression = compression
        self._samples: list[bytes] = []
        self._size = 0
        self._num_samples = 0
        self._shards: list[dict[str, Any]] = []
        self._recordings: list[RecordingEntry] = []

    def add(self, converted: Converted) -> None:
        """Append a recording; first_sample counts from the task's first sample."""
        self._recordings.append(
            RecordingEntry(
                id=converted.id,
                game=converted.game,
                num_frames=converted.num_frames,
                first_sample=self._num_samples,
                segment_frames=tuple(segment.num_frames for segment in converted.segments),
                system_runs=converted.system_runs,
                num_user=converted.num_user,
                num_system=converted.num_system,
            )
        )
        for segment in converted.segments:
            sample = encode_segment(segment)
            if self._samples and self._size + len(sample) + _OFFSET_BYTES > self._shard_bytes:
                self._flush()
            self._samples.append(sample)
            self._size += len(sample) + _OFFSET_BYTES
            self._num_samples += 1

    def finish(self) -> dict[str, Any]:
        """Write what is left; returns {"shards": entries, "recordings": entries as JSON values}."""
        if self._samples:
            self._flush()
        return {"shards": self._shards, "recordings": [dataclasses.asdict(r) for r in self._recordings]}

    def _flush(self) -> None:
        name = f"shard.{self._task:05d}.{len(self._shards):03d}.mds"
        raw = encode_shard(self._samples)
        raw_data = _describe(name, raw)
        zip_data = None
        content = raw
        if self._compression:
            _, _, level = self._compression.partition(":")
            name += ".zstd"
            content = compress(raw, int(level or 3))
            zip_data = _describe(name, content)
        write_file(self._folder / name, content)
        self._shards.append(shard_entry(len(self._samples), raw_data, zip_data, self._compression or None))
        self._samples, self._size = [], 0


def _describe(basename: str, content: bytes) -> dict[str, Any]:
    return {"basename": basename, "bytes": len(content), "hashes": {HASH: xxhash.xxh3_64_hexdigest(content)}}
