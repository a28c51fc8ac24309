"""zstd, with a limit on what comes out.

The frame's header says how much that is, so it is looked at before anything is unpacked: a few kilobytes can hold
gigabytes.
"""

from __future__ import annotations

from p2p.gate import Refused

_MAGIC = b"\x28\xb5\x2f\xfd"
_RLE, _RESERVED = 1, 3  # types of a block


def compress(data: bytes, level: int = 3) -> bytes:
    """zstd frame of `data`."""
    import zstd

    return bytes(zstd.compress(data, level))


def decompress(data: bytes, max_bytes: int, where: str) -> bytes:
    """The bytes in one zstd frame, at most `max_bytes`; b"" gives b"". `where` names it in errors.

    Raises:
        Refused: when it is not a single whole zstd frame, does not say how long its content is, or holds more.
    """
    import zstd

    if not data:
        return b""
    size = _content_size(data, where)
    if size > max_bytes:
        raise Refused(f"{where}: {size} bytes when unpacked; at most {max_bytes} are taken")
    try:
        return bytes(zstd.decompress(data))
    except zstd.Error as error:
        raise Refused(f"{where}: a damaged zstd frame: {error}") from error


def _content_size(data: bytes, where: str) -> int:
    """What the header of the frame promises (RFC 8878, 3.1.1); the frame must be all that there is."""
    if data[:4] != _MAGIC or len(data) < 6:
        raise Refused(f"{where}: not a zstd frame")
    descriptor = data[4]
    is_single, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    num_size_bytes = (is_single, 2, 4, 8)[descriptor >> 6]
    if not num_size_bytes:
        raise Refused(f"{where}: a zstd frame that does not say how long its content is")
    begin = 5 + (1 - is_single) + (0, 1, 2, 4)[descriptor & 3]
    end = begin + num_size_bytes
    if _end_of_blocks(data, end) + 4 * has_checksum != len(data):
        raise Refused(f"{where}: a zstd frame that is cut off, or not the only one")
    return int.from_bytes(data[begin:end], "little") + (256 if num_size_bytes == 2 else 0)


def _end_of_blocks(data: bytes, position: int) -> int:
    """Where the last block ends; -1 when there is none."""
    while position + 3 <= len(data):
        header = int.from_bytes(data[position : position + 3], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == _RESERVED:
            return -1
        position += 3 + (1 if kind == _RLE else size)
        if is_last:
            return position
    return -1
