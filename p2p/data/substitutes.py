"""Which chunk stands in for one whose packets do not decode, and how many may be replaced so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from p2p.data.chunks import epoch_generator, kept_starts
from p2p.data.errors import ShardError
from p2p.format import RecordingEntry

OF_THE_SAME, OF_OTHERS = 4, 4  # how many are tried
ALLOWED_SHARE = 0.001  # of the chunks so far
ALLOWED_AT_LEAST = 8  # at first, when one is a large share
_LISTED = 50


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


class ReplacedCount:
    """How many chunks were replaced so far, and the recordings that they were of."""

    def __init__(self) -> None:
        self.count = 0
        self.recordings: set[str] = set()

    def add(self, names: Iterable[str], so_far: int) -> None:
        """Count the recordings of replaced chunks ("" counts nothing), of `so_far` chunks altogether.

        Raises:
            ShardError: when more than ALLOWED_SHARE of the chunks so far were replaced; it lists their recordings.
        """
        found = [name for name in names if name]
        self.count += len(found)
        self.recordings.update(found)
        if found and self.count > max(ALLOWED_AT_LEAST, ALLOWED_SHARE * so_far):
            raise ShardError(
                f"{self.summary(so_far)}, more than {ALLOWED_SHARE:.1%}: these recordings are damaged; "
                "find out with p2p-convert verify --decode, and convert them again"
            )

    def summary(self, so_far: int | None = None) -> str:
        """The count, of how many where that is given, and the recordings, in words."""
        names = sorted(self.recordings)
        listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        share = "" if so_far is None else f" of {so_far}"
        return f"{self.count}{share} chunks did not decode and were replaced by others (recordings: {listed})"
