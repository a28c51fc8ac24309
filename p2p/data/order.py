"""The order of an epoch: which chunk stands where, a function of (seed, epoch) and of the size of an update.

The recordings of an epoch, shuffled, are one long walk from chunk to chunk. It is cut into lanes of equal length, and
the lanes play side by side: a round takes one chunk of each. Batch b of G chunks takes G lanes that lie far apart in
the walk, and LANES_PER_CHUNK batches make up a round. So successive chunks of a recording stand in batches b, b + 24,
b + 48 ..., in the same place of the batch: with a number of workers that divides 24 they go to the same worker, whose
decoder only ever moves forward, and a batch holds no recording twice unless there are fewer than about G of them.
Each lane begins at a place of its own and turns round at its end: with recordings of one length all lanes would
otherwise show beginnings first and ends last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDER = 2  # what checkpoints say of the order that they are in; 1, or nothing, was Streaming's
LANES_PER_CHUNK = 24  # its divisors are the usual numbers of workers
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Walk:
    """Recordings as they follow each other, counts[i] chunks from slot first_slots[i] on; int64 [n] each."""

    recordings: Integers
    counts: Integers
    first_slots: Integers


def make_walk(counts: Integers, shards: Integers, choose: int, generator: np.random.Generator | None) -> Walk:
    """A walk through `choose` chunks of a stream's recordings, which have counts[i] chunks and begin in shards[i].

    With a generator, shards come in random order, and so do the recordings in each; without, recordings in theirs.
    Where more chunks are asked for than there are, recordings come again; of fewer, some are left out.
    """
    if not choose:
        return Walk(*np.zeros((3, 0), np.int64))
    total = int(counts.sum())
    rounds, rest = divmod(choose, total)
    walks = [_shuffled(counts, shards, generator) for _ in range(rounds + (rest > 0))]
    recordings = np.concatenate(walks)
    chosen = counts[recordings]
    ends = np.cumsum(chosen)
    recordings = recordings[: int(np.searchsorted(ends, choose)) + 1]
    chosen = chosen[: len(recordings)].copy()
    first_slots = np.zeros_like(chosen)
    left_out = int(chosen.sum()) - choose
    chosen[-1] -= left_out
    if generator is not None:
        first_slots[-1] = generator.integers(0, left_out, endpoint=True)
    return Walk(recordings, chosen, first_slots)


def _shuffled(counts: Integers, shards: Integers, generator: np.random.Generator | None) -> Integers:
    """Numbers of the recordings that have chunks."""
    if generator is None:
        order = np.arange(len(counts))
    else:
        shard_turn = generator.permutation(int(shards.max()) + 1)
        order = np.lexsort((generator.permutation(len(counts)), shard_turn[shards]))
    return order[counts[order] > 0]


def join_walks(walks: Sequence[Walk], first_recordings: Sequence[int]) -> Walk:
    """One walk after another; the recordings of walk i are numbered from first_recordings[i] on."""
    numbers = [walk.recordings + first for walk, first in zip(walks, first_recordings, strict=True)]
    return Walk(
        np.concatenate(numbers),
        np.concatenate([walk.counts for walk in walks]),
        np.concatenate([walk.first_slots for walk in walks]),
    )


class Order:
    """The places 0 .. N - 1 of an epoch; batch b of G chunks has the places b G .. b G + G - 1.

    Without a generator the order is the walk's, in one lane.
    """

    def __init__(self, walk: Walk, global_batch: int, generator: np.random.Generator | None) -> None:
        self.walk = walk
        self._ends = np.cumsum(walk.counts)
        self.num_chunks = int(self._ends[-1])
        lanes_per_chunk = 1 if generator is None else LANES_PER_CHUNK
        per_batch = 1 if generator is None else global_batch
        self.num_lanes = lanes_per_chunk * per_batch
        self._per_batch = per_batch
        if generator is None:
            self._lanes, turns = np.zeros(1, np.int64), np.zeros(1)
        else:
            turn = generator.permutation(lanes_per_chunk)
            # Of place p in a round: its lane. Places of one batch lie a whole LANES_PER_CHUNK apart.
            batch, row = np.divmod(np.arange(self.num_lanes), per_batch)
            self._lanes = row * lanes_per_chunk + turn[batch]
            turns = generator.random(self.num_lanes)
        rounds, rest = divmod(self.num_chunks, self.num_lanes)
        lengths = np.full(self.num_lanes, rounds, np.int64)
        lengths[self._lanes[:rest]] += 1
        self._lengths, self._begins = lengths, np.cumsum(lengths) - lengths
        self._turns = (turns * lengths).astype(np.int64)

    def find(self, place: int) -> tuple[int, int, int]:
        """(lane, recording, slot) of a place."""
        played, number = divmod(place, self.num_lanes)
        lane = int(self._lanes[number])
        step = int(self._begins[lane] + (played + self._turns[lane]) % self._lengths[lane])
        run = int(np.searchsorted(self._ends, step, side="right"))
        slot = step - int(self._ends[run] - self.walk.counts[run]) + int(self.walk.first_slots[run])
        return lane, int(self.walk.recordings[run]), slot
