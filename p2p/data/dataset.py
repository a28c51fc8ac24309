"""GameplayDataset: chunks of T steps out of shards, for any number of processes and workers.

Each recording gives a fixed number of slots (its chunks at phase 0), and which chunk a slot holds is drawn anew in
every epoch. `p2p.data.order` says in which order the slots come, so a process needs to know nothing of the others but
how many there are: it reads its part of each batch.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from p2p.actions import ActionSpace
from p2p.config import FRAME_SIZE, PolicyConfig
from p2p.data.assemble import ChunkReader, TextOptions
from p2p.data.chunks import epoch_generator, epoch_starts, kept_starts, last_phase
from p2p.data.errors import ShardError
from p2p.data.lanes import Lanes
from p2p.data.order import Order, join_walks, make_walk
from p2p.data.position import Position
from p2p.data.prefetch import Prefetcher
from p2p.data.stream import GameplayStream, given_streams, parse_bytes, share_epoch, temporary_folder
from p2p.data.substitutes import substitutes
from p2p.data.table import SegmentPlace
from p2p.data.video import Undecodable
from p2p.format import RecordingEntry, Segment, decode_segment
from p2p.gate import Refused
from p2p.object_storage import PATIENCE_S

logger = logging.getLogger(__name__)

TEXT_VERSIONS = ("gemini-2.5-flash", "gemini-2.5-flash-thinking-0905", "p2p")
_KNOWN_RECORDINGS = 1 << 9
Starts = NDArray[np.int64]


class GameplayDataset(IterableDataset[dict[str, Any]]):
    """Chunks of recorded gameplay.

    A sample is a dict: frames uint8 [T, 3, Y, X], actions int64 [T, A], user_mask, system_mask, valid_mask
    bool [T], text float32 [T, n_text, D], recording (its id), start (its first frame), replaced ("", or the id of the
    recording whose chunk does not decode, so that this one stands in). `dataset[i]` is the chunk with sample id i: ids
    go by recording and time.

    Args:
        local: folder of a stream (with index.json), or where a remote one is kept.
        remote: address the shards are copied from, such as s3://bucket/prefix.
        streams: several streams instead of one, GameplayStream(local=..., remote=..., proportion=...).
        num_timesteps: T.
        phase: "random" draws where each recording's chunks begin, anew in every epoch; 0 begins at frame 0.
        size: (height, width) of the frames; videos of another size are stretched.
        action_space: how many keys and buttons a row has.
        text_versions: annotators whose instructions count; of several on a frame, the first of these.
        tokenizer, num_text_tokens, text_dim: which embedding, and its shape [n_text, D].
        carry_text: whether an instruction that began before the chunk reaches into it.
        batch_size: samples of a batch of one process, as the DataLoader's.
        shuffle, shuffle_seed: another order in each epoch; without, chunks by recording and time.
        epoch_size: chunks of an epoch; default: all.
        predownload: for how many samples ahead shards are fetched; default: 8 batches.
        cache_limit: bytes, or such as "500gb", that the copy of a stream may take on the disk.
        give_up_after_s: how long a failing store is asked again before a ShardError.

    Raises:
        ValueError: for a missing, damaged or newer index; ShardError (a ValueError) while iterating, for a
            shard that is missing, damaged or out of reach.
    """

    def __init__(
        self,
        *,
        local: str | None = None,
        remote: str | None = None,
        streams: Sequence[GameplayStream] | None = None,
        num_timesteps: int = 200,
        phase: str | int = "random",
        size: tuple[int, int] = (FRAME_SIZE, FRAME_SIZE),
        action_space: ActionSpace | None = None,
        text_versions: Sequence[str] = TEXT_VERSIONS,
        tokenizer: str = "gemma",
        num_text_tokens: int = 1,
        text_dim: int = 768,
        carry_text: bool = False,
        batch_size: int = 1,
        shuffle: bool = False,
        shuffle_seed: int = 0,
        epoch_size: int | None = None,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        give_up_after_s: float = PATIENCE_S,
    ) -> None:
        if num_timesteps < 1 or batch_size < 1:
            raise ValueError(f"num_timesteps is {num_timesteps}, batch_size {batch_size}; write 1 or more")
        if phase not in ("random", 0):
            raise ValueError(f'phase is {phase!r}; write "random" (training) or 0 (validation)')
        self.streams, limit = given_streams(local, remote, streams), parse_bytes(cache_limit)
        if limit and not all(stream.is_copy for stream in self.streams):
            raise ValueError("cache_limit with a stream that has no remote would delete its only shards; leave it out")
        self.num_timesteps, self.phase = num_timesteps, phase
        self.batch_size, self.shuffle, self.shuffle_seed = batch_size, shuffle, shuffle_seed
        self.predownload = 8 * batch_size if predownload is None else predownload
        text = TextOptions(tuple(text_versions), tokenizer, num_text_tokens, text_dim, carry_text)
        self._chunks = ChunkReader(num_timesteps, size, action_space or ActionSpace(), text)
        for stream in self.streams:
            stream.open(num_timesteps, limit, give_up_after_s)
        totals = [stream.table.total for stream in self.streams]
        self.num_samples = sum(totals)
        self._first_chunks = np.cumsum([0, *totals])
        self._first_recordings = np.cumsum([0, *(len(stream.table.recordings) for stream in self.streams)])
        self._chosen = share_epoch(self.streams, totals, epoch_size)
        self.epoch_size = sum(self._chosen)
        self._rank, self._num_ranks = _rank()
        self._position = Position()
        self._enter_process()

    @classmethod
    def for_policy(
        cls,
        config: PolicyConfig,
        place: str | Path,
        *,
        cache: str | Path | None = None,
        phase: str | int = 0,
        size: tuple[int, int] | None = None,
        **others: Any,
    ) -> GameplayDataset:
        """Chunks as a policy reads them: as long, frames as large, actions and instructions as it knows them.

        Args:
            place: a folder that holds index.json, or its address, such as s3://bucket/prefix.
            cache: folder that keeps what comes from an address; default: one that goes with this process.
            phase: 0: chunks begin at frame 0 of a recording, one after another; "random" for training.
            size: (height, width) of the frames, where they are to be others than the policy's.
            others: as of the class, such as shuffle=True and batch_size.

        Raises:
            ValueError: when there is no index, or it is damaged or newer.
        """
        remote = str(place) if "://" in str(place) else None
        return cls(
            local=str(place if remote is None else cache or temporary_folder()),
            remote=remote,
            num_timesteps=config.num_timesteps,
            phase=phase,
            size=size or (config.frame_height, config.frame_width),
            action_space=config.action_space,
            tokenizer=config.text_embedder,
            num_text_tokens=config.num_text_tokens,
            text_dim=config.text_dim,
            carry_text=config.carry_text,
            **others,
        )

    def _enter_process(self) -> None:
        """Decoders, threads and what was looked up stay in the process that made them.

        What a worker inherited is kept, never used: to free a decoder that belongs to its parent would be to touch it.
        """
        self._inherited = self.__dict__.get("_lanes")
        self._process = os.getpid()
        self._lanes = Lanes(self._chunks, self._read_segment)
        self._starts_of = lru_cache(_KNOWN_RECORDINGS)(self._draw_starts)
        self._prefetcher: Prefetcher | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_inherited", "_lanes", "_starts_of", "_prefetcher")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enter_process()

    # ------------------------------------------------------------------ which chunk

    def __len__(self) -> int:
        """Samples of an epoch for one process."""
        return -(-self.epoch_size // self._num_ranks)

    def locate(self, sample_id: int, epoch: int) -> tuple[int, RecordingEntry, int]:
        """(stream, recording, start) of the chunk that a sample id stands for in an epoch."""
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"no chunk {sample_id}; there are {self.num_samples}")
        stream = int(np.searchsorted(self._first_chunks, sample_id, side="right")) - 1
        number, slot = self.streams[stream].table.find(sample_id - int(self._first_chunks[stream]))
        return self._locate(int(self._first_recordings[stream]) + number, slot, epoch)

    def _locate(self, number: int, slot: int, epoch: int) -> tuple[int, RecordingEntry, int]:
        stream, recording, starts = self._starts_of(number, epoch)
        return stream, recording, int(starts[slot])

    def _draw_starts(self, number: int, epoch: int) -> tuple[int, RecordingEntry, Starts]:
        """(stream, recording, starts of its chunks in an epoch) of a recording by its number in all streams."""
        stream = int(np.searchsorted(self._first_recordings, number, side="right")) - 1
        recording = self.streams[stream].table.recordings[number - int(self._first_recordings[stream])]
        n, T = recording.num_frames, self.num_timesteps
        if self.phase == 0:
            return stream, recording, kept_starts(n, T, recording.system_runs)
        generator = epoch_generator(self.shuffle_seed, epoch, recording.id)
        phase = int(generator.integers(0, last_phase(n, T), endpoint=True))
        return stream, recording, epoch_starts(n, T, recording.system_runs, phase, generator)

    def order(self, epoch: int) -> Order:
        """The order of all chunks of an epoch, for all processes together."""
        generator = np.random.default_rng([self.shuffle_seed, epoch]) if self.shuffle else None
        walks = [
            make_walk(stream.table.num_chunks, stream.table.shards, choose, generator)
            for stream, choose in zip(self.streams, self._chosen, strict=True)
        ]
        walk = join_walks(walks, self._first_recordings[:-1].tolist())
        return Order(walk, self.batch_size * self._num_ranks, generator)

    def _places(self, offset: int, worker: int, num_workers: int) -> Iterator[int]:
        """Places of the epoch that one worker of this process reads, of those from `offset` on.

        Batches go round the workers; each process reads its part of each. The last one may be smaller, and where the
        processes cannot share it equally, the first chunks of the epoch fill it up.
        """
        B, all_B = self.batch_size, self.batch_size * self._num_ranks
        whole, rest = divmod(max(0, self.epoch_size - offset), all_B)
        for batch in range(worker, whole + (rest > 0), num_workers):
            share = B if batch < whole else -(-rest // self._num_ranks)
            begin = offset + batch * all_B + self._rank * share
            yield from (place % self.epoch_size for place in range(begin, begin + share))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The chunks of this worker's part of the next epoch, or of the rest of one that is resumed.

        Raises:
            ShardError: for a shard that cannot be had.
        """
        self._enter_process()
        epoch, offset = self._position.begin()
        info = get_worker_info()
        order, places = self.order(epoch), self._places(offset, info.id if info else 0, info.num_workers if info else 1)
        is_copy = any(stream.is_copy for stream in self.streams)
        waits = [stream.shards.longest_wait_s for stream in self.streams]
        prefetcher = self._prefetcher = Prefetcher(self._prepare, 2 * max(waits)) if is_copy else None
        ahead: deque[tuple[int, int, RecordingEntry, int]] = deque()
        try:
            for lane, number, slot in map(order.find, places):
                stream, recording, start = self._locate(number, slot, epoch)
                ahead.append((lane, stream, recording, start))
                if prefetcher is not None:
                    for place in self._segments_of(stream, recording, start):
                        prefetcher.ask(stream, place.shard)
                    if len(ahead) <= self.predownload:
                        continue
                yield self._sample(*ahead.popleft(), epoch)
            while ahead:
                yield self._sample(*ahead.popleft(), epoch)
        finally:
            if prefetcher is not None:
                prefetcher.close()

    # ------------------------------------------------------------------ where a run is

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the epoch is, after `num_samples` chunks of all processes: of the whole epoch `from_beginning`, or
        since it was resumed. As Composer and StreamingDataLoader ask for it.

        The names are Streaming's, because a checkpoint is read into the names that it has. num_canonical_nodes 0 is
        this order; older checkpoints have 1 or more.
        """
        epoch, offset = self._position.position()
        return {
            "epoch": epoch,
            "sample_in_epoch": num_samples if from_beginning else offset + num_samples,
            "num_canonical_nodes": 0,
            "shuffle_seed": self.shuffle_seed,
            "initial_physical_nodes": self.batch_size * self._num_ranks,
        }

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Have the next epoch go on from a state.

        Raises:
            ValueError: when it is the state of another order.
        """
        if obj.get("sample_in_epoch") and self.shuffle:
            if obj.get("num_canonical_nodes") != 0:
                raise ValueError(
                    "the position in the data is that of an older version, whose order of chunks this one does not "
                    "have; begin the next epoch (a run does with resume_changed=true), or finish with that version"
                )
            made_for = obj.get("initial_physical_nodes")
            if made_for != self.batch_size * self._num_ranks:
                raise ValueError(
                    f"the position in the data is in an order of {made_for} chunks an update, and here "
                    f"{self._num_ranks} processes load {self.batch_size} each; load as many, or begin an epoch"
                )
        self.shuffle_seed = int(obj.get("shuffle_seed", self.shuffle_seed))
        self._position.resume(obj)

    # ------------------------------------------------------------------ its content

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        """The chunk of a sample id in the epoch that is being iterated (the first, before any iteration).

        Raises:
            ShardError: when a shard that it needs is missing, damaged or out of reach.
        """
        if self._process != os.getpid():
            self._enter_process()
        epoch = max(0, self._position.position()[0])
        return self._sample(None, *self.locate(int(sample_id), epoch), epoch)

    def _sample(
        self, lane: int | None, stream: int, recording: RecordingEntry, start: int, epoch: int
    ) -> dict[str, Any]:
        """A chunk; where its packets do not decode, another stands in, and `replaced` names the recording."""
        try:
            return {**self._read_chunk(lane, stream, recording, start), "replaced": ""}
        except Undecodable as error:
            return {**self._read_substitute(stream, recording, start, epoch, error), "replaced": recording.id}

    def _read_substitute(
        self, stream: int, recording: RecordingEntry, start: int, epoch: int, error: Undecodable
    ) -> dict[str, Any]:
        others = self.streams[stream].table.recordings
        epoch = epoch if self.phase == "random" else 0
        for other, at in substitutes(recording, start, others, self.num_timesteps, self.shuffle_seed, epoch):
            try:
                sample = self._read_chunk(None, stream, other, at)
            except Undecodable:
                continue
            logger.warning("%s: chunk at %d replaced by %s at %d", error, start, other.id, at)
            return sample
        raise ShardError(f"{error}, and neither do other chunks; run p2p-convert verify --decode") from error

    def _segments_of(self, stream: int, recording: RecordingEntry, start: int) -> list[SegmentPlace]:
        end = min(start + self.num_timesteps, recording.num_frames)
        return self.streams[stream].table.segments(recording, start, end)

    def _read_chunk(self, lane: int | None, stream: int, recording: RecordingEntry, start: int) -> dict[str, Any]:
        places = self._segments_of(stream, recording, start)
        where = f"shard {self.streams[stream].shards.path(places[0].shard)}"
        try:
            return self._lanes.read(lane, stream, recording, start, places)
        except Undecodable as error:
            raise Undecodable(f"{where}: {error}") from error
        except ShardError:
            raise
        except ValueError as error:
            raise ShardError(f"{where}: {error}") from error

    def _prepare(self, stream: int, shard: int) -> None:
        self.streams[stream].shards.prepare(shard)

    def _read_segment(self, stream: int, recording: RecordingEntry, place: SegmentPlace) -> Segment:
        """A segment, checked, and found to be the one that the index promises."""
        shards = self.streams[stream].shards
        if self._prefetcher is not None:
            self._prefetcher.wait(stream, place.shard)
        where = f"shard {shards.path(place.shard)}, sample {place.sample}"
        try:
            content = shards.sample(place.shard, place.sample)
            segment = decode_segment(content, layout=shards.shard(place.shard).layout, where=where)
        except Refused as error:
            raise ShardError(f"{error}; convert the recordings again") from error
        found = (segment.recording, segment.index, segment.first_frame, segment.num_frames)
        promised = (recording.id, place.index, place.first_frame, place.num_frames)
        if found != promised:
            raise ShardError(
                f"{where}: (recording, segment, first frame, frames) are {found}, the index says {promised}; "
                "convert the recordings again"
            )
        return segment


def _rank() -> tuple[int, int]:
    """(rank, number of processes)."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
