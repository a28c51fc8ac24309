"""Where a conversion is written and read again: a folder, or a prefix in an object store (s3://bucket/prefix).

Both give a file its name only when it is complete. A store is found anew from its address in every process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from p2p import gate
from p2p.files import is_temporary, take, write_file
from p2p.object_storage import ObjectFolder
from p2p_convert.files import explained
from p2p_convert.lease import ELSEWHERE, LOCK, LeaseLost, held, leased

_MAX_BYTES = 1 << 32  # of a shard, the largest file


class Hold(Protocol):
    """An address that is held alone. `token` names who holds it, "" where the kernel sees to that."""

    token: str

    def check(self) -> None:
        """ValueError when it is no longer held."""


class Store(Protocol):
    """Files by name ("train/index.json") below one address."""

    address: str

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file whole or not at all."""

    def read(self, name: str, max_bytes: int = _MAX_BYTES) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """{name: bytes} of the files whose name begins so, in order."""

    def delete(self, names: Sequence[str]) -> None:
        """Remove files."""

    def locked(self, break_lock: bool = False) -> contextlib.AbstractContextManager[Hold]:
        """Hold the address alone; ValueError when another conversion does."""

    def check(self, token: str) -> None:
        """In a worker: ValueError when the address is no longer held by the conversion of this token."""


def open_store(address: str) -> Store:
    """The store of a folder or of an s3:// address."""
    return S3Store(address) if address.startswith("s3://") else FolderStore(address)


class FolderStore:
    """A folder on a disk. Hidden files in it are not part of the conversion."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._root = Path(address)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        path = self._root / name
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, *pieces)

    def read(self, name: str, max_bytes: int = _MAX_BYTES) -> bytes:
        return gate.read_regular(self._root / name, max_bytes)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for path in self._root.rglob("*"):
            name = path.relative_to(self._root).as_posix()
            if name.startswith(prefix) and not path.name.startswith(".") and path.is_file():
                found[name] = path.stat().st_size
        return dict(sorted(found.items()))

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self._root / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, break_lock: bool = False) -> Iterator[Hold]:
        """The lock goes with the process, so there is none to break. What a killed one had begun is removed."""
        path = self._root / LOCK
        was_converted_into = path.exists()
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with take(path, self.address, ELSEWHERE) as file:
            for leftover in self._root.rglob(".*") if was_converted_into else ():  # elsewhere they are others' files
                if is_temporary(leftover.name):
                    leftover.unlink(missing_ok=True)
            yield _FolderHold(path, os.fstat(file.fileno()).st_ino)

    def check(self, token: str) -> None:
        """Workers end with the process that holds the lock."""


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


class S3Store:
    """A prefix in a bucket."""

    def __init__(self, address: str) -> None:
        self._objects = ObjectFolder(address)
        self.address = self._objects.url

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        self._objects.write(name, b"".join(pieces))

    def read(self, name: str, max_bytes: int = _MAX_BYTES) -> bytes:
        return self._objects.read(name, max_bytes)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        return {name: each.num_bytes for name, each in self._objects.list(prefix).items()}

    def delete(self, names: Sequence[str]) -> None:
        self._objects.delete(names)

    def locked(self, break_lock: bool = False) -> contextlib.AbstractContextManager[Hold]:
        return leased(self.address, break_lock)

    def check(self, token: str) -> None:
        if token and not held(self._objects, token):
            raise LeaseLost(f"{self.address}: another conversion took it over; nothing more of this one is written")
