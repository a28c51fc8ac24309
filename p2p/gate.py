"""What comes from outside becomes a checked value here, or is refused in words.

Names, numbers, JSON and files of shards, checkpoints, policies, recordings and archives are a stranger's until they
have passed. Readers of the formats stand beside their writers (p2p/format/, p2p/manifest.py, ...) and use these
checks; nobody else trusts a name or a size.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_NAME_BYTES = 255  # of a path's component, on every file system that matters
MAX_JSON_BYTES = 1 << 30
_SHOWN_CHARACTERS = 200
_CONTAINERS = reprlib.Repr()
_CONTAINERS.maxlevel, _CONTAINERS.maxstring = 2, 100


class Refused(ValueError):  # noqa: N818  a verdict on what was given
    """What was given does not pass; the message says what it is, where, and what was expected."""


def plain_name(name: object, where: str) -> str:
    """The name of one file or folder: a single component that neither climbs nor hides nor controls a terminal.

    Raises:
        Refused: for anything that is not text, is empty, `.` or `..`, holds a separator, a control character or
            a lone surrogate, or is longer than a file system takes. `where` says whose name it is.
    """
    if not isinstance(name, str) or not name:
        raise Refused(f"{where}: the name is {shown(name)}; expected text")
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise Refused(f"{where}: the name {shown(name)} is not valid UTF-8") from None
    if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable() or num_bytes > MAX_NAME_BYTES:
        raise Refused(f"{where}: {shown(name)} is not the plain name of one file (no separators, at most 255 bytes)")
    return name


def plain_path(path: object, where: str) -> str:
    """A relative path with forward slashes, each part of which is a `plain_name`.

    Raises:
        Refused: as `plain_name`, naming the whole path.
    """
    if not isinstance(path, str) or not path:
        raise Refused(f"{where}: the path is {shown(path)}; expected text")
    for part in path.split("/"):
        plain_name(part, f"{where}, path {shown(path)}")
    return path


def whole_number(value: object, where: str, low: int, high: int) -> int:
    """An integer in low .. high, both included; no bool, no float, no text.

    Raises:
        Refused: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refused(f"{where} is {shown(value)}; expected a whole number in {low}..{high}")
    return value


def number(value: object, where: str, low: float, high: float) -> float:
    """A number in low .. high, both included; no bool, no text, no NaN.

    Raises:
        Refused: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Refused(f"{where} is {shown(value)}; expected a number in {low:g}..{high:g}")
    return float(value)


def mapping(value: object, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: for anything else.
    """
    if not isinstance(value, dict):
        raise Refused(f"{where} is {shown(value)}; expected an object")
    return value


def sequence(value: object, where: str, max_length: int) -> list[Any]:
    """A JSON array of at most `max_length` entries.

    Raises:
        Refused: for anything else.
    """
    if not isinstance(value, list) or len(value) > max_length:
        given = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        raise Refused(f"{where} is {given}; expected a list of at most {max_length}")
    return value


def text(value: object, where: str, max_characters: int) -> str:
    """Text of at most `max_characters` that can be encoded.

    Raises:
        Refused: for anything else.
    """
    if not isinstance(value, str) or len(value) > max_characters:
        given = f"text of {len(value)} characters" if isinstance(value, str) else shown(value)
        raise Refused(f"{where} is {given}; expected text of at most {max_characters} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{where} is {shown(value)}, which is not valid UTF-8") from None
    return value


def finite(values: NDArray[Any], where: str) -> NDArray[Any]:
    """The same array when every number in it is finite.

    Raises:
        Refused: naming how many are not.
    """
    import numpy as np  # only here: a command that is asked for its help loads none

    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        num_bad = int(np.count_nonzero(~np.isfinite(values)))
        raise Refused(f"{where}: {num_bad} of {values.size} numbers are not finite (NaN or infinite)")
    return values


def parse_json(data: bytes | str, where: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON text. NaN and Infinity, which JSON does not have, are refused, and so is a name that stands
    twice in an object: which of the two counts, each reader decides for itself.

    Raises:
        Refused: when it is too long, not UTF-8, not JSON, or nested without end.
    """
    if len(data) > max_bytes:
        raise Refused(f"{where}: {len(data)} bytes of JSON; at most {max_bytes} are read")
    try:
        return json.loads(data, parse_constant=_no_such_number, object_pairs_hook=_distinct)
    except Refused as error:
        raise Refused(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error), quote=False)
        raise Refused(f"{where}: not a JSON text: {reason}") from error


def _no_such_number(name: str) -> NoReturn:
    raise Refused(f"holds {name}, which is no number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        for name, _ in pairs:
            if values.pop(name, pairs) is pairs:
                raise Refused(f"holds the name {shown(name)} twice")
    return values


def open_regular(path: Path | str) -> BufferedReader:
    """A regular file, opened for reading; a link is followed, a pipe, socket, device or folder refused unread.

    Raises:
        Refused: when it is none. OSError: when it is missing or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would block
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(f"{shown(str(path), quote=False)}: not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises:
        Refused: when it is no regular file, or a longer one. OSError: when it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # a buffer of max_bytes would be made for the smallest file
        content = file.read(min(size, max_bytes) + 1)
        if len(content) > size:  # it grew, or does not say its size (/proc)
            content += file.read(max_bytes + 1 - len(content))
    if len(content) > max_bytes:
        raise Refused(f"{shown(str(path), quote=False)}: longer than {max_bytes} bytes, the most that is read of it")
    return content


def shown(value: object, quote: bool = True) -> str:
    """A stranger's value for a message or a terminal: one short line, control characters and escapes spelt out."""
    if isinstance(value, list | tuple | dict | set):
        written = _CONTAINERS.repr(value)  # a few references can spell out without end
    else:
        if isinstance(value, str | bytes):
            value = value[:_SHOWN_CHARACTERS]  # what is longer is cut in any case, and may be very much longer
        written = value if isinstance(value, str) and not quote else repr(value)
    line = printable(written)
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 3] + "..."


def printable(line: str) -> str:
    """The text with everything spelt out that a terminal would obey instead of show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


def printable_lines(lines: Iterable[str]) -> list[str]:
    """Each line as `printable` gives it."""
    return [printable(line) for line in lines]
