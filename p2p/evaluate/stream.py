"""The recordings that a policy is judged on: a stream's chunks in order, at random, and by game."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from p2p.actions import ActionSpace
from p2p.config import PolicyConfig
from p2p.data.batch import collate
from p2p.data.substitutes import ReplacedCount
from p2p.format import RecordingEntry

if TYPE_CHECKING:
    from p2p.data import GameplayDataset

INDEX_NAME = "index.json"
FRAMES_PER_BATCH = 400


@dataclass
class Stream:
    """Chunks of one stream, by recording and time.

    Chunk i is dataset[ids[i]], a part of the recording chunks[i]; full[i]: it has no padding. games: recording ->
    game. num_timesteps: T. Without ids the order is that of the dataset.
    """

    name: str
    dataset: Any
    space: ActionSpace
    chunks: list[str]
    games: Mapping[str, str]
    full: Sequence[bool]
    num_timesteps: int
    ids: Sequence[int] = ()
    scratch: tempfile.TemporaryDirectory[str] | None = None  # of a remote stream's shards; it goes with the stream
    replaced: ReplacedCount = field(default_factory=ReplacedCount)  # of the batches that were last read
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
            for name, value in self.dataset[self.ids[index] if self.ids else index].items()
        }

    def batches(self, batch_size: int | None = None, num_chunks: int | None = None) -> Iterator[dict[str, Any]]:
        """All chunks in order, or `num_chunks` spread evenly over them, as batches [B, ...].

        The default B is about 400 frames. Chunks that do not decode are replaced by others and counted in `replaced`.

        Raises:
            ShardError: when those are too many (see p2p.data.substitutes).
        """
        self.replaced = ReplacedCount()
        batch_size = batch_size or max(1, FRAMES_PER_BATCH // self.num_timesteps)
        total = len(self.chunks)
        num = total if num_chunks is None else min(num_chunks, total)
        chosen = [index * total // num for index in range(num)]
        for begin in range(0, num, batch_size):
            batch = collate([self.tensors(index) for index in chosen[begin : begin + batch_size]])
            self.replaced.add(batch["replaced"], begin + len(batch["replaced"]))
            yield batch

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


def open_stream(location: str | Path, config: PolicyConfig, size: tuple[int, int] | None = None) -> Stream:
    """The stream at a folder or an s3:// address, cut into chunks of the policy's length.

    `size` is (height, width) of the frames; default: what the policy takes.

    Raises:
        ValueError: when there is no stream.
    """
    text, scratch = str(location), None
    if "://" in text:
        scratch = tempfile.TemporaryDirectory(prefix="p2p-stream-", ignore_cleanup_errors=True)
    elif not (Path(text) / INDEX_NAME).is_file():
        raise ValueError(f"{text}: no {INDEX_NAME}, so this is no stream; {_advice(Path(text))}")
    from p2p.data import GameplayDataset  # it loads a decoder

    cache = scratch.name if scratch is not None else None
    dataset = GameplayDataset.for_policy(config, text, cache=cache, size=size, predownload=8)
    located = sorted((entry.id, start, index, entry) for index, entry, start in _chunks_of(dataset))
    return Stream(
        name=text,
        dataset=dataset,
        space=config.action_space,
        chunks=[recording for recording, *_ in located],
        games={entry.id: entry.game for *_, entry in located},
        num_timesteps=config.num_timesteps,
        full=[start + config.num_timesteps + 1 <= entry.num_frames for _, start, _, entry in located],
        ids=[index for _, _, index, _ in located],
        scratch=scratch,
    )


def _advice(folder: Path) -> str:
    inside = [path.parent.name for path in sorted(folder.glob(f"*/{INDEX_NAME}"))]
    return f"did you mean {folder / inside[-1]}?" if inside else "make one with `p2p-convert RAW OUT`"


def _chunks_of(dataset: GameplayDataset) -> Iterator[tuple[int, RecordingEntry, int]]:
    """(sample id, recording, start) of every chunk."""
    for index in range(dataset.num_samples):
        _, entry, start = dataset.locate(index, 0)
        yield index, entry, start
