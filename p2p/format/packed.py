"""zstd, with a limit on what comes out.

The frame's header says how much that is, so it is asked before anything is unpacked: a few kilobytes can hold
gigabytes. The library gives no more than the header says.
"""

from __future__ import annotations

from p2p.gate import Refused


def compress(data: bytes, level: int = 3) -> bytes:
    """zstd frame of `data`, which says how long it is."""
    from zstandard import ZstdCompressor

    return bytes(ZstdCompressor(level=level).compress(data))


def decompress(data: bytes, max_bytes: int, where: str) -> bytes:
    """The bytes in one zstd frame, at most `max_bytes`; b"" gives b"". `where` names it in errors.

    Raises:
        Refused: when it is not a single whole zstd frame, does not say how long its content is, or holds more.
    """
    from zstandard import ZstdDecompressor, ZstdError, frame_content_size

    if not data:
        return b""
    try:
        size = frame_content_size(data)
        if size <= 0:  # of an empty frame the library looks at nothing else; no writer makes one
            raise Refused(f"{where}: a zstd frame that is empty, or does not say how long its content is")
        if size > max_bytes:
            raise Refused(f"{where}: {size} bytes when unpacked; at most {max_bytes} are taken")
        return bytes(ZstdDecompressor().decompress(data, allow_extra_data=False))
    except ZstdError as error:
        raise Refused(f"{where}: not one whole zstd frame: {error}") from error
