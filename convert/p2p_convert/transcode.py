"""Recordings that are encoded anew: Recap's own (any size) and, if asked for, all others.

A video of about 20 frames a second is taken frame by frame, one annotation to each, as the public dataset was made: its
own times are uniform, while those of the annotation tell when a program noticed the frame. Others are resampled to 20 a
second. Frames are stretched to 192x192 with the function that playing uses, and encoded with x264. That loses what the
encoder drops; packets that are carried over lose nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from p2p.actions import FRAME_RATE_HZ
from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.data.video import RgbConverter
from p2p.proto.video_annotation_pb2 import FrameAnnotation, LowLevelAction, VideoAnnotation
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.decoding import file_frames
from p2p_convert.errors import Rejected
from p2p_convert.packets import open_video, rate_problem, seconds, the_stream

_UNITS_S = (1e-9, 1e-6, 1e-3, 1.0)  # of frame_time, which does not say
_MOST_STRETCHED = 2  # the annotation's times against the video's
_MOST_REPEATED = 20  # times that a frame may be shown: one a second
_MOST_MOTION_PX = 2**31 - 1
_SLACK_S = 0.5 / FRAME_RATE_HZ / 5  # a frame this much late still counts as in time


@dataclass(frozen=True)
class Encoding:
    """How x264 encodes: the most frames from one keyframe to the next, and the quality (lower is better)."""

    gop: int = 50
    crf: int = 17

    def __post_init__(self) -> None:
        if self.gop < 1 or not 0 <= self.crf <= 51:
            raise ValueError(f"--transcode gop={self.gop},crf={self.crf}: write gop of 1 or more, crf from 0 to 51")


def parse_encoding(text: str) -> Encoding:
    """Of "gop=20", "gop=20,crf=23".

    Raises:
        ValueError: for anything else.
    """
    values: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in ("gop", "crf") or not number.isdigit():
            raise ValueError(f"--transcode {text}: write gop=N or gop=N,crf=Q, such as gop=20,crf=17")
        values[name] = int(number)
    return Encoding(**values)


def transcode(
    video: bytes | Path, annotation: VideoAnnotation, encoding: Encoding, budget: Budget
) -> tuple[bytes, VideoAnnotation]:
    """The video at 20 frames a second and 192x192, and the annotation that goes with it.

    Raises:
        Rejected: when the video does not decode, or its times are no recording's.
    """
    frames = file_frames(video, budget.where, budget)
    return encode_anew(_video_times(video, budget), frames, annotation, encoding, budget)


def encode_anew(
    shown: NDArray[np.float64],
    frames: Iterator[VideoFrame],
    annotation: VideoAnnotation,
    encoding: Encoding,
    budget: Budget,
) -> tuple[bytes, VideoAnnotation]:
    """As `transcode`, of frames, and the seconds at which each is shown."""
    if not rate_problem(len(shown), float(np.ptp(shown)) if len(shown) else 0.0):
        return _encode(_resized(frames, np.arange(len(shown)), budget), encoding), annotation
    chosen = resample(_checked(_frame_times(shown, annotation), budget.where))
    return _encode(_resized(frames, chosen, budget), encoding), merge_annotations(annotation, chosen)


def _video_times(video: bytes | Path, budget: Budget) -> NDArray[np.float64]:
    """Seconds at which each frame is shown, by the video, ascending."""
    pts: list[int | None] = []
    with open_video(video, budget.where) as container:
        stream = the_stream(container, budget.where)
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                budget.check(len(pts))
                pts.append(packet.pts)
        return seconds(pts, stream)


def _frame_times(shown: NDArray[np.float64], annotation: VideoAnnotation) -> NDArray[np.float64]:
    """Seconds at which each frame was taken: by the annotation; by the video where that does not fit it."""
    noted = np.array([frame.frame_time for frame in annotation.frame_annotations[: len(shown)]], np.float64)
    if len(noted) != len(shown) or len(shown) < 2 or np.any(np.diff(noted) <= 0):
        return shown
    duration = max(1e-6, float(shown[-1] - shown[0]))
    interval_s = duration / (len(shown) - 1)
    unit = min(_UNITS_S, key=lambda unit: abs(np.log(float(np.median(np.diff(noted))) * unit / interval_s)))
    times = (noted - noted[0]) * unit
    if not duration / _MOST_STRETCHED <= times[-1] <= duration * _MOST_STRETCHED:  # it leaps
        return shown
    return times


def _checked(times: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The same times.

    Raises:
        Rejected: when they ask for more frames than a recording of so many can have.
    """
    duration = float(times[-1] - times[0]) if len(times) else 0.0
    num_wanted = duration * FRAME_RATE_HZ
    if num_wanted > min(MAX_FRAMES, _MOST_REPEATED * len(times)):
        raise Rejected("implausible times", f"{where}: {len(times)} frames in {duration:.6g} s")
    return times


