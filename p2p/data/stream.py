"""One stream of shards: its index, its table of chunks, and shards that are verified before they are used.

Shards are checked against the hashes of the index before anything is read from them, also when they were on the disk
already, and what goes wrong is raised as a ShardError that names the file. Nothing is replaced or deleted but the
copies of a remote stream.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming.base.format.base.reader import FileInfo, Reader
from streaming.base.format.mds.reader import MDSReader
from streaming.base.stream import Stream
from streaming.base.world import World
from torch import distributed

from p2p.data.cache import Cache, remove_regular
from p2p.data.download import PatientS3Downloader
from p2p.data.shared_memory import require_shared_memory
from p2p.data.table import ChunkTable, build_chunk_table
from p2p.files import new_file, temporary_path
from p2p.format import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    Layout,
    content_damage,
    decode_index,
    decompress,
    layout_of,
    read_sample,
)
from p2p.gate import Refused, open_regular, read_regular
from p2p.object_storage import PATIENCE_S, StorageError, is_refusal

logger = logging.getLogger(__name__)

_SHARED_BYTES = 1 << 18  # of a dataset, besides what grows with its chunks and shards
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class ShardError(ValueError):
    """A shard or an index that is missing, damaged or out of reach; the message names the file."""


class Shard(MDSReader):
    """A shard as Streaming knows it, reading by our checks; its files are deleted only where they are copies.

    Streaming counts in `samples` the chunks that begin in it; `num_stored` are the samples in its file.
    """

    layout: Layout
    num_stored: int
    is_copy: bool

    @property
    def path(self) -> Path:
        return Path(self.dirname, self.split, self.raw_data.basename)

    def get_sample_data(self, idx: int) -> bytes:
        """Stored sample `idx`.

        Raises:
            FileNotFoundError: when the file is not there; Refused: when the file says what cannot be.
        """
        return read_sample(self.path, idx, self.num_stored, self.raw_data.bytes)

    def evict(self) -> int:
        """Remove the copies of its files; returns their bytes."""
        infos = [info for pair in self.file_pairs for info in pair if info is not None]
        if not self.is_copy:
            return 0
        return sum(int(info.bytes) for info in infos if remove_regular(self.path.with_name(info.basename)))

    def set_up_local(self, listing: set[str], safe_keep_zip: bool) -> int:
        """The bytes that are there; unlike Streaming's it deletes nothing."""
        infos = [info for pair in self.file_pairs for info in pair if info is not None]
        return sum(int(info.bytes) for info in infos if str(self.path.with_name(info.basename)) in listing)


