"""GameplayDataset: chunks of T steps out of shards, as a StreamingDataset.

Streaming's samples are *slots* here, not stored samples: each recording gives a fixed number of slots (its
chunks at phase 0), and which chunk a slot holds is drawn anew in every epoch. So Streaming's own partition,
shuffle, resumption and elasticity work on chunks, and the shards need not know T.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming import StreamingDataset
from streaming.base.constant import TICK
from streaming.base.dataset import _Iterator, _ShardState
from streaming.base.sampling import get_sampling

from p2p.actions import ActionSpace
from p2p.config import FRAME_SIZE, PolicyConfig
from p2p.data.assemble import ChunkReader, TextOptions
from p2p.data.chunks import epoch_generator, epoch_starts, kept_starts, last_phase
from p2p.data.shared_memory import remove_stale_shared_memory, taking_turns
from p2p.data.stream import GameplayStream, ShardError
from p2p.data.substitutes import substitutes
from p2p.data.table import SegmentPlace
from p2p.data.video import Undecodable
from p2p.format import RecordingEntry, Segment, decode_segment
from p2p.gate import Refused

logger = logging.getLogger(__name__)

TEXT_VERSIONS = ("gemini-2.5-flash", "gemini-2.5-flash-thinking-0905", "p2p")
_SEGMENTS_KEPT = 4  # the latest segments that were read, for chunks that lie side by side
_SLACK_S = 60.0


class GameplayDataset(StreamingDataset):
    """Chunks of recorded gameplay.

    A sample is a dict: frames uint8 [T, 3, Y, X], actions int64 [T, A], user_mask, system_mask, valid_mask
    bool [T], text float32 [T, n_text, D], recording (its id), start (its first frame), replaced ("", or the id of the
    recording whose chunk does not decode, so that this one stands in).

    Args:
        local: folder of a stream (with index.json), or where a remote one is kept.
        remote: address the shards are downloaded from, such as s3://bucket/prefix.
        streams: several streams instead of one, GameplayStream(local=..., remote=..., proportion=...).
        num_timesteps: T.
        phase: "random" draws where each recording's chunks begin, anew in every epoch; 0 begins at frame 0.
        size: (height, width) of the frames; videos of another size are stretched.
        action_space: how many keys and buttons a row has.
        text_versions: annotators whose instructions count; of several on a frame, the first of these.
        tokenizer, num_text_tokens, text_dim: which embedding, and its shape [n_text, D].
        carry_text: whether an instruction that began before the chunk reaches into it.
        batch_size: samples of a batch of one process, as the DataLoader's.
        give_up_after_s: how long a failing store is asked again before a ShardError.
        others: of StreamingDataset, such as shuffle, shuffle_seed, cache_limit, predownload.

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
        give_up_after_s: float = 120.0,
        **others: Any,
    ) -> None:
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps is {num_timesteps}; write 1 or more")
        if phase not in ("random", 0):
            raise ValueError(f'phase is {phase!r}; write "random" (training) or 0 (validation)')
        streams = _streams(local, remote, streams)
        if others.get("cache_limit") and not all(stream.is_copy for stream in streams):
            raise ValueError("cache_limit with a stream that has no remote would delete its only shards; leave it out")
        for stream in streams:
            stream.num_timesteps, stream.give_up_after_s = num_timesteps, give_up_after_s
        self.num_timesteps = num_timesteps
        self.phase = phase
        self.give_up_after_s = give_up_after_s
        text = TextOptions(tuple(text_versions), tokenizer, num_text_tokens, text_dim, carry_text)
        self._chunks = ChunkReader(num_timesteps, size, action_space or ActionSpace(), text)
        self._epoch = 0
        self._process = os.getpid()
        self._failure: BaseException | None = None
        self._segments: OrderedDict[tuple[int, int], Segment] = OrderedDict()
        with taking_turns(self._longest_wait_s):
            remove_stale_shared_memory()
            super().__init__(streams=list(streams), batch_size=batch_size, **others)
        self._order = self._recording_order()
        if self._unique_rank_world.is_local_leader:
            # Streaming trusts what lies in the folder. Nothing counts as present before it was verified.
            for shard_id in range(self.num_shards):
                self._shard_states[shard_id] = _ShardState.REMOTE

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
            local=str(place if remote is None else cache or _temporary_folder()),
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

    def _recording_order(self) -> NDArray[np.int64]:
        """Rank of each sample id when recordings go by id and chunks by time."""
        tables = [stream.table for stream in self.streams]
        recording = np.concatenate([table.chunk_recording for table in tables])
        slot = np.concatenate([table.chunk_slot for table in tables])
        stream = np.repeat(np.arange(len(tables)), [len(table.chunk_slot) for table in tables])
        rank = np.empty(len(slot), np.int64)
        rank[np.lexsort((slot, recording, stream))] = np.arange(len(slot))
        return rank

    # ------------------------------------------------------------------ which chunk

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        self._epoch = epoch
        return super()._get_work(epoch, sample_in_epoch)

    def resample_streams(self, epoch: int, stream_id: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As StreamingDataset's, for shards in which no chunk begins too; without shuffle, in recording order."""
        balanced = self.sampling_method == "balanced"
        generator = np.random.default_rng(self.shuffle_seed + epoch if balanced else self.shuffle_seed)
        units: list[int] = []
        ids: list[NDArray[np.int64]] = []
        for number in range(self.num_streams) if stream_id is None else [stream_id]:
            begin = self.shard_offset_per_stream[number]
            shards = np.arange(begin, begin + self.shards_per_stream[number])
            shards = shards[self.samples_per_shard[shards] > 0]
            sizes = self.samples_per_shard[shards]
            chosen = get_sampling(
                sizes,
                self.streams[number].choose,
                self.sampling_granularity,
                self.shuffle_seed,
                epoch,
                self.epoch_seed_change,
            )
            for shard, size, choose in zip(shards, sizes.tolist(), chosen.tolist(), strict=True):
                repeats, rest = divmod(choose, size)
                units += [size] * repeats + [rest] * (rest > 0)
                offset = self.sample_offset_per_shard[shard]
                ids += [offset + np.arange(size)] * repeats
                if rest:
                    ids.append(offset + np.sort(generator.choice(size, rest, replace=False)))
        sample_ids = np.concatenate(ids).astype(np.int64)
        if not self.shuffle:
            sample_ids = sample_ids[np.argsort(self._order[sample_ids], kind="stable")]
        return np.array(units, np.int64), sample_ids

    def locate(self, sample_id: int, epoch: int) -> tuple[int, RecordingEntry, int]:
        """(stream, recording, start) of the chunk that a sample id stands for in an epoch."""
        shard_id, _ = self.spanner[sample_id]
        stream_id = int(self.stream_per_shard[shard_id])
        table = self.streams[stream_id].table
        chunk = sample_id - int(self.sample_offset_per_stream[stream_id])
        recording = table.recordings[int(table.chunk_recording[chunk])]
        return stream_id, recording, int(self._starts(recording, epoch)[int(table.chunk_slot[chunk])])

    def _starts(self, recording: RecordingEntry, epoch: int) -> NDArray[np.int64]:
        n, T = recording.num_frames, self.num_timesteps
        if self.phase == 0:
            return kept_starts(n, T, recording.system_runs)
        generator = epoch_generator(self.shuffle_seed, epoch, recording.id)
        phase = int(generator.integers(0, last_phase(n, T), endpoint=True))
        return epoch_starts(n, T, recording.system_runs, phase, generator)

    # ------------------------------------------------------------------ its content

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """The chunk of a sample id in the epoch that is being iterated (the first, before any iteration).

        Where its packets do not decode, another chunk stands in, and `replaced` names the recording.

        Raises:
            ShardError: when a shard that it needs is missing, damaged or out of reach.
        """
        self._enter_process()
        self._raise_failure()
        stream_id, recording, start = self.locate(int(sample_id), self._epoch)
        try:
            return {**self._read_chunk(stream_id, recording, start, retry), "replaced": ""}
        except Undecodable as error:
            return {**self._read_substitute(stream_id, recording, start, retry, error), "replaced": recording.id}

    def _read_substitute(
        self, stream_id: int, recording: RecordingEntry, start: int, retry: int, error: Undecodable
    ) -> dict[str, Any]:
        others = self.streams[stream_id].table.recordings
        epoch = self._epoch if self.phase == "random" else 0
        for other, at in substitutes(recording, start, others, self.num_timesteps, self.shuffle_seed, epoch):
            try:
                sample = self._read_chunk(stream_id, other, at, retry)
            except Undecodable:
                continue
            logger.warning("%s: chunk at %d replaced by %s at %d", error, start, other.id, at)
            return sample
        raise ShardError(f"{error}, and neither do other chunks; run p2p-convert verify --decode") from error

    def _read_chunk(self, stream_id: int, recording: RecordingEntry, start: int, retry: int) -> dict[str, Any]:
        table = self.streams[stream_id].table
        end = min(start + self.num_timesteps, recording.num_frames)
        first_shard = int(self.shard_offset_per_stream[stream_id])
        places = table.segments(recording, start, end)
        segments = [self._segment(first_shard + place.shard, recording, place, retry) for place in places]
        try:
            return self._chunks.read(recording, start, segments)
        except Undecodable as error:
            raise Undecodable(f"shard {self._filename(first_shard + places[0].shard)}: {error}") from error
        except ValueError as error:
            raise ShardError(f"shard {self._filename(first_shard + places[0].shard)}: {error}") from error

    def _segment(self, shard_id: int, recording: RecordingEntry, place: SegmentPlace, retry: int) -> Segment:
        key = (shard_id, place.sample)
        if key in self._segments:
            self._segments.move_to_end(key)
            return self._segments[key]
        segment = self._segments[key] = self._read_segment(shard_id, recording, place, retry)
        if len(self._segments) > _SEGMENTS_KEPT:
            self._segments.popitem(last=False)
        return segment

    def _read_segment(self, shard_id: int, recording: RecordingEntry, place: SegmentPlace, retry: int) -> Segment:
        """A segment, checked, and found to be the one that the index promises."""
        shard = self.shards[shard_id]
        where = f"shard {self._filename(shard_id)}, sample {place.sample}"
        try:
            segment = decode_segment(
                self._stored_sample(shard_id, place.sample, retry), layout=shard.layout, where=where
            )
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

    def _stored_sample(self, shard_id: int, sample: int, retry: int) -> bytes:
        shard = self.shards[shard_id]
        for _ in range(1 + retry):
            if self._shard_states[shard_id] != _ShardState.LOCAL:
                self.prepare_shard(shard_id)
            try:
                content: bytes = shard.get_sample_data(sample)
            except FileNotFoundError:  # it was evicted in the meantime, or only its packed form is here
                self.prepare_shard(shard_id)
                continue
            except OSError as error:
                raise ShardError(f"shard {self._filename(shard_id)}: {error.strerror or error}") from error
            self._shard_access_times[shard_id] = time.time_ns()
            return content
        raise ShardError(f"shard {self._filename(shard_id)}: evicted {1 + retry} times before use; raise cache_limit")

    # ------------------------------------------------------------------ shards, errors, limits

    def _filename(self, shard_id: int) -> str:
        return str(self.shards[shard_id].path)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Have a shard downloaded, unpacked and verified; every wait has a limit.

        In place of StreamingDataset's, which on an error leaves the shard as being prepared, so that everybody
        else waits for ever.

        Raises:
            ShardError: naming the shard; TimeoutError when another worker does not get it ready.
        """
        claimed = False
        try:
            claimed = self._claim(shard_id)
            if claimed:
                delta = self.streams[int(self.stream_per_shard[shard_id])].prepare_shard(self.shards[shard_id])
                with self._cache_lock():
                    self.cache_usage += delta
                    self._shard_access_times[shard_id] = time.time_ns()
                    self._shard_states[shard_id] = _ShardState.LOCAL
            elif blocking:
                self._await_shard(shard_id)
        except BaseException as error:
            self._failure = self._failure or error
            if claimed:  # the others try, and fail, for themselves
                self._shard_states[shard_id] = _ShardState.REMOTE
            raise

    def _claim(self, shard_id: int) -> bool:
        """Whether it fell to the caller to prepare the shard; makes room for it in a limited cache."""
        with self._cache_lock():
            state = self._shard_states[shard_id]
            if state == _ShardState.PREPARING:
                return False
            if state == _ShardState.LOCAL and os.path.isfile(self._filename(shard_id)):
                self._shard_access_times[shard_id] = time.time_ns()
                return False
            if self.cache_limit:
                while self.cache_limit < self.cache_usage + self.shards[shard_id].get_max_size():
                    self._evict_coldest_shard()
            self._shard_states[shard_id] = _ShardState.PREPARING
            return True

    def _cache_lock(self) -> FileLock:
        if not hasattr(self, "_cache_filelock"):
            self._cache_filelock = FileLock(self._cache_filelock_path, timeout=self._longest_wait_s)
        return self._cache_filelock

    def _enter_process(self) -> None:
        """Drop locks, threads and codecs of the process that this one was forked from: they do not work here."""
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        for name in ("_iterator", "_executor", "_event", "_cache_filelock"):
            self.__dict__.pop(name, None)
        self._shared_barrier.__dict__.pop("lock", None)
        self._chunks.forget_decoder()

    @property
    def _longest_wait_s(self) -> float:
        return self.give_up_after_s + _SLACK_S

    def _await_shard(self, shard_id: int) -> None:
        deadline = time.monotonic() + self._longest_wait_s
        while self._shard_states[shard_id] == _ShardState.PREPARING:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"shard {self._filename(shard_id)}: another worker has been preparing it for "
                    f"{self._longest_wait_s:.0f} s; it may have died: start again"
                )
            time.sleep(TICK)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def on_exception(self, future: Future[None]) -> None:
        """Keep what ended a background thread for the consumer; Streaming's raises it where it is only printed."""
        error = future.exception()
        if error is not None:
            self._failure = self._failure or error
            self._event.set()

    def _ready_thread(self, it: _Iterator) -> None:
        """Let the consumer follow the thread that prepares shards.

        StreamingDataset's waits here until shards are present, without an end when one was evicted meanwhile or
        its worker died. `get_item` waits itself, with a limit.
        """
        while not it.should_exit() and it.ready_index != it.total and not self._event.is_set():
            it.ready_index = it.prepare_index
            time.sleep(TICK)
        it.on_exit()

    def _each_sample_id(self, it: _Iterator) -> Iterator[int]:
        """As StreamingDataset's, but a failure in the background is raised and waiting ends."""
        deadline = time.monotonic() + self._longest_wait_s
        while not it.should_exit() and it.yield_index != it.total:
            self._raise_failure()
            if it.ready_index <= it.yield_index:
                if time.monotonic() > deadline:
                    self._event.set()
                    shard_id, _ = self.spanner[int(it.sample_ids[it.yield_index])]
                    raise TimeoutError(
                        f"shard {self._filename(shard_id)}: not ready after {self._longest_wait_s:.0f} s; "
                        "a worker may have died: start again"
                    )
                time.sleep(TICK)
                continue
            sample_id = it.sample_ids[it.yield_index]
            if sample_id != -1:
                yield sample_id
            it.yield_index += 1
            deadline = time.monotonic() + self._longest_wait_s
        it.on_exit()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The chunks of this worker's part of the epoch.

        Raises:
            ShardError: instead of the short epoch that a lost background error would leave.
        """
        self._enter_process()
        self._raise_failure()
        try:
            yield from super().__iter__()
        finally:  # an abandoned epoch must not leave threads behind: a worker that is forked later inherits their locks
            if "_iterator" in self.__dict__:
                self._iterator.non_blocking_exit()
        self._raise_failure()
        iterator = getattr(self, "_iterator", None)
        if iterator is not None and iterator.yield_index < iterator.total and self._event.is_set():
            raise RuntimeError(f"the epoch ended after {iterator.yield_index} of {iterator.total} samples")


def _streams(
    local: str | None, remote: str | None, streams: Sequence[GameplayStream] | None
) -> Sequence[GameplayStream]:
    if (streams is None) == (local is None and remote is None):
        raise ValueError("name either local (and remote), or streams")
    if streams is None:
        return [GameplayStream(local=local, remote=remote)]
    wrong = [type(s).__name__ for s in streams if not isinstance(s, GameplayStream)]
    if wrong or not streams:
        raise ValueError(f"streams must be a list of p2p.data.GameplayStream, not of {wrong or 'nothing'}")
    return streams


def _temporary_folder() -> str:
    """A folder that goes with this process (and not with a worker that was forked from it)."""
    folder, process = tempfile.mkdtemp(prefix="p2p-shards-"), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder
