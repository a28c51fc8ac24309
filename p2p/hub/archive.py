"""An archive of recordings (.tar or .tar.gz), read once from beginning to end, within budgets, and whole or refused.

The parser is our own because tarfile, reading a stream, takes a damaged header for the archive's end, never looks at
gzip's checksum, and holds extended headers and sparse maps of any size in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from p2p import gate

MAX_MEMBERS = 1_000_000
MAX_RATIO = 20  # unpacked to packed bytes: video does not shrink, annotations by less
FREE_BYTES = 64 << 20  # unpacked, whatever the ratio
_MAX_HEADER_BYTES = 1 << 20  # of an extended header
_MAX_HEADERS_IN_A_ROW = 8
_MAX_PATH_BYTES = 4096
_MAX_MEMBER_BYTES = 1 << 50
_MAX_GZIP_MEMBERS = 1_000_000
_BLOCK = 512  # of a tar
_PIECE = 1 << 18
_GZIP = 31  # zlib's name for a gzip header and trailer, the trailer's checksum and length included


class BadArchive(ValueError):  # noqa: N818  a verdict on the data
    """An archive that is damaged, cut off, none at all, or made to exhaust who reads it."""


class Readable(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; b"" at the end."""


@dataclass(frozen=True)
class Member:
    """A member of an archive. The path is a stranger's: bytes that are not UTF-8 are lone surrogates in it."""

    path: str
    num_bytes: int
    is_file: bool


class Archive:
    """The members of an archive in their order. `pieces` and `read` give the content of the one at hand.

    When the iteration ends, the archive was whole: gzip's checksum and length of all that was unpacked are right, the
    tar's end mark stood at its end, and only zeros followed it. What was read before is not to be believed earlier.
    A .tar without gzip has checksums of its headers alone: damage in a file's content does not show.

    Args:
        file: read to its end.
        where: its name for errors.

    Raises:
        BadArchive: from the iteration, `pieces` and `read`.
    """

    def __init__(self, file: Readable, where: str) -> None:
        self._where = where
        first = file.read(_PIECE)
        self._source: _Gunzip | _Plain = _Gunzip(file, first) if first[:2] == b"\x1f\x8b" else _Plain(file, first)
        self._piece = memoryview(b"")
        self._left = self._padding = 0  # of the member at hand

    def __iter__(self) -> Iterator[Member]:
        try:
            for _ in range(MAX_MEMBERS):
                self._skip(self._left + self._padding)
                member = self._next()
                if member is None:
                    self._end()
                    return
                yield member
        except (_Damaged, zlib.error) as error:
            raise BadArchive(f"{self._where}: {error}") from error
        raise BadArchive(f"{self._where}: more than {MAX_MEMBERS} members")

    def pieces(self) -> Iterator[memoryview]:
        """What has not been read of the member at hand, in pieces."""
        try:
            while self._left:
                part = self._some(self._left)
                self._left -= len(part)
                yield part
        except (_Damaged, zlib.error) as error:
            raise BadArchive(f"{self._where}: {error}") from error

    def read(self) -> bytes:
        """The same at once; whoever asks for it has looked at the member's size."""
        return b"".join(self.pieces())

    def _next(self) -> Member | None:
        """The next member; None at the end mark."""
        extended: dict[bytes, bytes] = {}
        for _ in range(_MAX_HEADERS_IN_A_ROW):
            header = self._exactly(_BLOCK)
            if not header.strip(b"\0"):
                if extended:
                    raise _Damaged("an extended header is the last one")
                return None
            _check_sum(header)
            kind, size = header[156:157], _number(header[124:136])
            if kind in (b"x", b"X", b"g"):
                records = _records(self._extended(size))
                if kind == b"g" and {b"path", b"size"} & set(records):
                    raise _Damaged("a global header names all members alike")
                extended |= records
            elif kind == b"L":
                extended[b"path"] = self._extended(size).rstrip(b"\0")
            elif kind == b"K":
                self._extended(size)
            else:
                return self._member(header, kind, size, extended)
        raise _Damaged(f"more than {_MAX_HEADERS_IN_A_ROW} extended headers in a row")

    def _member(self, header: bytes, kind: bytes, size: int, extended: dict[bytes, bytes]) -> Member:
        path = extended.get(b"path") or _path(header)
        if len(path) > _MAX_PATH_BYTES:
            raise _Damaged(f"a path of {len(path)} bytes")
        name = path.decode("utf-8", "surrogateescape")
        if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in extended):
            raise _Damaged(f"member {gate.shown(name)} is sparse; make the archive without --sparse")
        if b"size" in extended:
            size = _decimal(extended[b"size"])
        is_file = kind in (b"0", b"\0", b"7") and not name.endswith("/")
        has_content = is_file or kind not in (b"\0", b"0", b"1", b"2", b"3", b"4", b"5", b"6")
        self._left = size if has_content else 0
        self._padding = -self._left % _BLOCK
        return Member(name, self._left, is_file)

    def _extended(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise _Damaged(f"an extended header of {size} bytes")
        content = self._exactly(size)
        self._skip(-size % _BLOCK)
        return content

    def _end(self) -> None:
        """Nothing but zeros may follow; on the way the checksum is seen."""
        while True:
            if self._piece.tobytes().strip(b"\0"):
                raise _Damaged("something follows the archive's end")
            self._piece = memoryview(self._source.more())
            if not self._piece:
                return

    def _some(self, most: int) -> memoryview:
        """At least one byte, at most so many."""
        if not self._piece:
            self._piece = memoryview(self._source.more())
            if not self._piece:
                raise _Damaged("it ends too early")
        part, self._piece = self._piece[:most], self._piece[most:]
        return part

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            parts.append(self._some(count))
            count -= len(parts[-1])
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._some(count))
        self._left = self._padding = 0


