"""Frames out of stored H.264 packets: decodes what a window needs, converts only what it shows.

A decoder belongs to one thread. Colours come from swscale by way of one shared VideoReformatter, the same
arithmetic as PyAV's `frame.to_ndarray(format="rgb24")`.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
import av.logging
import numpy as np
from av.codec.context import ThreadType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from p2p.data.resize import resize
from p2p.format import Segment, Video

Frames = NDArray[np.uint8]

_MIN_PIXEL_LIMIT = 1 << 20


class Undecodable(ValueError):  # noqa: N818  a verdict on packets
    """Packets that do not give the frames that they should; the message names recording, segment and frame."""


class SegmentDecoder:
    """Decodes windows of segments; a window that lies ahead of the latest one is decoded from where that one ended."""

    def __init__(self, converter: RgbConverter | None = None) -> None:
        self._converter = converter or RgbConverter()
        self._video: Video | None = None
        self._codec: VideoCodecContext | None = None
        self._segment: Segment | None = None
        self._decoding: Iterator[VideoFrame] | None = None  # goes on after frame self._next - 1 of the segment
        self._next = self._packet = self._begin = 0
        self._went_on = False

    def rgb(self, segment: Segment, begin: int, end: int) -> Iterator[Frames]:
        """RGB uint8 [Y, X, 3] of the frames begin .. end - 1 of the segment, in order.

        Numbers count from the segment's first frame.

        Raises:
            Undecodable: when the packets do not give these frames, or a damaged one among them.
        """
        for frame in self.frames(segment, begin, end):
            yield self._converter.interleaved(frame)

    def rgb_planes(self, segment: Segment, begin: int, end: int, out: Frames) -> None:
        """Write the frames begin .. end - 1 as RGB planes into out uint8 [end - begin, 3, Y, X].

        A frame of another size is stretched to Y x X.

        Raises:
            Undecodable: when the packets do not give these frames, or a damaged one among them.
        """
        try:
            self._write_planes(segment, begin, end, out)
        except Undecodable:
            if not self._went_on:
                raise
            self._write_planes(segment, begin, end, out)  # anew: the verdict must not depend on what was read before

    def _write_planes(self, segment: Segment, begin: int, end: int, out: Frames) -> None:
        for row, frame in enumerate(self.frames(segment, begin, end)):
            self._converter.planes(frame, out[row])

    def frames(self, segment: Segment, begin: int, end: int) -> Iterator[VideoFrame]:
        """As `rgb`, but frames in the pixel format of the video."""
        if not 0 <= begin < end <= segment.num_frames:
            raise ValueError(f"{_name(segment)}: no frames {begin}..{end - 1}, it has {segment.num_frames}")
        expected = begin
        decoding = self._start(segment, begin)
        try:
            for frame in decoding:
                if frame.pts is None or not 0 <= frame.pts < end:  # hidden, or later than the window
                    continue
                if frame.is_corrupt:  # also of an earlier one: those of the window may refer to it
                    raise Undecodable(f"{_name(segment)}: frame {frame.pts} decodes with errors")
                if frame.pts < begin:
                    continue
                if frame.pts != expected:
                    break
                expected += 1
                if expected == end:
                    self._decoding, self._next = decoding, end
                yield frame
                if expected == end:
                    return
        except av.error.FFmpegError as error:
            self._codec = None  # what it remembers of damaged packets goes with it
            raise Undecodable(f"{_name(segment)}: frame {expected} does not decode: {error.strerror}") from error
        raise Undecodable(f"{_name(segment)}: the packets give no frame {expected}")

    def _start(self, segment: Segment, begin: int) -> Iterator[VideoFrame]:
        """Frames in the order of showing; pts is their number. They begin at the last possible start before `begin`,
        or where the latest window ended, whichever is nearer."""
        decoding, self._decoding, self._begin = self._decoding, None, begin
        first = _first_packet(segment, begin)
        self._went_on = (
            decoding is not None and segment is self._segment and self._next <= begin and first <= self._packet
        )
        if self._went_on:
            assert decoding is not None
            return decoding
        self._segment, self._packet = segment, first
        return self._decode(segment)

    def _decode(self, segment: Segment) -> Iterator[VideoFrame]:
        codec = self._open(segment.video)
        offsets = np.concatenate([[0], np.cumsum(segment.packet_sizes, dtype=np.int64)]).tolist()
        numbers = segment.packet_frames.tolist()
        payload = segment.payload()
        while self._packet < len(numbers):
            index, self._packet = self._packet, self._packet + 1
            packet = av.Packet(payload[offsets[index] : offsets[index + 1]])  # type: ignore[arg-type]  # any buffer will do
            packet.pts = numbers[index]
            # A picture that is not shown and that no other refers to need not be decoded.
            codec.skip_frame = "NONREF" if numbers[index] < self._begin else "DEFAULT"
            yield from codec.decode(packet)
        yield from codec.decode(None)

    def _open(self, video: Video) -> VideoCodecContext:
        if self._codec is not None and video == self._video:
            self._codec.flush_buffers()
            return self._codec
        av.logging.set_level(None)  # torchvision turns FFmpeg's messages on; what is wrong is raised
        codec = av.CodecContext.create(video.codec, "r")
        assert isinstance(codec, VideoCodecContext)
        codec.extradata = video.extradata or None
        codec.thread_count, codec.thread_type = 1, ThreadType.NONE
        codec.color_range, codec.colorspace = video.color_range, video.colorspace
        codec.color_primaries, codec.color_trc = video.color_primaries, video.color_trc
        # A decoder conceals what it cannot decode; here that is an error. The stream's own size has a limit, too.
        # "aggressive": also bits that are left over, by which damage shows in streams without arithmetic coding.
        max_pixels = max(4 * video.width * video.height, _MIN_PIXEL_LIMIT)
        options = {"err_detect": "aggressive+explode", "max_pixels": str(max_pixels)}
        if video.reordered:
            # Without the promise of a reordering depth in the stream, wait for as many frames as it may have.
            options["strict"] = "strict"
        codec.options = options
        codec.open()
        self._video, self._codec = video, codec
        return codec


class RgbConverter:
    """Colour conversion, equal to PyAV's rgb24 bit for bit."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._planar_is_exact: dict[tuple[str, int, int, int, int], bool] = {}

    def interleaved(self, frame: VideoFrame) -> Frames:
        """RGB uint8 [Y, X, 3]."""
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return picture.astype(np.uint8, copy=False)

    def planes(self, frame: VideoFrame, out: Frames) -> None:
        """RGB planes into out uint8 [3, Y, X]; a frame of another size is stretched."""
        _, height, width = out.shape
        if (frame.height, frame.width) != (height, width):
            out[...] = resize(self.interleaved(frame), height, width).transpose(2, 0, 1)
            return
        kind = (frame.format.name, height, width, int(frame.colorspace), int(frame.color_range))
        exact = self._planar_is_exact.get(kind)
        if exact is None:
            exact = self._planar_is_exact[kind] = self._prove_planar(frame)
        if exact:
            self._planar(frame, out)
        else:
            out[...] = self.interleaved(frame).transpose(2, 0, 1)

    def _planar(self, frame: VideoFrame, out: Frames) -> None:
        """By way of swscale's planar output, which spares the transposition (it holds G, B, R)."""
        picture = self._reformatter.reformat(frame, format="gbrp", threads=1)
        _, height, width = out.shape
        for channel, plane in zip((1, 2, 0), picture.planes, strict=True):
            out[channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, :width]

    def _prove_planar(self, frame: VideoFrame) -> bool:
        """Whether planar output equals rgb24 for this kind of frame, on noise of all values and on the frame.

        swscale takes different paths for the two, and which ones hangs on the format, the size and the processor.
        """
        noise = av.VideoFrame(frame.width, frame.height, frame.format.name)
        noise.colorspace, noise.color_range = frame.colorspace, frame.color_range
        values = np.random.default_rng(0)
        for plane in noise.planes:
            plane.update(values.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
        planar = np.empty((3, frame.height, frame.width), np.uint8)
        for picture in (noise, frame):
            self._planar(picture, planar)
            if not np.array_equal(planar.transpose(1, 2, 0), self.interleaved(picture)):
                return False
        return True


def _first_packet(segment: Segment, begin: int) -> int:
    """The packet to start decoding at for frame `begin`."""
    starts = segment.packet_starts
    shown_before = np.concatenate([[0], np.cumsum(segment.packet_frames >= 0)])[starts]
    return int(starts[np.searchsorted(shown_before, begin, side="right") - 1])


def _name(segment: Segment) -> str:
    return f"recording {segment.recording}, segment {segment.index}"
