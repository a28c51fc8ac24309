"""Where a conversion is written and read again: a folder, or a prefix in an object store (s3://bucket/prefix).

Both give a file its name only when it is complete. A store is found anew from its address in every process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from p2p.object_storage import PATIENCE_S, ObjectFolder, StorageError
from p2p_convert.files import write_file

LOCK = ".convert/lock"
# A lock is stale when nobody renewed it for longer than its owner may have to wait for the store.
_LOCK_RENEWED_S, _LOCK_STALE_S = 20.0, 3 * PATIENCE_S
_RELEASE_PATIENCE_S = 5.0  # for giving a lock back when the conversion has failed


class Store(Protocol):
    """Files by name ("train/index.json") below one address."""

    address: str

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file whole or not at all."""

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError when there is none."""

    def names(self, prefix: str = "") -> list[str]:
        """The files whose name begins so, in order."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the address alone; ValueError when another conversion does."""


def open_store(address: str) -> Store:
    """The store of a folder or of an s3:// address."""
    return S3Store(address) if address.startswith("s3://") else FolderStore(address)


def _in_use(address: str) -> ValueError:
    return ValueError(f"{address}: another conversion is writing to it; wait for it, or name another OUT")


class FolderStore:
    """A folder on a disk."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._root = Path(address)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        write_file(self._root / name, *pieces)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def names(self, prefix: str = "") -> list[str]:
        files = (path for path in self._root.rglob("*") if path.is_file() and not path.name.endswith(".part"))
        return sorted(n for n in (path.relative_to(self._root).as_posix() for path in files) if n.startswith(prefix))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The lock goes with the process."""
        path = self._root / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _in_use(self.address) from error
            yield


class S3Store:
    """A prefix in a bucket."""

    def __init__(self, address: str) -> None:
        self._objects = ObjectFolder(address)
        self.address = self._objects.url

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        self._objects.write(name, b"".join(pieces))

    def read(self, name: str) -> bytes:
        return self._objects.read(name)

    def names(self, prefix: str = "") -> list[str]:
        return list(self._objects.list(prefix))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """A lock object that only one can create, renewed while it is held; one that is not renewed is stale."""
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._take_lock(me)
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(me, stop), daemon=True)
        renewal.start()
        try:
            try:
                yield
            finally:
                stop.set()
                renewal.join()
        except BaseException:  # says more than a lock that cannot be given back; nobody renews it, so it grows stale
            with contextlib.suppress(ValueError, OSError):
                ObjectFolder(self.address, patience_s=_RELEASE_PATIENCE_S).delete([LOCK])
            raise
        self._objects.delete([LOCK])

    def _take_lock(self, me: dict[str, Any]) -> None:
        for _ in range(3):
            if self._objects.create(LOCK, json.dumps({**me, "renewed": time.time()}).encode()):
                return
            try:
                owner = json.loads(self.read(LOCK))
            except FileNotFoundError:  # given back in the meantime
                continue
            if all(owner[name] == value for name, value in me.items()):  # ours: only the answer was lost
                return
            if not _is_stale(owner, me):
                break
            self._objects.delete([LOCK])
        raise _in_use(self.address)

    def _renew(self, me: dict[str, Any], stop: threading.Event) -> None:
        while not stop.wait(_LOCK_RENEWED_S):
            with contextlib.suppress(StorageError):  # the next renewal may succeed; the conversion has its own errors
                self.write(LOCK, json.dumps({**me, "renewed": time.time()}).encode())


def _is_stale(owner: dict[str, Any], me: dict[str, Any]) -> bool:
    """Whether the owner of a lock is gone: its process on this host, or nobody renewed it for long."""
    if owner["host"] == me["host"]:
        return owner["pid"] != me["pid"] and not Path(f"/proc/{owner['pid']}").exists()
    return time.time() - float(owner["renewed"]) > _LOCK_STALE_S