def resample(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frame in force at each twentieth of a second, from the first frame's time to the last's.

    Times in which every frame is (almost) in its place give every frame once.
    """
    if not len(times):
        return np.zeros(0, np.int64)
    count = int((times[-1] - times[0] + _SLACK_S) * FRAME_RATE_HZ) + 1
    ticks = times[0] + np.arange(count) / FRAME_RATE_HZ + _SLACK_S
    return np.searchsorted(times, ticks, side="right") - 1


def merge_annotations(annotation: VideoAnnotation, chosen: Sequence[int] | NDArray[np.int64]) -> VideoAnnotation:
    """One annotation per chosen frame: of what happened since the frame chosen before.

    Motion adds up; keys and buttons held at any time since count as held; instructions are kept. A frame chosen
    twice holds what it held, and nothing moves in between.
    """
    merged = VideoAnnotation(metadata=annotation.metadata)
    source = annotation.frame_annotations
    before = -1
    for frame in (int(number) for number in chosen):
        since = source[before + 1 : frame + 1]
        added = merged.frame_annotations.add()
        if frame == before and frame < len(source):
            since = [_held(source[frame])]
        for name in ("user_action", "system_action"):
            known = [getattr(part, name) for part in since if getattr(part, name).is_known]
            if known:
                getattr(added, name).CopyFrom(_merge(known))
        for part in since:
            added.frame_text_annotation.extend(part.frame_text_annotation)
        before = frame
    return merged


def _merge(actions: Sequence[LowLevelAction]) -> LowLevelAction:
    merged = LowLevelAction(is_known=True)
    merged.keyboard.keys.extend(dict.fromkeys(key for action in actions for key in action.keyboard.keys))
    merged.mouse.buttons_down.extend(dict.fromkeys(b for action in actions for b in action.mouse.buttons_down))
    right = sum(action.mouse.mouse_delta_px.x for action in actions)
    down = sum(action.mouse.mouse_delta_px.y for action in actions)
    if max(abs(right), abs(down)) > _MOST_MOTION_PX:
        raise Rejected("implausible motion", f"the mouse moves by ({right}, {down}) pixels within one frame")
    merged.mouse.mouse_delta_px.x, merged.mouse.mouse_delta_px.y = right, down
    return merged


def _held(frame: FrameAnnotation) -> FrameAnnotation:
    """The same keys and buttons, no motion, no instruction."""
    held = FrameAnnotation(user_action=frame.user_action, system_action=frame.system_action)
    for action in (held.user_action, held.system_action):
        action.mouse.ClearField("mouse_delta_px")
    return held


def _resized(frames: Iterator[VideoFrame], chosen: NDArray[np.int64], budget: Budget) -> Iterator[NDArray[np.uint8]]:
    """The chosen frames, uint8 [192, 192, 3]; a frame chosen twice comes twice. All are decoded, and checked."""
    converter = RgbConverter()
    wanted = np.bincount(chosen)
    number = -1
    for number, frame in enumerate(frames):
        if number < len(wanted) and wanted[number]:
            picture = converter.interleaved(frame)
            if picture.shape[:2] != (FRAME_SIZE, FRAME_SIZE):
                picture = resize(picture, FRAME_SIZE, FRAME_SIZE)
            yield from [picture] * int(wanted[number])
    if number + 1 < len(wanted):
        raise Rejected("video does not decode", f"{budget.where}: {number + 1} frames; its packets are {len(wanted)}")


def _encode(pictures: Iterator[NDArray[np.uint8]], encoding: Encoding) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # x264's macroblock tree gives other bytes each time (its AVX-512 code reads what was in memory before).
        options = {"preset": "veryfast", "crf": str(encoding.crf), "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FRAME_RATE_HZ), options=options)
        stream.width = stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = encoding.gop
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
