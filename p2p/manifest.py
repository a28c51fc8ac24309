"""The manifest of an artifact: which files it consists of, their SHA-256, and facts that a reader checks first.

A checkpoint, a policy folder and a recording hold one, `manifest.json`, written last. Who reads an artifact verifies it
before anything of it is loaded, so what was damaged, cut off or exchanged on the way is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from p2p import gate
from p2p.files import new_file, write_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

MANIFEST = "manifest.json"
VERSION = 1
MAX_BYTES = 64 << 20
_MAX_FILES = 100_000
_MAX_FILE_BYTES = 1 << 50
_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16  # hashed sooner than handed to a thread
_MAX_THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class FileRecord:
    """Length and SHA-256 (hexadecimal) of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`kind` says of what: checkpoint, policy, recording. `facts` are JSON values that this kind's reader knows."""

    kind: str
    files: Mapping[str, FileRecord]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The bytes of manifest.json."""
        files = {name: {"bytes": f.num_bytes, "sha256": f.sha256} for name, f in sorted(self.files.items())}
        content = {"version": VERSION, "kind": self.kind, "files": files, "facts": dict(self.facts)}
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def decode_manifest(data: bytes, kind: str, where: str) -> Manifest:
    """The manifest in these bytes; `where` names them in errors.

    Raises:
        Refused (a ValueError): when it is none, of another kind, or of a newer version.
    """
    content = gate.mapping(gate.parse_json(data, where, MAX_BYTES), where)
    version = content.get("version")
    if version != VERSION:
        raise gate.Refused(f"{where}: version {gate.shown(version)}; this p2p reads {VERSION}: upgrade p2p")
    if content.get("kind") != kind:
        raise gate.Refused(f"{where}: of a {gate.shown(content.get('kind'))}; expected that of a {kind}")
    listed = gate.mapping(content.get("files"), f"{where}: files")
    if len(listed) > _MAX_FILES:
        raise gate.Refused(f"{where}: {len(listed)} files; at most {_MAX_FILES} are expected")
    files = {
        gate.plain_name(name, where): _record(entry, f"{where}: {gate.shown(name)}") for name, entry in listed.items()
    }
    return Manifest(kind, files, gate.mapping(content.get("facts"), f"{where}: facts"))


def _record(entry: object, where: str) -> FileRecord:
    values = gate.mapping(entry, where)
    digest = gate.text(values.get("sha256"), f"{where}: sha256", 64)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise gate.Refused(f"{where}: sha256 is {gate.shown(digest)}; expected 64 hexadecimal digits")
    return FileRecord(gate.whole_number(values.get("bytes"), f"{where}: bytes", 0, _MAX_FILE_BYTES), digest)


def describe(path: Path) -> FileRecord:
    """Length and SHA-256 of a file on the disk."""
    with gate.open_regular(path) as file:
        return describe_open(file)


def describe_open(file: BinaryIO) -> FileRecord:
    """As `describe`, of a file that is open and stands at its beginning."""
    digest, num_bytes = hashlib.sha256(), 0
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        num_bytes += len(block)
    return FileRecord(num_bytes, digest.hexdigest())


class HashedFile(io.RawIOBase):
    """What is written to a file passes here and is hashed, by a thread meanwhile where there is one in `background`:
    quicker on an idle machine, and slower on a busy one, where each piece waits for the thread's turn."""

    def __init__(self, file: BinaryIO, background: ThreadPoolExecutor | None = None) -> None:
        self._file = file
        self._background = background
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, piece: Buffer) -> int:
        size = memoryview(piece).nbytes
        self._num_bytes += size
        if self._background is None or size < _SMALL_BYTES:
            self._digest.update(piece)
            return self._file.write(piece)
        hashed = self._background.submit(self._digest.update, piece)
        try:
            return self._file.write(piece)
        finally:
            hashed.result()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def record(self) -> FileRecord:
        """Length and SHA-256 of all that was written."""
        return FileRecord(self._num_bytes, self._digest.hexdigest())


@contextlib.contextmanager
def new_hashed_file(path: Path) -> Iterator[HashedFile]:
    """As p2p.files.new_file, for a file that a manifest will name.

    Raises:
        OSError: when it cannot be written.
    """
    with ThreadPoolExecutor(1) as background, new_file(path) as file:
        yield HashedFile(file, background)


def write_manifest(folder: Path, kind: str, names: Iterable[str], facts: Mapping[str, Any]) -> Manifest:
    """Describe these files of a folder and write its manifest beside them."""
    manifest = Manifest(kind, {name: describe(folder / name) for name in names}, facts)
    write_file(folder / MANIFEST, manifest.encode())
    return manifest


def read_manifest(folder: Path, kind: str) -> Manifest:
    """The manifest of a folder, its files not looked at.

    Raises:
        Refused: as `decode_manifest`. OSError: when there is none to read.
    """
    path = folder / MANIFEST
    return decode_manifest(gate.read_regular(path, MAX_BYTES), kind, str(path))


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file that the manifest names, several at a time.

    Raises:
        Refused: naming the first file that is missing, no regular file, of another length or of another hash.
    """
    with ThreadPoolExecutor(_MAX_THREADS) as pool:  # hashing a block leaves the interpreter to the others
        for _ in pool.map(lambda name: _verify_file(folder / name, manifest), sorted(manifest.files)):
            pass


def _verify_file(path: Path, manifest: Manifest) -> None:
    try:
        num_bytes = path.stat().st_size
        found = describe(path) if num_bytes == manifest.files[path.name].num_bytes else FileRecord(num_bytes, "")
    except OSError as error:
        raise gate.Refused(f"{path}: {error.strerror}, but {MANIFEST} names it") from error
    compare(path, found, manifest)


def compare(path: Path, found: FileRecord, manifest: Manifest) -> None:
    """Compare a file with what the manifest beside it says.

    Raises:
        Refused: when the manifest does not name it, or says another length or hash.
    """
    expected = manifest.files.get(path.name)
    if expected is None:
        raise gate.Refused(f"{path}: {MANIFEST} does not name it")
    if found.num_bytes != expected.num_bytes:
        raise gate.Refused(f"{path}: {found.num_bytes} bytes, {MANIFEST} says {expected.num_bytes}")
    if found.sha256 != expected.sha256:
        raise gate.Refused(
            f"{path}: its SHA-256 is not the one in {MANIFEST}; the file is damaged, or just being replaced"
        )
