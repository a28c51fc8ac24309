"""Which chunk stands in for one whose packets do not decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from p2p.data.chunks import epoch_generator, kept_starts
from p2p.format import RecordingEntry

OF_THE_SAME, OF_OTHERS = 4, 4  # how many are tried


def substitutes(
    recording: RecordingEntry, start: int, others: Sequence[RecordingEntry], num_timesteps: int, seed: int, epoch: int
) -> Iterator[tuple[RecordingEntry, int]]:
    """(recording, start) of the chunks to try, one after another: of the same recording, then of others.

    The order hangs on (seed, epoch, recording, start) alone, so a run that is resumed repeats it.
    """
    generator = epoch_generator(seed, epoch, f"{recording.id}@{start}")
    own = kept_starts(recording.num_frames, num_timesteps, recording.system_runs)
    own = generator.permutation(own[abs(own - start) >= num_timesteps])
    yield from ((recording, int(other)) for other in own[:OF_THE_SAME])
    tried = generator.choice(len(others), min(len(others), 1 + OF_OTHERS), replace=False)
    for other in (others[number] for number in tried.tolist()):
        starts = kept_starts(other.num_frames, num_timesteps, other.system_runs)
        if other.id != recording.id and len(starts):
            yield other, int(generator.choice(starts))
