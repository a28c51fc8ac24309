"""The recordings of a stream as its index lists them: a table in arrays, which costs some hundred bytes a recording."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RecordingEntry:
    """What the index says about one recording.

    first_sample is the number, in the whole stream, of the sample that holds segment 0; the other segments
    follow it. system_runs are half-open ranges of rows [begin, end) whose action is the system's.
    """

    id: str
    game: str
    num_frames: int
    first_sample: int
    segment_frames: tuple[int, ...]
    system_runs: tuple[tuple[int, int], ...]
    num_user: int
    num_system: int

    def __post_init__(self) -> None:
        if sum(self.segment_frames) != self.num_frames:
            raise ValueError(
                f"recording {self.id}: segments hold {sum(self.segment_frames)} frames, not {self.num_frames}"
            )


FIELDS = tuple(RecordingEntry.__dataclass_fields__)


def entry_from_json(values: Mapping[str, Any]) -> RecordingEntry:
    """The entry with these fields as JSON gives them back: lists for tuples."""
    runs = tuple((int(begin), int(end)) for begin, end in values["system_runs"])
    return RecordingEntry(**{**values, "segment_frames": tuple(values["segment_frames"]), "system_runs": runs})


class Lists:
    """A list of values [k, ...] for each of n recordings; all values stand in one array."""

    def __init__(self, values: NDArray[Any], counts: NDArray[np.int64]) -> None:
        self.values, self.counts = values, counts
        self.ends = np.cumsum(counts)

    def __getitem__(self, number: int) -> NDArray[Any]:
        end = int(self.ends[number])
        return self.values[end - int(self.counts[number]) : end]

    def take(self, order: NDArray[np.int64]) -> Lists:
        """The lists in another order."""
        counts = self.counts[order]
        begins = np.repeat((self.ends - self.counts)[order] - (np.cumsum(counts) - counts), counts)
        return Lists(self.values[begins + np.arange(len(begins))], counts)


def texts(strings: Iterable[str]) -> Lists:
    """Texts as lists of bytes; str(lists[i], "utf-8") gives one back."""
    encoded = [string.encode() for string in strings]
    return Lists(np.frombuffer(b"".join(encoded), np.uint8), np.array([len(each) for each in encoded], np.int64))


class Recordings(Sequence[RecordingEntry]):
    """The table; an entry is made when it is asked for.

    num_frames, num_user, num_system int32 [n], first_sample int64 [n]; segment_frames int32 and system_runs int32
    [k, 2] of each recording; ids and games as `texts`.
    """

    def __init__(self, numbers: Mapping[str, NDArray[Any]], lists: Mapping[str, Lists]) -> None:
        self._numbers, self._lists = numbers, lists
        self.num_frames, self.first_sample = numbers["num_frames"], numbers["first_sample"]
        self.num_user, self.num_system = numbers["num_user"], numbers["num_system"]
        self.segment_frames, self.system_runs = lists["segment_frames"], lists["system_runs"]

    def __len__(self) -> int:
        return len(self.num_frames)

    @overload
    def __getitem__(self, number: int) -> RecordingEntry: ...
    @overload
    def __getitem__(self, number: slice) -> list[RecordingEntry]: ...
    def __getitem__(self, number: int | slice) -> RecordingEntry | list[RecordingEntry]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        runs = self.system_runs[number].tolist()
        return RecordingEntry(
            id=self.id(number),
            game=bytes(self._lists["game"][number]).decode(),
            segment_frames=tuple(self.segment_frames[number].tolist()),
            system_runs=tuple((begin, end) for begin, end in runs),
            **{name: int(values[number]) for name, values in self._numbers.items()},
        )

    def id(self, number: int) -> str:
        return bytes(self._lists["id"][number]).decode()

    def ids(self) -> Iterator[str]:
        return (self.id(number) for number in range(len(self)))

    def by_id(self) -> Recordings:
        """The same table in the order of the ids."""
        ids = list(self.ids())
        order = np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int64)
        return Recordings(
            {name: values[order] for name, values in self._numbers.items()},
            {name: each.take(order) for name, each in self._lists.items()},
        )
