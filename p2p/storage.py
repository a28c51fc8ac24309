"""Where files are kept: a folder, or a prefix in an object store (s3://bucket/prefix), with the same few operations."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from p2p import gate
from p2p.files import is_temporary, write_file
from p2p.object_storage import ObjectFolder, StoredObject


class Storage(Protocol):
    """Files by name ("train/index.json") below one address.

    A file appears whole or not at all. Reading one that is not there raises FileNotFoundError; a folder raises OSError
    and a store StorageError (a ValueError) for what cannot be done.
    """

    url: str
    name: str  # the last part of the address

    def list(self, prefix: str = "") -> dict[str, StoredObject]:
        """The files whose names begin with `prefix`, in order of their names."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a file of at most `max_bytes`."""

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file, in place of an older one."""

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those that are not there already are no error."""


class LocalFolder:
    """A folder on a disk. `depth` limits how many parts the names have that are listed; links to folders are followed
    where there is such a limit. Only regular files are listed."""

    def __init__(self, folder: Path | str, depth: int | None = None) -> None:
        self.root, self.depth = Path(folder), depth
        self.url, self.name = str(folder), self.root.resolve().name

    def list(self, prefix: str = "") -> dict[str, StoredObject]:
        found = {}
        start = self.root / prefix.rpartition("/")[0]
        for folder, folders, names in os.walk(start, followlinks=self.depth is not None):
            above = Path(folder).relative_to(self.root)
            if self.depth is not None and len(above.parts) + 1 >= self.depth:
                folders.clear()
            for name in (above.joinpath(name).as_posix() for name in names if not is_temporary(name)):
                stored = self._look(name) if name.startswith(prefix) else None
                if stored is not None:
                    found[name] = stored
        return dict(sorted(found.items()))

    def _look(self, name: str) -> StoredObject | None:
        try:
            found = os.stat(self.root / name)
        except FileNotFoundError:  # gone meanwhile, or a link to nothing
            return None
        return StoredObject(found.st_size, str(found.st_mtime_ns)) if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str, max_bytes: int) -> bytes:
        return gate.read_regular(self.root / name, max_bytes)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, *pieces)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)


def open_storage(address: str, depth: int | None = None) -> LocalFolder | ObjectFolder:
    """The storage at an address; of a folder, only so many levels are listed."""
    return ObjectFolder(address) if "://" in address else LocalFolder(address, depth)
