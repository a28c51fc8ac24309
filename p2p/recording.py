"""One raw recording, a folder with annotation.proto and 192x192.mp4: read, and written.

frame_annotations[i] describes frame i, so annotation i+1 holds the action that followed frame i. An action whose
`is_known` is false says nothing; one whose keys are empty says that no key was held.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from p2p.actions import Action
from p2p.proto import video_annotation_pb2 as messages

if TYPE_CHECKING:
    import av.container
    import av.video.stream

ANNOTATION_FILE = "annotation.proto"
VIDEO_FILE = "192x192.mp4"
FRAME_RATE_HZ = 20
TEXT_ANNOTATOR = "p2p"
TEXT_TOKENIZER = "gemma"
USER, SYSTEM, UNKNOWN = "user", "system", "unknown"  # whose an action is


# ------------------------------------------------------------------ reading


def read_annotation(path: Path) -> messages.VideoAnnotation:
    """The annotation of a recording; `path` is the file, or the recording's folder.

    Raises:
        ValueError: when there is no such file, or it is not a `VideoAnnotation`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ANNOTATION_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a recording is a folder with {ANNOTATION_FILE} and {VIDEO_FILE}")
    return parse_annotation(path.read_bytes(), str(path))


def parse_annotation(content: bytes, where: str) -> messages.VideoAnnotation:
    """The annotation in the bytes of an annotation.proto file; `where` names it in errors.

    Raises:
        ValueError: when the bytes are empty or not a `VideoAnnotation`.
    """
    if not content:
        raise ValueError(f"{where}: empty file, expected a serialized VideoAnnotation")
    try:
        return messages.VideoAnnotation.FromString(content)
    except DecodeError as error:
        raise ValueError(f"{where}: not a serialized VideoAnnotation ({error}); the file is damaged") from error


def write_annotation(annotation: messages.VideoAnnotation, path: Path) -> None:
    """Write the annotation; the file appears under its name only when complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(annotation.SerializeToString(deterministic=True))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def executed_action(frame: messages.FrameAnnotation) -> tuple[Action | None, str]:
    """The action that was executed, and whose it was: SYSTEM's if it is known, else USER's, else none (UNKNOWN)."""
    for message, who in ((frame.system_action, SYSTEM), (frame.user_action, USER)):
        if message.is_known:
            delta = message.mouse.mouse_delta_px
            buttons = tuple(sorted(set(message.mouse.buttons_down)))
            return Action(tuple(sorted(set(message.keyboard.keys))), buttons, int(delta.x), int(delta.y)), who
    return None, UNKNOWN


@dataclass(frozen=True)
class TextSpan:
    """An instruction: it starts at annotation `index` and holds for `num_frames` frames."""

    index: int
    num_frames: int
    instruction: str
    version: str
    embedding: NDArray[np.float32] | None  # [n_text, D]


def text_spans(
    annotation: messages.VideoAnnotation,
    versions: Sequence[str],
    tokenizer: str = TEXT_TOKENIZER,
    skipped: Counter[str] | None = None,
) -> list[TextSpan]:
    """The instructions of a recording in order, by the first annotator of each frame that `versions` names.

    One whose duration is not positive is left out and counted in `skipped`; one without a usable embedding has
    `embedding` None (and is counted if the embedding is there but damaged).
    """
    spans = []
    skipped = Counter() if skipped is None else skipped
    for index, frame in enumerate(annotation.frame_annotations):
        chosen = [t for t in frame.frame_text_annotation if t.frame_text_annotator.version in versions]
        if not chosen:
            continue
        text, version = chosen[0], chosen[0].frame_text_annotator.version
        if not 0 < text.duration < float("inf"):
            skipped["text with a duration that is not positive"] += 1
            continue
        # The float32 of the message is a Python float here, that is, widened before the product.
        num_frames = int(text.duration * FRAME_RATE_HZ)
        embedding = _embedding(text, version, tokenizer, skipped)
        spans.append(TextSpan(index, num_frames, text.instruction, version, embedding))
    return spans


def _embedding(
    text: messages.FrameTextAnnotation, version: str, tokenizer: str, skipped: Counter[str]
) -> NDArray[np.float32] | None:
    by_tokenizer = text.text_embedding_dict
    if version not in by_tokenizer or tokenizer not in by_tokenizer[version].text_embeddings:
        return None
    tensor = by_tokenizer[version].text_embeddings[tokenizer]
    values, shape = np.array(tensor.values, dtype=np.float32), tuple(tensor.shape)
    fits = len(shape) == 2 and min(shape) > 0 and shape[0] * shape[1] == values.size
    if not fits or not np.isfinite(values).all():
        skipped["text with a damaged embedding"] += 1
        return None
    return values.reshape(shape)


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The frames uint8 [Y, X, 3] of a video file, one after another; needs PyAV.

    Raises:
        ValueError: when the file is missing or cannot be decoded.
    """
    import av
    from av.video.reformatter import VideoReformatter

    try:
        with av.open(str(path)) as container:
            reformatter = VideoReformatter()
            for frame in container.decode(video=0):
                yield np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: cannot be decoded as a video: {error}") from error


# ------------------------------------------------------------------ writing


