"""The video of a recording: frames out of it, a stream into it that a kill cannot spoil, and whole frames after a kill.

While a recording is made its MP4 is fragmented: the header, then every FRAGMENT_S a piece with its own index. When it
is closed, FFmpeg turns the same file into a plain MP4, in place; only one that was not closed has to be copied, packet
by packet. No frame refers to a later one (B-frames would): each fragment decodes with what lies before it, and the
times need no edit list, in which FFmpeg 8 loses the last frame of such a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from p2p.files import publish, temporary_path
from p2p.gate import open_regular, shown

if TYPE_CHECKING:
    import av.container
    import av.packet
    import av.video.stream

FRAGMENT_S = 0.4  # of what was encoded, a kill loses at most this much
MAX_FRAME_PIXELS = 1 << 25  # 8192 x 4096
# A playlist that is called .mp4 would have other files opened, or a network.
_READ_OPTIONS = {"format_whitelist": "mov,mp4,matroska,webm,image2,png_pipe", "protocol_whitelist": "file"}
_WRITE_OPTIONS = {
    "movflags": "hybrid_fragmented+empty_moov+default_base_moof",
    "frag_duration": str(int(FRAGMENT_S * 1e6)),
    "flush_packets": "1",
}


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames uint8 [Y, X, 3] of a video file, one after another; needs PyAV.

    Raises:
        ValueError: when the file is missing, no regular file, or cannot be decoded.
    """
    import av
    from av.video.reformatter import VideoReformatter

    try:
        with _open(path) as container:
            reformatter = VideoReformatter()
            for frame in container.decode(video=0):
                if frame.width * frame.height > MAX_FRAME_PIXELS:
                    raise ValueError(f"{path}: {frame.width} x {frame.height} pixels; at most {MAX_FRAME_PIXELS}")
                yield np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: cannot be decoded as a video: {shown(str(error), quote=False)}") from error


def _open(path: Path) -> av.container.InputContainer:
    import av

    open_regular(path).close()  # FFmpeg would wait for a pipe's writer
    return av.open(f"file:{path}", options=_READ_OPTIONS)


# ------------------------------------------------------------------ writing


def open_stream(
    path: Path, frame_rate_hz: int, size: tuple[int, int], gop: int, options: dict[str, str]
) -> tuple[av.container.OutputContainer, av.video.stream.VideoStream]:
    """An H.264 stream into a new file, every FRAGMENT_S of which is on its way to the disk; a plain MP4 once closed.

    `size` is (height, width), `options` the encoder's.
    """
    import av

    container = av.open(f"file:{path}", mode="w", format="mp4", options=_WRITE_OPTIONS)
    stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz), options={**options, "bf": "0"})
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = gop
    stream.codec_context.thread_count = 1
    return container, stream


# ------------------------------------------------------------------ after a kill


def make_whole(path: Path, rate: Fraction, most: int) -> int:
    """Make a plain MP4, in place, of the first frames of a recording's video that was not closed; returns how many.

    The frames, `rate` a second, are those before the first one that is missing or torn, at most `most`. Packets are
    copied as they are. Where there is no room for the copy, the fragmented file stays, less what is torn at its end.
    When there are none, the file is left as it is.

    Raises:
        ValueError: when it is damaged in a way that cannot be copied. OSError: when it cannot be written, or is a link.
    """
    num_whole = _count(path, rate, most)[1]
    if num_whole == 0:
        return 0
    copy = temporary_path(path)
    try:
        _copy(path, copy, num_whole)
        publish(copy, path)
    except OSError:
        _cut_torn_end(path)
        if _count(path, rate, most) != (num_whole, num_whole):
            raise
    finally:
        copy.unlink(missing_ok=True)
    return num_whole


def _cut_torn_end(path: Path) -> None:
    """Drop what lies behind the last whole fragment: a box is its size, its name and its content."""
    with open(path, "r+b", opener=_no_link) as file:
        num_bytes = file.seek(0, os.SEEK_END)
        position = whole = 0
        while position + 16 <= num_bytes:
            file.seek(position)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            if size < 8 or position + size > num_bytes:
                break
            position += size
            if head[4:8] != b"moof":  # it describes the packets of the box behind it
                whole = position
        file.truncate(whole)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@contextlib.contextmanager
def _damage_is_a_value_error(path: Path) -> Iterator[None]:
    """What FFmpeg says of a damaged file becomes one kind of error; that a disk fails or is full stays an OSError."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: cannot be read as a video: {shown(str(error), quote=False)}") from error


def _count(path: Path, rate: Fraction, most: int) -> tuple[int, int]:
    """(packets, how many of the first are frames 0, 1, 2 ... without a gap); none of what is no video."""
    num_packets = num_whole = 0
    os.close(_no_link(str(path), os.O_RDONLY))
    with contextlib.suppress(ValueError, IndexError), _damage_is_a_value_error(path), _open(path) as source:
        for packet in source.demux(source.streams.video[0]):
            if not packet.size:
                continue
            is_next = (
                num_whole == num_packets < most
                and packet.pts is not None
                and packet.time_base is not None
                and not packet.is_corrupt
                and round(packet.pts * packet.time_base * rate) == num_packets
            )
            num_packets += 1
            num_whole += is_next
    return num_packets, num_whole


def _copy(path: Path, copy: Path, num_packets: int) -> None:
    import av

    with (
        _damage_is_a_value_error(path),
        _open(path) as source,
        av.open(f"file:{copy}", mode="w", format="mp4") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = (packet for packet in source.demux(video=0) if packet.size)
        for _, packet in zip(range(num_packets), packets, strict=False):
            packet.stream = stream
            target.mux(packet)
