"""One stream of shards: its index, its table of chunks, and shards that are verified before they are used.

Streaming downloads and unpacks shards; here they are checked against the hashes of the index, also when they
were on the disk already, and what goes wrong is raised as a ShardError that names the file.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from streaming.base.constant import TICK
from streaming.base.format import get_index_basename, reader_from_json
from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.hashing import get_hash
from streaming.base.storage.download import S3Downloader
from streaming.base.stream import Stream
from streaming.base.util import wait_for_file_to_exist
from streaming.base.world import World

from p2p import object_storage
from p2p.data.chunks import kept_starts
from p2p.format import RecordingEntry, decode_index
from p2p.object_storage import PATIENCE_S, StorageError, is_refusal

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class ShardError(ValueError):
    """A shard or an index that is missing, damaged or out of reach; the message names the file."""


@dataclass(frozen=True)
class ChunkTable:
    """The chunks of a stream at phase 0, by the stored shard in which each begins.

    recordings are in the order of their ids; chunk_recording and chunk_slot int32 [num_chunks] are ordered by
    (shard, recording, slot); chunks_per_shard int64 [num_shards]; first_samples int64 [num_shards + 1] counts
    stored samples before each shard.
    """

    recordings: Sequence[RecordingEntry]
    chunk_recording: NDArray[np.int32]
    chunk_slot: NDArray[np.int32]
    chunks_per_shard: NDArray[np.int64]
    first_samples: NDArray[np.int64]

    def segments(self, recording: RecordingEntry, begin: int, end: int) -> list[tuple[int, int, int]]:
        """(shard, sample in the shard, first frame) of the segments that hold frames begin .. end - 1."""
        edges = np.cumsum([0, *recording.segment_frames])
        first = int(np.searchsorted(edges, begin, side="right")) - 1
        last = int(np.searchsorted(edges, end, side="left"))
        found = []
        for segment in range(first, last):
            sample = recording.first_sample + segment
            shard = int(np.searchsorted(self.first_samples, sample, side="right")) - 1
            found.append((shard, sample - int(self.first_samples[shard]), int(edges[segment])))
        return found


def build_chunk_table(
    samples_per_shard: Sequence[int], recordings: Sequence[RecordingEntry], num_timesteps: int
) -> ChunkTable:
    """The chunks that all recordings give at phase 0."""
    first_samples = np.concatenate([[0], np.cumsum(samples_per_shard, dtype=np.int64)])
    ordered = sorted(recordings, key=lambda recording: recording.id)
    numbers, slots, shards = [], [], []
    for number, recording in enumerate(ordered):
        starts = kept_starts(recording.num_frames, num_timesteps, recording.system_runs)
        segment = np.searchsorted(np.cumsum(recording.segment_frames), starts, side="right")
        shards.append(np.searchsorted(first_samples, recording.first_sample + segment, side="right") - 1)
        numbers.append(np.full(len(starts), number, np.int32))
        slots.append(np.arange(len(starts), dtype=np.int32))
    if not ordered:
        nothing = np.zeros(0, np.int32)
        return ChunkTable([], nothing, nothing, np.zeros(len(samples_per_shard), np.int64), first_samples)
    shard = np.concatenate(shards)
    order = np.argsort(shard, kind="stable")
    return ChunkTable(
        recordings=ordered,
        chunk_recording=np.concatenate(numbers)[order],
        chunk_slot=np.concatenate(slots)[order],
        chunks_per_shard=np.bincount(shard, minlength=len(samples_per_shard)).astype(np.int64),
        first_samples=first_samples,
    )


class PatientS3Downloader(S3Downloader):
    """Streaming's downloader with the client of p2p.object_storage.

    Every process has a client of its own: workers that share one from before their fork read each other's answers.
    """

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.patience_s = patience_s
        self.unsigned = False

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        self._s3_client = object_storage.client(self.patience_s, self.unsigned)
        super()._download_file_impl(remote, local, timeout)

    def _create_s3_client(self, unsigned: bool = False, timeout: float = 0.0) -> None:
        """Called when the store answers 400: a public bucket may want no keys."""
        if self.unsigned:
            raise StorageError("the store answers 400, with keys and without; check the address and S3_ENDPOINT_URL")
        self.unsigned = unsigned

    def clean_up(self) -> None:
        """Nothing: the client survives failures, and another thread may be using it."""


class GameplayStream(Stream):
    """A folder of shards, or an address that they are downloaded from.

    Args:
        num_timesteps: T; set by the dataset.
        give_up_after_s: how long to try again when a store fails (set by the dataset).
        others: of streaming.Stream, such as remote, local, proportion, repeat, choose.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.num_timesteps = 0
        self.give_up_after_s = PATIENCE_S
        self.table: ChunkTable

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Readers of all shards; each counts the chunks that begin in it, not its stored samples.

        Raises:
            ValueError: for a missing, damaged or newer index, or one without a single chunk.
        """
        if str(self.remote).startswith("s3://"):
            self._downloader = PatientS3Downloader(self.give_up_after_s)  # which the dataset has set by now
        filename = self._index_file(world)
        with open(filename, "rb") as file:
            entries, recordings = decode_index(file.read(), filename)
        shards = [reader_from_json(self.local, self.split, entry) for entry in entries]
        self.table = build_chunk_table([s.samples for s in shards], recordings, self.num_timesteps)
        if not len(self.table.chunk_slot):
            raise ValueError(f"{filename}: {len(recordings)} recordings, none of them gives a chunk to train on")
        for shard, num_chunks in zip(shards, self.table.chunks_per_shard.tolist(), strict=True):
            shard.validate(allow_unsafe_types)
            shard.samples = num_chunks
        return shards

    def _index_file(self, world: World) -> str:
        basename = get_index_basename()
        filename = os.path.join(self.local, self.split, basename)
        if os.path.exists(filename):
            return filename
        if not self.remote:
            raise ValueError(f"{filename}: no such file; expected a folder written by `p2p-convert RAW OUT`")
        if world.is_local_leader:
            temporary = filename + ".tmp"
            if os.path.exists(temporary):  # of a process that was killed
                os.remove(temporary)
            self._download_file(basename, basename + ".tmp")
            os.rename(temporary, filename)
        else:
            wait_for_file_to_exist(filename, TICK, self.give_up_after_s + self.download_timeout, f"{filename}: ")
        return filename

    def prepare_shard(self, shard: Reader) -> int:
        """Download and unpack what is missing and verify it; returns the change of the cache in bytes.

        Raises:
            ShardError: when it cannot be had whole.
        """
        ((raw, packed),) = shard.file_pairs
        filename = os.path.join(self.local, self.split, raw.basename)
        try:
            return self._prepare_verified(shard, raw, packed, filename)
        except ShardError:
            raise
        except OSError as error:
            raise ShardError(f"shard {filename}: {error.strerror or error}{self._advice(error)}") from error

    def _prepare_verified(self, shard: Reader, raw: FileInfo, packed: FileInfo | None, filename: str) -> int:
        delta = 0
        for attempt in (1, 2):
            try:
                delta += cast(int, super().prepare_shard(shard))
                fault = damage(filename, raw)
            except ShardError:
                raise
            except ValueError as error:  # what zstd says of a damaged file
                fault = str(error)
            except Exception as error:
                if isinstance(error, OSError):
                    raise
                fault = f"{type(error).__name__}: {error}"
            if not fault:
                return delta
            if self.remote is None or attempt == 2:
                raise ShardError(f"shard {filename}: {fault}; {self._advice(None)}")
            logger.warning("shard %s: %s; downloading it again", filename, fault)
            delta -= shard.evict()
        raise AssertionError("unreachable")

    def _advice(self, error: OSError | None) -> str:
        if error is not None:
            return "; free some space, or set cache_limit" if error.errno == 28 else ""
        if self.remote is None:
            return "restore the file from a copy, or convert the recordings again"
        return f"the copy in {self.remote} is damaged too: convert the recordings again"

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        local = os.path.join(self.local, self.split, to_basename or from_basename)
        if self.remote is None:
            raise ShardError(
                f"shard {local}: no such file, but the index lists it; "
                "restore it from a copy, or convert the recordings again"
            )
        remote = os.path.join(self.remote, self.split, from_basename)
        self._retry(lambda: self._downloader.download(remote, local, self.download_timeout), remote)
        return local

    def _retry(self, download: Callable[[], None], remote: str) -> None:
        """Try until it succeeds, fails for good, or `give_up_after_s` is over; a client of S3 may use it up alone."""
        deadline = time.monotonic() + self.give_up_after_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return download()
            except Exception as error:
                self._downloader.clean_up()
                if isinstance(error, OSError) and error.errno == 28:
                    raise
                if _is_permanent(error) or time.monotonic() + pause_s > deadline:
                    raise ShardError(
                        f"{remote}: cannot be downloaded: {type(error).__name__}: {error}; "
                        "check the address, the credentials and the store, then start again"
                    ) from error
                logger.warning("%s: %s: %s; trying again in %g s", remote, type(error).__name__, error, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_permanent(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | PermissionError | ImportError | StorageError) or is_refusal(error)


def damage(filename: str, expected: FileInfo) -> str:
    """What is wrong with a file, by its size and every hash of the index; "" when it is whole.

    Raises:
        OSError: when it cannot be read.
    """
    with open(filename, "rb") as file:
        content = file.read()
    if len(content) != expected.bytes:
        return f"{len(content)} bytes, the index says {expected.bytes}"
    for algorithm, digest in expected.hashes.items():
        if get_hash(algorithm, content) != digest:
            return f"its {algorithm} is not the one in the index"
    return ""
