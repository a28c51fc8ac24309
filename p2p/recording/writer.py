"""Writes one recording, such that what was recorded survives every end: Ctrl-C, an error, a full disk, a kill."""

from __future__ import annotations

import contextlib
import time
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.config import FRAME_SIZE
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording.annotation import (
    ANNOTATION_VERSION,
    TEXT_ANNOTATOR,
    TEXT_TOKENIZER,
    frame_message,
)
from p2p.recording.unfinished import Unfinished
from p2p.recording.video import open_stream


class RecordingWriter:
    """Writes one recording; the folder appears under its name only when `close` has completed it.

    Used as a context manager: an exception inside closes it too, with the frames that were added. After a kill,
    `repair_recordings` completes it; it lacks at most video.FRAGMENT_S and what the encoder held (with the preset
    ultrafast one frame, with others up to half a second more).

    Args:
        folder: the recording's folder; it must not exist.
        size: (height, width) of the frames.
        game: the name of the environment, `env` in the metadata; `game_subtype` its `env_subtype`.
        gop: the most frames from one keyframe to the next.
        preset, crf: x264's speed and quality.
        text_tokenizer: the embedder of the instructions, under whose name their embeddings are kept.
        whole_only: of one that an exception ends, nothing stays; for what can be recorded again.

    Raises:
        ValueError: when the folder exists already. OSError: when there is no room.
    """

    def __init__(
        self,
        folder: Path,
        recording_id: str,
        frame_rate_hz: int = FRAME_RATE_HZ,
        size: tuple[int, int] = (FRAME_SIZE, FRAME_SIZE),
        game: str = "",
        game_subtype: str = "",
        gop: int = 250,
        preset: str = "veryfast",
        crf: int = 17,
        text_tokenizer: str = TEXT_TOKENIZER,
        whole_only: bool = False,
    ) -> None:
        import av.error

        self.folder = Path(folder)
        self.num_frames = 0
        if self.folder.exists():
            raise ValueError(f"{self.folder}: exists already; name a new folder for the recording")
        header = messages.VideoAnnotation(version=ANNOTATION_VERSION)
        metadata = header.metadata
        metadata.id, metadata.frames_per_second = recording_id, frame_rate_hz
        metadata.timestamp = time.time_ns() // 1_000_000
        metadata.env.env, metadata.env.env_subtype = game, game_subtype
        self._size, self._frame_rate_hz, self._whole_only = size, frame_rate_hz, whole_only
        self._num_packets = 0
        self._is_open = True
        self._pending = frame_message(None, None)
        self._text_tokenizer, self._text = text_tokenizer, ""
        self._video_error: type[Exception] = av.error.FFmpegError
        self._unfinished = Unfinished(self.folder, header, reserve=not whole_only)
        try:
            video = self._unfinished.folder / f"{size[1]}x{size[0]}.mp4"
            options = {"preset": preset, "crf": str(crf)}
            self._container, self._stream = open_stream(video, frame_rate_hz, size, gop, options)
        except BaseException:
            self._unfinished.remove()
            raise

    def add(
        self,
        frame: NDArray[np.uint8],
        user: Action | None,
        system: Action | None,
        text: str | None = None,
        text_embedding: NDArray[Any] | None = None,
        time_ns: int | None = None,
    ) -> None:
        """Append a frame uint8 [Y, X, 3] with the action that followed it (None: not known, or nobody).

        `text` is the instruction in force; where it starts and how long it holds follows from its changes. `time_ns`
        is when the frame was seen, since the recording began; None: when it was due.

        Raises:
            ValueError: for a frame of another size. OSError: when the disk is full; what was added can be closed.
        """
        import av

        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame of type {frame.dtype} and shape {frame.shape}: expected uint8 {(*self._size, 3)}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.num_frames
        picture.time_base = Fraction(1, self._frame_rate_hz)
        due_ns = self.num_frames * 1_000_000_000 // self._frame_rate_hz
        self._pending.frame_time = due_ns if time_ns is None else time_ns
        self._unfinished.append(self._pending)  # before the video: of the two it must never be the shorter one
        self.num_frames += 1
        self._encode(picture)
        self._pending = frame_message(user, system)
        if (text or "") != self._text:
            self._start_text(text or "", text_embedding)

    def _encode(self, picture: Any) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
            self._num_packets += 1

    def _start_text(self, text: str, embedding: NDArray[Any] | None) -> None:
        """Another instruction, or none, from the frame that is pending."""
        self._text = text
        entry = self._pending.frame_text_annotation.add(instruction=text)
        entry.frame_text_annotator.provider = entry.frame_text_annotator.version = TEXT_ANNOTATOR
        if text and embedding is not None:
            tensor = entry.text_embedding_dict[TEXT_ANNOTATOR].text_embeddings[self._text_tokenizer]
            tensor.shape.extend(embedding.shape)
            tensor.values.extend(np.asarray(embedding, dtype=np.float32).ravel().tolist())

    def close(self) -> Path | None:
        """Complete the recording; returns its folder, or None (and leaves nothing) when it has no frame.

        Raises:
            ValueError: when it cannot be completed now; `repair_recordings` can do it later.
        """
        if not self._is_open:
            return self.folder if self.num_frames else None
        self._is_open = False
        try:
            try:
                return self._complete()
            except KeyboardInterrupt:  # whoever was asked to stop while it closes, closes first
                if self._unfinished.folder.exists():
                    self._complete()
                raise
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: cannot be completed: {error}. What was recorded lies in {self._unfinished.folder}; "
                f"when that is mended: p2p repair {self.folder.parent}"
            ) from error
        finally:
            self._unfinished.release()

    def _complete(self) -> Path | None:
        is_whole = False
        with contextlib.suppress(self._video_error):  # then as after a kill
            self._encode(None)
            self._container.close()
            is_whole = self._num_packets == self.num_frames
        made = self._unfinished.complete(self.num_frames if is_whole else None, elsewhere=not self._whole_only)
        if made is None:
            self.num_frames = 0
            return None
        self.folder, self.num_frames = made
        return self.folder

    def discard(self) -> None:
        """Give the recording up; nothing of it stays."""
        self._is_open = False
        with contextlib.suppress(self._video_error):
            self._container.close()
        self._unfinished.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._whole_only:
            self.discard()
        else:
            self.close()
