"""The shards of a stream as its index lists them, in arrays: an entry is made when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np

from p2p.format.recordings import Lists, texts


class Shards(Sequence[dict[str, Any]]):
    """Entries as `shard_entry` makes them; what most shards have in common is kept once."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        kinds: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
        files: dict[str, list[str]] = {"raw_data": [], "zip_data": []}
        numbers = []
        for entry in entries:
            own = {"samples", *files}
            common = (entry["compression"], *entry["hashes"], id(entry["column_names"]))
            if common not in kinds:
                kinds[common] = len(kinds), {name: value for name, value in entry.items() if name not in own}
            numbers.append((kinds[common][0], entry["samples"]))
            for name, described in files.items():
                described.append(json.dumps(entry[name], separators=(",", ":")))
        self._common = [common for _, common in kinds.values()]
        self._kinds, self.samples = np.array(numbers, np.int64).reshape(-1, 2).T.copy()
        self._files: dict[str, Lists] = {name: texts(described) for name, described in files.items()}

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        files = {name: json.loads(bytes(described[number])) for name, described in self._files.items()}
        return {**self._common[self._kinds[number]], **files, "samples": int(self.samples[number])}
