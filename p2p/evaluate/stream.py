"""The recordings that a policy is judged on: a stream's chunks in order, at random, and by game."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2p.actions import ActionSpace
from p2p.config import PolicyConfig
from p2p.data.batch import collate
from p2p.data.chunks import kept_starts
from p2p.format import decode_index

INDEX_NAME = "index.json"


@dataclass
class Stream:
    """Chunks of one stream. `chunks[i]` is what `dataset[i]` holds: its recording; `games` says whose game it is."""

    name: str
    dataset: Any
    space: ActionSpace
    chunks: list[str]
    games: Mapping[str, str]
    full: Sequence[bool]
    _of_recording: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.chunks:
            raise ValueError(f"{self.name}: no chunk to evaluate; the recordings hold fewer than 2 frames")
        by_recording: dict[str, list[int]] = defaultdict(list)
        for index, recording in enumerate(self.chunks):
            by_recording[recording].append(index)
        self._of_recording = dict(by_recording)

    def tensors(self, index: int) -> dict[str, Any]:
        """The sample `index`: frames uint8 [T, 3, Y, X], actions [T, A], masks [T], text [T, n, D], names."""
        return {
            name: torch.as_tensor(value) if isinstance(value, (np.ndarray, torch.Tensor)) else value
            for name, value in self.dataset[index].items()
        }

    def batches(self, batch_size: int, num_chunks: int | None = None) -> Iterator[dict[str, Any]]:
        """All chunks in order, or the first `num_chunks`, as batches [B, ...]."""
        total = len(self.chunks) if num_chunks is None else min(num_chunks, len(self.chunks))
        for begin in range(0, total, batch_size):
            yield collate([self.tensors(index) for index in range(begin, min(begin + batch_size, total))])

    def draw_chunks(self, num: int, rng: np.random.Generator) -> list[int]:
        """Chunks without padding (all, when every one has some) of games with at least two recordings.

        Drawn without repeats where there are enough.
        """
        recordings_of = defaultdict(set)
        for recording in self._of_recording:
            recordings_of[self.games.get(recording, "")].add(recording)
        usable = [i for i, name in enumerate(self.chunks) if len(recordings_of[self.games.get(name, "")]) > 1]
        if not usable:
            raise ValueError(
                f"{self.name}: no game with two recordings, so there are no frames of another recording to put in; "
                "give a stream with more recordings"
            )
        usable = [i for i in usable if self.full[i]] or usable
        return [int(i) for i in rng.choice(usable, size=num, replace=num > len(usable))]

    def draw_donors(self, index: int, num: int, rng: np.random.Generator) -> list[int]:
        """Chunks of other recordings of the same game."""
        game, own = self.games.get(self.chunks[index], ""), self.chunks[index]
        others = [r for r in self._of_recording if r != own and self.games.get(r, "") == game]
        drawn = rng.choice(len(others), size=min(num, len(others)), replace=False)
        return [int(rng.choice(self._of_recording[others[i]])) for i in drawn]


def open_stream(location: str | Path, config: PolicyConfig) -> Stream:
    """The stream at a folder or an s3:// address, cut into chunks of the policy's length.

    Raises:
        ValueError: when there is no stream.
    """
    from p2p.data import GameplayDataset

    text = str(location)
    if "://" in text:
        remote: str | None = text
        local = Path(tempfile.mkdtemp(prefix="p2p-stream-"))
    else:
        remote, local = None, Path(text)
        if not (local / INDEX_NAME).is_file():
            raise ValueError(f"{local}: no {INDEX_NAME}, so this is no stream; make one with `p2p-convert RAW OUT`")
    num_timesteps = config.num_timesteps
    dataset = GameplayDataset(local=str(local), remote=remote, num_timesteps=num_timesteps, phase=0)
    _, entries = decode_index((local / INDEX_NAME).read_bytes(), str(local / INDEX_NAME))
    chunks, full = [], []
    for entry in entries:
        for start in kept_starts(entry.num_frames, num_timesteps, entry.system_runs):
            chunks.append(entry.id)
            full.append(int(start) + num_timesteps + 1 <= entry.num_frames)
    return Stream(text, dataset, config.action_space, chunks, {e.id: e.game for e in entries}, full)