class _Damaged(Exception):  # noqa: N818
    pass


class _Plain:
    def __init__(self, file: Readable, first: bytes) -> None:
        self._file, self._first = file, first

    def more(self) -> bytes:
        """The next bytes; b"" at the end."""
        first, self._first = self._first, b""
        return first or self._file.read(_PIECE)


class _Gunzip:
    """One gzip member or several, one after another; zeros may follow the last."""

    def __init__(self, file: Readable, first: bytes) -> None:
        self._file, self._packed = file, first
        self._num_packed, self._num_unpacked, self._num_members = len(first), 0, 1
        self._inflate: Any = zlib.decompressobj(_GZIP)

    def more(self) -> bytes:
        """The next unpacked bytes; b"" at the end."""
        while not (self._inflate.eof and self._is_over()):
            if not self._packed:
                self._packed = self._read()
                if not self._packed:
                    raise _Damaged("it ends too early")
            unpacked: bytes = self._inflate.decompress(self._packed, _PIECE)
            self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            self._num_unpacked += len(unpacked)
            if self._num_unpacked > FREE_BYTES + MAX_RATIO * self._num_packed:
                raise _Damaged(f"it unpacks to more than {MAX_RATIO} times its size; recordings do not shrink so much")
            if unpacked:
                return unpacked
        return b""

    def _is_over(self) -> bool:
        """After a member: whether the file ends here; if not, the next member is begun."""
        self._packed = self._packed or self._read()
        if self._packed[:1] == b"\x1f" and self._num_members < _MAX_GZIP_MEMBERS:
            self._inflate = zlib.decompressobj(_GZIP)
            self._num_members += 1
            return False
        while self._packed:
            if self._packed.strip(b"\0"):
                raise _Damaged("something that is not gzip follows its end")
            self._packed = self._read()
        return True

    def _read(self) -> bytes:
        packed = self._file.read(_PIECE)
        self._num_packed += len(packed)
        return packed


def _check_sum(header: bytes) -> None:
    """Some old programs summed signed bytes."""
    others = header[:148] + b" " * 8 + header[156:]
    total = sum(others)
    signed = total - 256 * sum(byte > 127 for byte in others)
    if _number(header[148:156]) not in (total, signed):
        raise _Damaged("a header is damaged, or this is no tar archive")


def _number(field: bytes) -> int:
    """A number in octal digits, or in bytes after one with only its highest bit set."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    else:
        digits = field.partition(b"\0")[0].strip()
        if digits.strip(b"01234567"):
            raise _Damaged(f"a header is damaged: the number {gate.shown(field)}")
        value = int(digits or b"0", 8)
    if value > _MAX_MEMBER_BYTES:
        raise _Damaged(f"a member of {value} bytes")
    return value


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20 or int(digits) > _MAX_MEMBER_BYTES:
        raise _Damaged(f"the number {gate.shown(digits)} in an extended header")
    return int(digits)


def _path(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(content: bytes) -> dict[bytes, bytes]:
    """The records "LENGTH KEY=VALUE\\n" of an extended header."""
    records: dict[bytes, bytes] = {}
    begin = 0
    while begin < len(content) and content[begin]:
        blank = content.find(b" ", begin, begin + 9)
        end = begin + _decimal(content[begin:blank]) if blank > 0 else 0
        if not blank < end <= len(content) or content[end - 1] != ord("\n"):
            raise _Damaged("an extended header is damaged")
        key, equals, value = content[blank + 1 : end - 1].partition(b"=")
        if not equals:
            raise _Damaged("an extended header is damaged")
        records[key] = value
        begin = end
    return records
