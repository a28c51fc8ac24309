"""The folder that a remote stream is kept in: whose copy it is, and whether its index is still the store's.

A file beside the index says so: the address, and of the index its ETag in the store and its SHA-256. Only in a folder
that has it are files replaced or deleted, and only regular ones with the names that the checked index gives.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from pathlib import Path

from p2p.data.remote import Remote
from p2p.files import temporary_path, write_file
from p2p.format import INDEX_FILE, MAX_INDEX_BYTES
from p2p.gate import Refused, mapping, parse_json, read_regular, text

logger = logging.getLogger(__name__)

ORIGIN_FILE = ".p2p-cache.json"
_MAX_ORIGIN_BYTES = 1 << 16
_MAX_CHARACTERS = 1 << 12
_ABANDONED_S = 24 * 3600.0  # a half-made file of a process that was killed


class Cache:
    """The copy of a stream that lies in `folder`."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        self.folder, self.remote = folder, remote

    @property
    def index(self) -> Path:
        return self.folder / INDEX_FILE

    def refresh(self) -> None:
        """Make the index that of the store: asked for its ETag, it is fetched when that is another one, or unknown.

        Raises:
            ValueError: when the folder holds a stream that is no copy of this one, or the store gives no index.
        """
        etag, address = self.remote.etag(INDEX_FILE), self.remote.address
        origin, old = self._origin(), self._old_index()
        is_own = origin.get("remote") == address
        if is_own and etag and origin["etag"] == etag and origin["sha256"] == _sha256(old):
            return
        new = self._fetch()
        if not origin and old is not None and old != new:
            raise ValueError(
                f"{self.index}: another stream, and no copy of {address}; "
                "name an empty folder for the copy (data.cache), or remove this one"
            )
        if not origin:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_origin("", None)  # from here on the folder is a copy, also when this process is killed
        if old != new:
            if old is not None:
                logger.warning(
                    "%s: not the index of %s any more: replaced; shards that changed are fetched anew",
                    self.index,
                    address,
                )
            write_file(self.index, new)
        self._write_origin(etag or "", new)
        self._remove_abandoned()

    def _fetch(self) -> bytes:
        temporary = temporary_path(self.index)
        try:
            self.remote.fetch(INDEX_FILE, temporary, MAX_INDEX_BYTES)
            return read_regular(temporary, MAX_INDEX_BYTES)
        finally:
            remove_regular(temporary)

    def _origin(self) -> dict[str, str]:
        """What the folder says of itself; {} when it is no cache."""
        path = self.folder / ORIGIN_FILE
        try:
            values = mapping(parse_json(read_regular(path, _MAX_ORIGIN_BYTES), str(path)), str(path))
            return {name: text(values.get(name), name, _MAX_CHARACTERS) for name in ("remote", "etag", "sha256")}
        except (FileNotFoundError, Refused):
            return {}

    def _old_index(self) -> bytes | None:
        try:
            return read_regular(self.index, MAX_INDEX_BYTES)
        except FileNotFoundError:
            return None

    def _write_origin(self, etag: str, index: bytes | None) -> None:
        values = {"remote": self.remote.address, "etag": etag, "sha256": _sha256(index)}
        write_file(self.folder / ORIGIN_FILE, json.dumps(values, indent=1).encode() + b"\n")

    def _remove_abandoned(self) -> None:
        before = time.time() - _ABANDONED_S
        for path in self.folder.glob(".*.partial"):
            if path.lstat().st_mtime < before:
                remove_regular(path)


def remove_regular(path: Path | str) -> bool:
    """Remove a file of a cache; whether it was one. A link, a pipe or a folder stays: this program made none."""
    try:
        is_file = stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
    if is_file:
        os.remove(path)
    return is_file


def _sha256(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()
