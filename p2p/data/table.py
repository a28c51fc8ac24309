"""Which chunks a stream gives, and which stored samples hold them; arrays of some bytes a recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.data.chunks import count_kept
from p2p.format import RecordingEntry, Recordings


@dataclass(frozen=True)
class SegmentPlace:
    """Where segment `index` of a recording is stored, and the frames of the recording that it holds."""

    shard: int
    sample: int
    index: int
    first_frame: int
    num_frames: int


class ChunkTable:
    """The chunks of a stream at phase 0, by recording (in the order of the ids) and time.

    num_chunks int64 [n] counts those of each recording, shards int64 [n] names the shard in which each begins;
    first_samples int64 [num_shards + 1] counts stored samples before each shard.
    """

    def __init__(self, recordings: Recordings, samples_per_shard: NDArray[np.int64], num_timesteps: int) -> None:
        self.recordings = recordings.by_id()
        self.first_samples = np.concatenate([[0], np.cumsum(samples_per_shard, dtype=np.int64)])
        self.num_chunks = count_kept(self.recordings.num_frames, num_timesteps, self.recordings.system_runs)
        self.ends = np.cumsum(self.num_chunks)
        self.shards = np.searchsorted(self.first_samples, self.recordings.first_sample, side="right") - 1

    @property
    def total(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, chunk: int) -> tuple[int, int]:
        """(recording, slot) of a chunk."""
        number = int(np.searchsorted(self.ends, chunk, side="right"))
        return number, chunk - int(self.ends[number] - self.num_chunks[number])

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
