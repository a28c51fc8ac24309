"""Segments become shard files; one task's part of every stream."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from p2p.format import RecordingEntry, compress, encode_segment, encode_shard, shard_entry
from p2p_convert.files import write_file
from p2p_convert.segments import Converted

HASH = "xxh3_64"
_OFFSET_BYTES = 4  # what a sample costs in the shard's head


def describe_recording(converted: Converted) -> RecordingEntry:
    """The entry of a recording, its place among the samples still open."""
    return RecordingEntry(
        id=converted.id,
        game=converted.game,
        num_frames=converted.num_frames,
        first_sample=0,
        segment_frames=tuple(segment.num_frames for segment in converted.segments),
        system_runs=converted.system_runs,
        num_user=converted.num_user,
        num_system=converted.num_system,
    )


class SortedRecordings:
    """Recordings in any order in, in the order of their ids out, by way of a nameless file in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by close
        self._kept: list[tuple[str, RecordingEntry, int, list[int]]] = []

    def add(self, stream: str, converted: Converted) -> None:
        begin = self._file.tell()
        sizes = [self._file.write(encode_segment(segment)) for segment in converted.segments]
        self._kept.append((stream, describe_recording(converted), begin, sizes))

    def __iter__(self) -> Iterator[tuple[str, RecordingEntry, Iterator[bytes]]]:
        """(stream, recording, samples)."""
        for stream, recording, begin, sizes in sorted(self._kept, key=lambda kept: kept[1].id):
            self._file.seek(begin)
            yield stream, recording, map(self._file.read, sizes)

    def close(self) -> None:
        self._file.close()


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

    def add(self, recording: RecordingEntry, samples: Iterable[bytes]) -> None:
        """Append a recording; its first_sample becomes its place among the task's samples."""
        self._recordings.append(dataclasses.replace(recording, first_sample=self._num_samples))
        for sample in samples:
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
