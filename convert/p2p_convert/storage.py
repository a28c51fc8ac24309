"""Where a conversion is written and read again, and how it has the place to itself.

A store is found anew from its address in every process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from p2p.files import is_temporary, take
from p2p.object_storage import ObjectFolder
from p2p.storage import LocalFolder, Storage, open_storage
from p2p_convert.files import explained
from p2p_convert.lease import ELSEWHERE, LOCK, LeaseLost, held, leased

_MAX_BYTES = 1 << 32  # of a shard, the largest file


class Hold(Protocol):
    """An address that is held alone. `token` names who holds it, "" where the kernel sees to that."""

    token: str

    def check(self) -> None:
        """ValueError when it is no longer held."""


class Store:
    """The files of a conversion below one address; hidden ones are not part of it."""

    def __init__(self, files: Storage) -> None:
        self._files = files
        self.address = files.url

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file whole or not at all."""
        with explained(f"{self.address}/{name}"):
            self._files.write(name, *pieces)

    def read(self, name: str, max_bytes: int = _MAX_BYTES) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""
        return self._files.read(name, max_bytes)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """{name: bytes} of the files whose name begins so, in order."""
        found = self._files.list(prefix)
        return {name: found[name].num_bytes for name in found if not name.rpartition("/")[2].startswith(".")}

    def delete(self, names: Sequence[str]) -> None:
        """Remove files."""
        self._files.delete(names)

    def locked(self, break_lock: bool = False) -> contextlib.AbstractContextManager[Hold]:
        """Hold the address alone; ValueError when another conversion does."""
        if isinstance(self._files, LocalFolder):
            return _locked_folder(self._files.root, self.address)
        return leased(self.address, break_lock)

    def check(self, token: str) -> None:
        """In a worker: ValueError when the address is no longer held by the conversion of this token.

        A folder's is held by the kernel, and workers end with the process that has it.
        """
        if isinstance(self._files, ObjectFolder) and token and not held(self._files, token):
            raise LeaseLost(f"{self.address}: another conversion took it over; nothing more of this one is written")


def open_store(address: str) -> Store:
    """The store of a folder or of an s3:// address."""
    return Store(open_storage(address))


@contextlib.contextmanager
def _locked_folder(root: Path, address: str) -> Iterator[Hold]:
    """The lock goes with the process, so there is none to break. What killed processes had begun is removed, that of a
    conversion before at the start, that of a worker of this one at its end.
    """
    path = root / LOCK
    was_converted_into = path.exists()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with take(path, address, ELSEWHERE) as file:
        others = set() if was_converted_into else set(_temporaries(root))
        _remove(_temporaries(root), others)
        yield _FolderHold(path, os.fstat(file.fileno()).st_ino)
        _remove(_temporaries(root), others)


def _temporaries(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob(".*") if is_temporary(path.name))


def _remove(paths: Iterable[Path], but: Container[Path]) -> None:
    for path in paths:
        if path not in but:
            path.unlink(missing_ok=True)


class _FolderHold:
    token = ""

    def __init__(self, path: Path, inode: int) -> None:
        self._path, self._inode = path, inode

    def check(self) -> None:
        try:
            found = os.stat(self._path).st_ino
        except FileNotFoundError:
            found = -1
        if found != self._inode:
            raise LeaseLost(f"{self._path}: removed while this conversion was writing; run the same command again")
