"""The shards of a stream in their folder: verified before they are read; copies come when they are needed and may go.

Processes of a node share the folder and nothing else: a shard is fetched under a lock, which ends with its process, and
gets its name when it is whole. Each process verifies a file, against the index, before it first reads it. Nothing is
replaced or deleted but regular files of a copy, by the names that the checked index gives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from p2p.data.cache import remove_regular
from p2p.data.errors import ShardError
from p2p.data.remote import Remote
from p2p.files import InUse, new_file, take, temporary_path
from p2p.format import Layout, content_damage, decompress, layout_of, read_sample
from p2p.gate import Refused, read_regular

logger = logging.getLogger(__name__)

SLACK_S = 60.0  # waited for another process beyond what a store may take
_TICK_S = 0.02
_NUM_LOCKS = 64
_TRIES = 8
_CONVERT = "convert the recordings again"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the index: its name, size and {algorithm: digest}."""

    name: str
    num_bytes: int
    hashes: Mapping[str, str]

    def damage(self, content: bytes) -> str:
        """What is wrong with its content; "" when it is whole."""
        return content_damage(content, {"bytes": self.num_bytes, "hashes": self.hashes})


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard by its entry in the index; `packed` is the compressed form that is stored, if there is one."""

    raw: File
    packed: File | None
    num_samples: int
    layout: Layout

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Shard:
        raw, packed = (
            info and File(info["basename"], info["bytes"], info["hashes"])
            for info in (entry["raw_data"], entry["zip_data"])
        )
        return cls(raw, packed, entry["samples"], layout_of(entry))

    @property
    def files(self) -> tuple[File, ...]:
        return (self.raw,) if self.packed is None else (self.raw, self.packed)


class ShardFolder:
    """Shards of one stream.

    Args:
        remote: what the folder is a copy of, or None.
        limit: bytes that the copy may take on the disk.
        patience_s: how long to wait for a store, and that and SLACK_S for another process.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Mapping[str, Any]],
        remote: Remote | None,
        limit: int | None,
        patience_s: float,
    ) -> None:
        self.folder, self._entries, self._remote, self._limit = folder, entries, remote, limit
        self.longest_wait_s = patience_s + SLACK_S
        self._verified: dict[int, tuple[int, ...]] = {}

    def shard(self, number: int) -> Shard:
        return Shard.of(self._entries[number])

    def path(self, number: int) -> Path:
        return self.folder / self.shard(number).raw.name

    @cached_property
    def _names(self) -> frozenset[str]:
        """Of all files that the index lists."""
        return frozenset(file.name for entry in self._entries for file in Shard.of(entry).files)

    def sample(self, number: int, sample: int) -> bytes:
        """Stored sample `sample` of a shard.

        Raises:
            ShardError: when the shard cannot be had whole. Refused: when it says what cannot be. TimeoutError: when
                another process does not get it ready.
        """
        shard, path = self.shard(number), self.path(number)
        for _ in range(_TRIES):
            self.prepare(number)
            try:
                return read_sample(path, sample, shard.num_samples, shard.raw.num_bytes)
            except FileNotFoundError:  # evicted in the meantime
                continue
            except OSError as error:
                raise ShardError(f"shard {path}: {error.strerror or error}") from error
        raise ShardError(f"shard {path}: evicted {_TRIES} times before use; raise cache_limit")

    def prepare(self, number: int) -> None:
        """Have a shard there, unpacked and verified.

        Raises:
            ShardError, TimeoutError: as `sample`.
        """
        path = self.path(number)
        try:
            if self._is_verified(number):
                return
            if self._remote is None:
                fault = self._look(number)
                if fault:
                    raise ShardError(f"shard {path}: {fault}; restore the file from a copy, or {_CONVERT}")
            else:
                with self._locked(number):
                    self._fetch(number)
            self._verified[number] = _identity(path)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            advice = "; free some space, or set cache_limit" if error.errno == 28 else ""
            raise ShardError(f"shard {path}: {error.strerror or error}{advice}") from error

    def _is_verified(self, number: int) -> bool:
        path, known = self.path(number), self._verified.get(number)
        try:
            if known is None or _identity(path) != known:
                return False
            if self._limit:  # the copies that were not used for longest go first
                os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _look(self, number: int) -> str:
        """What is wrong with a shard that lies here, unpacked if only its packed form does; "" when it is whole."""
        shard, path = self.shard(number), self.path(number)
        if shard.packed is None or os.path.lexists(path):
            return self._read(shard.raw)[1]
        where = f"packed as {shard.packed.name}"
        content, fault = self._read(shard.packed)
        if fault:
            return f"{where}: {fault}"
        try:
            content = decompress(content, shard.raw.num_bytes, where)
        except Refused as error:
            return str(error)
        fault = shard.raw.damage(content)
        if fault:
            return f"unpacked from {shard.packed.name}: {fault}"
        with new_file(path) as file:
            file.write(content)
        if self._remote is not None:
            remove_regular(self.folder / shard.packed.name)
        return ""

    def _fetch(self, number: int) -> None:
        """Have a copy; one that is damaged is fetched again, once."""
        assert self._remote is not None
        shard, path = self.shard(number), self.path(number)
        for is_last in (False, True):
            fault = self._look(number) if any(os.path.lexists(self.folder / file.name) for file in shard.files) else ""
            if not fault and not os.path.lexists(path):
                fault = self._download(shard) or self._look(number)
            if not fault:
                return
            if is_last:
                raise ShardError(
                    f"shard {path}: {fault}; the copy in {self._remote.address} is damaged too: {_CONVERT}"
                )
            logger.warning("shard %s: %s; downloading it again", path, fault)
            for file in shard.files:
                remove_regular(self.folder / file.name)

    def _download(self, shard: Shard) -> str:
        """What is wrong with the stored form of a shard in the store; "" when it is here now."""
        assert self._remote is not None
        stored = shard.packed or shard.raw
        self._make_room(shard)
        temporary = temporary_path(self.folder / stored.name)
        try:
            self._remote.fetch(stored.name, temporary, stored.num_bytes)
            fault = self._read(stored, temporary)[1]
            if not fault:
                os.replace(temporary, self.folder / stored.name)
            return fault
        finally:
            remove_regular(temporary)

    def _read(self, file: File, path: Path | None = None) -> tuple[bytes, str]:
        """(content, what is wrong) of a file, by its size and every hash of the index."""
        try:
            content = read_regular(path or self.folder / file.name, file.num_bytes)
        except FileNotFoundError:
            return b"", "no such file, but the index lists it"
        except Refused as error:
            return b"", str(error)
        return content, file.damage(content)

    def _make_room(self, shard: Shard) -> None:
        """Remove the copies that were not used for longest, until this shard fits.

        Raises:
            ShardError: when it never will.
        """
        if not self._limit:
            return
        needed, used, found = sum(file.num_bytes for file in shard.files), 0, []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    used += status.st_size
                    if entry.name in self._names:
                        found.append((status.st_atime_ns, entry.name, status.st_size))
        for _, name, size in sorted(found):
            if used + needed <= self._limit:
                return
            if remove_regular(self.folder / name):
                used -= size
        if used + needed > self._limit:
            raise ShardError(
                f"shard {self.folder / shard.raw.name}: {needed} bytes beside {used} others do not fit into "
                f"cache_limit {self._limit}; raise it"
            )

    @contextlib.contextmanager
    def _locked(self, number: int) -> Iterator[None]:
        """One process at a time fetches a shard; the lock of one that dies is free.

        Raises:
            TimeoutError: when another holds it for longer than a store may take.
        """
        deadline = time.monotonic() + self.longest_wait_s
        while True:
            try:
                lock = take(self.folder / f".{number % _NUM_LOCKS}.lock", str(self.path(number)))
                break
            except InUse as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"shard {self.path(number)}: another process has been fetching it for "
                        f"{self.longest_wait_s:.0f} s; it may be stopped: end it, and start again ({error})"
                    ) from None
            time.sleep(_TICK_S)
        try:
            yield
        finally:
            lock.close()


def _identity(path: Path) -> tuple[int, ...]:
    """Changes when the file is another one, or is written to."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
