"""Segments become shard files; one task's part of every stream."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash

from p2p.format import RecordingEntry, compress, shard_entry, shard_head
from p2p_convert.files import temporary_files
from p2p_convert.segments import Converted
from p2p_convert.storage import Store

HASH = "xxh3_64"
Pieces = list[bytes | memoryview]  # a sample, or a file, to be written one after another
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
    """Recordings in any order in, in the order of their ids out, by way of a nameless file (in TMPDIR)."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
        self._kept: list[tuple[str, RecordingEntry, int, list[int]]] = []

    def add(self, stream: str, recording: RecordingEntry, samples: Iterable[Pieces]) -> None:
        begin = self._file.tell()
        sizes = []
        with temporary_files():
            for pieces in samples:
                self._file.writelines(pieces)
                sizes.append(sum(map(len, pieces)))
            self._file.flush()
        self._kept.append((stream, recording, begin, sizes))

    @property
    def ids(self) -> list[str]:
        """Of the recordings that came in, in order."""
        return sorted(recording.id for _, recording, _, _ in self._kept)

    def __iter__(self) -> Iterator[tuple[str, RecordingEntry, Iterator[Pieces]]]:
        """(stream, recording, samples)."""
        for stream, recording, begin, sizes in sorted(self._kept, key=lambda kept: kept[1].id):
            self._file.seek(begin)
            yield stream, recording, ([self._file.read(size)] for size in sizes)

    def close(self) -> None:
        self._file.close()


class StreamPart:
    """The shards that one task adds to a stream; files appear complete, `finish` describes them.

    Args:
        store, stream: where, and the folder of the stream in it.
        task: its number, part of the shards' names.
        shard_bytes: a shard is closed before it would pass this size (a larger sample has its own).
        compression: "" or "zstd:LEVEL" for whole shards.
        lease: whose work it is. Who lost the store meanwhile must not replace the new owner's shards, which may be
            others: he may decode what this conversion does not.
    """

    def __init__(
        self, store: Store, stream: str, task: int, shard_bytes: int, compression: str, lease: str = ""
    ) -> None:
        self._store = store
        self._lease = lease
        self._stream = stream
        self._task = task
        self._shard_bytes = shard_bytes
        self._compression = compression
        self._pieces: Pieces = []
        self._sizes: list[int] = []
        self._num_samples = 0
        self._shards: list[dict[str, Any]] = []
        self._recordings: list[RecordingEntry] = []

    def add(self, recording: RecordingEntry, samples: Iterable[Pieces]) -> None:
        """Append a recording; its first_sample becomes its place among the task's samples."""
        self._recordings.append(dataclasses.replace(recording, first_sample=self._num_samples))
        for sample in samples:
            size = sum(map(len, sample))
            if self._sizes and sum(self._sizes) + size + _OFFSET_BYTES * (len(self._sizes) + 1) > self._shard_bytes:
                self._flush()
            self._pieces += sample
            self._sizes.append(size)
            self._num_samples += 1

    def finish(self) -> dict[str, Any]:
        """Write what is left; returns {"shards": entries, "recordings": entries as JSON values}."""
        if self._sizes:
            self._flush()
        return {"shards": self._shards, "recordings": [dataclasses.asdict(r) for r in self._recordings]}

    def _flush(self) -> None:
        name = f"shard.{self._task:05d}.{len(self._shards):03d}.mds"
        pieces = [shard_head(self._sizes), *self._pieces]
        raw_data = _describe(name, pieces)
        zip_data = None
        if self._compression:
            _, _, level = self._compression.partition(":")
            name += ".zstd"
            pieces = [compress(b"".join(pieces), int(level or 3))]
            zip_data = _describe(name, pieces)
        self._store.check(self._lease)
        self._store.write(f"{self._stream}/{name}", *pieces)
        self._shards.append(shard_entry(len(self._sizes), raw_data, zip_data, self._compression or None))
        self._pieces, self._sizes = [], []


def _describe(basename: str, pieces: Pieces) -> dict[str, Any]:
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return {"basename": basename, "bytes": sum(map(len, pieces)), "hashes": {HASH: digest.hexdigest()}}