class GameplayStream(Stream):
    """A folder of shards, or an address that they are downloaded from.

    Args:
        num_timesteps: T; set by the dataset.
        give_up_after_s: how long to try again when a store fails (set by the dataset).
        others: of streaming.Stream, such as remote, local, proportion, repeat, choose.
    """

    _downloader: Any

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.num_timesteps = 0
        self.give_up_after_s = PATIENCE_S
        self.table: ChunkTable

    @property
    def folder(self) -> Path:
        return Path(self.local, self.split)

    @property
    def is_copy(self) -> bool:
        """Whether the folder is a copy of an address, in which files may be replaced and deleted."""
        remote = str(self.remote) if self.remote else None
        return remote is not None and ("://" in remote or os.path.realpath(remote) != os.path.realpath(self.local))

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """Readers of all shards; each counts the chunks that begin in it, not its stored samples.

        Raises:
            ValueError: for a missing, damaged or newer index, or one without a single chunk.
        """
        if str(self.remote).startswith("s3://"):
            self._downloader = PatientS3Downloader(self.give_up_after_s)  # which the dataset has set by now
        filename = self.folder / INDEX_FILE
        try:
            entries, recordings = decode_index(self._index(world), str(filename))
        except Refused as error:
            raise ShardError(str(error)) from error
        shards = [self._shard(entry) for entry in entries]
        try:
            self.table = build_chunk_table([shard.num_stored for shard in shards], recordings, self.num_timesteps)
        except ValueError as error:
            raise ShardError(f"{filename}: {error}") from error
        num_all = len(self.table.chunk_slot)
        if not num_all:
            raise ShardError(f"{filename}: {len(recordings)} recordings, none of them gives a chunk to train on")
        require_shared_memory(_SHARED_BYTES + 16 * num_all + 16 * len(shards), f"the order of {num_all} chunks")
        for shard, num_chunks in zip(shards, self.table.chunks_per_shard.tolist(), strict=True):
            shard.validate(allow_unsafe_types)
            shard.samples = num_chunks
        return list(shards)

    def _shard(self, entry: dict[str, Any]) -> Shard:
        shard = Shard.from_json(self.local, self.split, entry)
        shard.layout, shard.num_stored, shard.is_copy = layout_of(entry), shard.samples, self.is_copy
        return shard

    # ------------------------------------------------------------------ the index

    def _index(self, world: World) -> bytes:
        """The bytes of the index; a copy is brought up to date first, and all processes read the same.

        Raises:
            ShardError: when it cannot be had, or one process has another than the rest.
        """
        filename = self.folder / INDEX_FILE
        if not self.is_copy:
            return _read_index(filename)
        failure = None
        if world.is_local_leader:
            try:
                cache = Cache(self.folder, os.path.join(str(self.remote), self.split).rstrip("/"))
                cache.refresh(self._etag, self._fetch_index)
            except ShardError as error:
                failure = error
            except ValueError as error:
                failure = ShardError(str(error))
            except OSError as error:
                failure = ShardError(f"{filename}: {error.strerror or error}{_advice(error)}")
        failures = _gather(str(failure) if failure else "")
        if failure:
            raise failure
        if any(failures):
            raise ShardError(next(filter(None, failures)))
        content = _read_index(filename)
        if len(set(_gather(hashlib.sha256(content).hexdigest()))) > 1:
            raise ShardError(f"{filename}: the index changed while the processes read it: start again")
        return content

    def _etag(self) -> str | None:
        """Of the index in the store; None where there is no such thing."""
        if not isinstance(self._downloader, PatientS3Downloader):
            return None
        remote = self._remote_name(INDEX_FILE)
        found = self._retry(lambda: self._downloader.stat(remote), remote)
        return str(found.etag)

    def _fetch_index(self) -> bytes:
        temporary = temporary_path(self.folder / INDEX_FILE)
        try:
            self._download(INDEX_FILE, temporary, MAX_INDEX_BYTES)
            return read_regular(temporary, MAX_INDEX_BYTES)
        finally:
            remove_regular(temporary)

    # ------------------------------------------------------------------ shards

    def prepare_shard(self, shard: Reader) -> int:
        """Download and unpack what is missing and verify it; returns the change of the cache in bytes.

        Raises:
            ShardError: when it cannot be had whole.
        """
        assert isinstance(shard, Shard)
        delta = 0
        for attempt in (1, 2):
            try:
                change, fault = self._prepare(shard)
            except OSError as error:
                raise ShardError(f"shard {shard.path}: {error.strerror or error}{_advice(error)}") from error
            delta += change
            if not fault:
                return delta
            if not self.is_copy or attempt == 2:
                raise ShardError(f"shard {shard.path}: {fault}; {self._remedy()}")
            logger.warning("shard %s: %s; downloading it again", shard.path, fault)
            delta -= shard.evict()
        raise AssertionError("unreachable")

    def _prepare(self, shard: Shard) -> tuple[int, str]:
        """(bytes that the cache grew by, what is wrong); "" when the shard is there and whole."""
        raw, packed = shard.raw_data, shard.zip_data
        if os.path.lexists(shard.path):
            return 0, _read_whole(shard.path, raw)[1]
        if packed is None:
            return self._bring(raw)
        path = self.folder / packed.basename
        delta, fault = (0, "") if os.path.lexists(path) else self._bring(packed)
        if fault:
            return delta, fault
        content, fault = _read_whole(path, packed)
        if fault:
            return delta, f"packed as {packed.basename}: {fault}"
        try:
            content = decompress(content, raw.bytes, f"packed as {packed.basename}")
        except Refused as error:
            return delta, str(error)
        fault = content_damage(content, vars(raw))
        if fault:
            return delta, f"unpacked from {packed.basename}: {fault}"
        with new_file(shard.path) as file:
            file.write(content)
        delta += raw.bytes
        if self.is_copy and not self.safe_keep_zip and remove_regular(path):
            delta -= packed.bytes
        return delta, ""

    def _bring(self, info: FileInfo) -> tuple[int, str]:
        """Download a file, which gets its name when it is whole; as `_prepare`."""
        path = self.folder / info.basename
        if not self.is_copy:
            return 0, "no such file, but the index lists it"
        temporary = temporary_path(path)
        try:
            self._download(info.basename, temporary, info.bytes)
            fault = _read_whole(temporary, info)[1]
            if not fault:
                os.replace(temporary, path)
            return 0 if fault else info.bytes, fault
        finally:
            remove_regular(temporary)

    def _remedy(self) -> str:
        if not self.is_copy:
            return "restore the file from a copy, or convert the recordings again"
        return f"the copy in {self.remote} is damaged too: convert the recordings again"

    # ------------------------------------------------------------------ downloads

    def _remote_name(self, basename: str) -> str:
        return os.path.join(str(self.remote), self.split, basename)

    def _download(self, basename: str, local: Path, max_bytes: int) -> None:
        remote = self._remote_name(basename)
        self._retry(lambda: self._download_once(remote, local, max_bytes), remote)

    def _download_once(self, remote: str, local: Path, max_bytes: int) -> None:
        if isinstance(self._downloader, PatientS3Downloader):
            num_bytes = self._downloader.stat(remote).num_bytes
        elif "://" not in remote:
            with open_regular(remote) as file:
                num_bytes = os.fstat(file.fileno()).st_size
        else:
            num_bytes = 0  # Streaming's other stores are not asked
        if num_bytes > max_bytes:
            raise StorageError(f"{num_bytes} bytes; at most {max_bytes} are expected")
        if isinstance(self._downloader, PatientS3Downloader):
            self._downloader.fetch(remote, local, max_bytes)
        else:
            self._downloader.download(remote, str(local), self.download_timeout)

    def _retry(self, download: Callable[[], Any], remote: str) -> Any:
        """Try until it succeeds, fails for good, or `give_up_after_s` is over; a client of S3 may use it up alone."""
        deadline = time.monotonic() + self.give_up_after_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return download()
            except Exception as error:
                self._downloader.clean_up()
                if isinstance(error, OSError) and error.errno == 28:
                    raise
                if _is_permanent(error) or time.monotonic() + pause_s > deadline:
                    raise ShardError(
                        f"{remote}: cannot be downloaded: {type(error).__name__}: {error}; "
                        "check the address, the credentials and the store, then start again"
                    ) from error
                logger.warning("%s: %s: %s; trying again in %g s", remote, type(error).__name__, error, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_permanent(error: Exception) -> bool:
    passes = isinstance(error, FileNotFoundError | PermissionError | ImportError | StorageError | Refused)
    return passes or is_refusal(error)


def _advice(error: OSError) -> str:
    return "; free some space, or set cache_limit" if error.errno == 28 else ""


def _read_index(filename: Path) -> bytes:
    try:
        return read_regular(filename, MAX_INDEX_BYTES)
    except Refused as error:
        raise ShardError(str(error)) from error
    except FileNotFoundError:
        raise ShardError(f"{filename}: no such file; expected a folder written by `p2p-convert RAW OUT`") from None


def _read_whole(path: Path, expected: FileInfo) -> tuple[bytes, str]:
    """(content, what is wrong) of a file, by its size and every hash of the index; "" when it is whole."""
    try:
        content = read_regular(path, expected.bytes)
    except Refused as error:
        return b"", str(error)
    return content, content_damage(content, vars(expected))


def _gather(text: str) -> list[str]:
    """The text of every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [text]
    texts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(texts, text)
    return texts