def action_message(action: Action | None) -> messages.LowLevelAction:
    """The message of an action; None becomes an unknown one."""
    if action is None:
        return messages.LowLevelAction(is_known=False)
    message = messages.LowLevelAction(is_known=True)
    message.keyboard.keys.extend(action.keys)
    message.mouse.mouse_delta_px.x = action.dx
    message.mouse.mouse_delta_px.y = action.dy
    message.mouse.buttons_down.extend(action.buttons)
    return message


class RecordingWriter:
    """Writes one recording; the folder appears under its name only when `close` has completed it.

    Used as a context manager: an exception inside discards what was written.

    Args:
        folder: the recording's folder; it must not exist.
        size: (height, width) of the frames.
        game: the name of the environment, `env` in the metadata; `game_subtype` its `env_subtype`.
        gop: the most frames from one keyframe to the next.
        preset, crf: x264's speed and quality.
        text_tokenizer: the embedder of the instructions, under whose name their embeddings are kept.

    Raises:
        ValueError: when the folder exists already.
    """

    def __init__(
        self,
        folder: Path,
        recording_id: str,
        frame_rate_hz: int = FRAME_RATE_HZ,
        size: tuple[int, int] = (192, 192),
        game: str = "",
        game_subtype: str = "",
        gop: int = 250,
        preset: str = "veryfast",
        crf: int = 17,
        text_tokenizer: str = TEXT_TOKENIZER,
    ) -> None:
        self.folder = Path(folder)
        self.num_frames = 0
        if self.folder.exists():
            raise ValueError(f"{self.folder}: exists already; name a new folder for the recording")
        self._temporary = self.folder.with_name(f".{self.folder.name}.partial-{os.getpid()}")
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self._size = size
        self._annotation = messages.VideoAnnotation()
        metadata = self._annotation.metadata
        metadata.id, metadata.frames_per_second, metadata.timestamp = recording_id, frame_rate_hz, int(time.time())
        metadata.env.env, metadata.env.env_subtype = game, game_subtype
        self._pending = messages.FrameAnnotation(user_action=action_message(None))
        self._text_tokenizer = text_tokenizer
        self._text: str = ""
        self._text_start = 0
        self._container, self._stream = self._open_video(frame_rate_hz, gop, preset, crf)

    def _open_video(
        self, frame_rate_hz: int, gop: int, preset: str, crf: int
    ) -> tuple[av.container.OutputContainer, av.video.stream.VideoStream]:
        import av

        height, width = self._size
        container = av.open(str(self._temporary / f"{width}x{height}.mp4"), mode="w")
        options = {"preset": preset, "crf": str(crf)}
        stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        return container, stream

    def add(
        self,
        frame: NDArray[np.uint8],
        user: Action | None,
        system: Action | None,
        text: str | None = None,
        text_embedding: NDArray[Any] | None = None,
    ) -> None:
        """Append a frame uint8 [Y, X, 3] with the action that followed it (None: not known, or nobody).

        `text` is the instruction in force; where it starts and how long it holds follows from its changes.
        """
        import av

        if frame.shape != (*self._size, 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame of type {frame.dtype} and shape {frame.shape}: expected uint8 {(*self._size, 3)}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.num_frames
        picture.time_base = Fraction(1, int(self._annotation.metadata.frames_per_second))
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
        self._annotation.frame_annotations.append(self._pending)
        self.num_frames += 1
        self._pending = messages.FrameAnnotation(user_action=action_message(user))
        if system is not None:
            self._pending.system_action.CopyFrom(action_message(system))
        if (text or "") != self._text:
            self._start_text(text or "", text_embedding)

    def _start_text(self, text: str, embedding: NDArray[Any] | None) -> None:
        """Ends the instruction in force and begins another on the annotation that is pending."""
        self._end_text()
        self._text, self._text_start = text, self.num_frames
        if not text:
            return
        entry = self._pending.frame_text_annotation.add(instruction=text)
        entry.frame_text_annotator.provider = entry.frame_text_annotator.version = TEXT_ANNOTATOR
        if embedding is not None:
            tensor = entry.text_embedding_dict[TEXT_ANNOTATOR].text_embeddings[self._text_tokenizer]
            tensor.shape.extend(embedding.shape)
            tensor.values.extend(np.asarray(embedding, dtype=np.float32).ravel().tolist())

    def _end_text(self) -> None:
        if self._text and self._text_start < len(self._annotation.frame_annotations):
            num_frames = self.num_frames - self._text_start
            entry = self._annotation.frame_annotations[self._text_start].frame_text_annotation[0]
            entry.duration = (num_frames + 0.25) / FRAME_RATE_HZ  # a reader cuts it down to whole frames

    def close(self) -> Path | None:
        """Complete the recording; returns its folder, or None (and leaves nothing) when it has no frame."""
        if self.num_frames == 0:
            self.discard()
            return None
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        self._end_text()
        write_annotation(self._annotation, self._temporary / ANNOTATION_FILE)
        for file in self._temporary.iterdir():
            _sync(file)
        _sync(self._temporary)
        os.rename(self._temporary, self.folder)
        _sync(self.folder.parent)
        return self.folder

    def discard(self) -> None:
        """Give the recording up; nothing of it stays."""
        self._container.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
