"""Which chunks a stream gives, and which stored samples hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.data.chunks import kept_starts
from p2p.format import RecordingEntry

MAX_CHUNKS = 1 << 26  # of a stream: some 3 GB while the table is made


@dataclass(frozen=True)
class SegmentPlace:
    """Where segment `index` of a recording is stored, and the frames of the recording that it holds."""

    shard: int
    sample: int
    index: int
    first_frame: int
    num_frames: int


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

    def segments(self, recording: RecordingEntry, begin: int, end: int) -> list[SegmentPlace]:
        """The segments that hold frames begin .. end - 1."""
        edges = np.cumsum([0, *recording.segment_frames])
        first = int(np.searchsorted(edges, begin, side="right")) - 1
        last = int(np.searchsorted(edges, end, side="left"))
        found = []
        for segment in range(first, last):
            sample = recording.first_sample + segment
            shard = int(np.searchsorted(self.first_samples, sample, side="right")) - 1
            in_shard = sample - int(self.first_samples[shard])
            found.append(SegmentPlace(shard, in_shard, segment, int(edges[segment]), recording.segment_frames[segment]))
        return found


def build_chunk_table(
    samples_per_shard: Sequence[int], recordings: Sequence[RecordingEntry], num_timesteps: int
) -> ChunkTable:
    """The chunks that all recordings give at phase 0.

    Raises:
        ValueError: when they are too many to be listed.
    """
    most = sum(recording.num_frames // num_timesteps + 1 for recording in recordings)
    if most > MAX_CHUNKS:
        raise ValueError(
            f"{most} chunks of {num_timesteps} steps; at most {MAX_CHUNKS} can be listed: divide the recordings "
            "into several streams, or use longer chunks"
        )
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
