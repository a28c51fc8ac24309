"""A recording that is not closed yet, and how it becomes a whole one: by its writer, or after a kill by whoever comes.

It is a hidden folder beside the final one, `.NAME.TOKEN.partial`, with

- `journal`: what annotation.proto will hold, frame after frame; a file that only grows and that readers of
  annotation.proto could read. Its lock is the owner's: it ends with the owner, however that ends.
- the video, fragmented (video.py);
- `reserve`: room on the disk for closing when the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

from google.protobuf.message import DecodeError

from p2p.actions import FRAME_RATE_HZ
from p2p.files import lock_file, sync, take_left, temporary_path
from p2p.gate import printable, read_regular
from p2p.manifest import write_manifest
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording.annotation import (
    ANNOTATION_FILE,
    MANIFEST_KIND,
    MAX_ANNOTATION_BYTES,
    TEXT_ANNOTATOR,
    write_annotation,
)
from p2p.recording.memory import limited_memory
from p2p.recording.video import make_whole

_JOURNAL, _RESERVE, _VIDEOS = "journal", "reserve", "*.mp4"
_NAME = re.compile(r"\.(?P<final>.+)\.(?P<token>[0-9a-f]{16})\.partial", re.DOTALL)
_HEADER_BYTES = 4096  # a video without a frame is no longer
_RESERVE_BYTES = 4 << 20  # an annotation.proto of more than an hour
MAX_FIELDS = 1 << 22  # that are read of a torn journal: one a frame, of more than two days
_FRAME_FIELD = messages.VideoAnnotation.DESCRIPTOR.fields_by_name["frame_annotations"].number
_FRAME_TAG = bytes([_FRAME_FIELD << 3 | 2])  # a field that is a message: its length and its bytes follow


@dataclass(frozen=True)
class Repaired:
    """A recording that was left unfinished: its folder now and the frames in it, or why it could not be completed."""

    folder: Path
    num_frames: int
    problem: str = ""

    def __str__(self) -> str:
        return printable(f"{self.folder}: {self.problem or f'{self.num_frames} frames'}")


class Unfinished:
    """The folder of a recording that is being made, with its journal; this process owns it.

    Args:
        target: the folder of the whole recording.
        header: the annotation without frames.
        reserve: keep room for closing on a full disk.

    Raises:
        OSError: when it cannot be made.
    """

    def __init__(self, target: Path, header: messages.VideoAnnotation, reserve: bool) -> None:
        self.target, self.folder = target, temporary_path(target)
        self.folder.mkdir(parents=True)
        try:
            self._journal: IO[bytes] = open(self.folder / _JOURNAL, "xb", buffering=0)  # noqa: SIM115 (until `release`)
            if reserve:
                _keep_room(self.folder / _RESERVE)
            if not lock_file(self._journal):
                raise AssertionError("a file that was just made is locked")
            self._write(header.SerializeToString())
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def append(self, frame: messages.FrameAnnotation) -> None:
        """The annotation of the next frame.

        Raises:
            OSError: when the disk is full.
        """
        content = frame.SerializeToString()
        self._write(_FRAME_TAG + _varint(len(content)) + content)

    def _write(self, content: bytes) -> None:
        if self._journal.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / _JOURNAL))

    def complete(self, num_frames: int | None, elsewhere: bool) -> tuple[Path, int] | None:
        """As the function `complete`, for what this process has recorded; may be called again after an interruption."""
        return complete(self.folder, self.target, num_frames, elsewhere)

    def release(self) -> None:
        """Own it no longer; when it was not completed, it can be repaired."""
        self._journal.close()

    def remove(self) -> None:
        """Nothing of it stays."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def complete(folder: Path, target: Path, num_frames: int | None, elsewhere: bool) -> tuple[Path, int] | None:
    """Make the whole recording `target` of an unfinished one that the caller owns; returns its folder and length.

    Args:
        num_frames: how many frames the video, which is closed, holds; None: as many as are whole are looked for.
        elsewhere: when there is a recording of this name by now, take another name.

    Returns:
        None when it has no frame; then nothing of it stays.

    Raises:
        ValueError: when it cannot be read, or the name is taken. OSError: when there is no room. It stays as it is.
    """
    (folder / _RESERVE).unlink(missing_ok=True)
    annotation = _read_journal(folder / _JOURNAL)
    if num_frames is None:
        num_frames = _whole_frames(folder, annotation)
    if num_frames == 0:
        shutil.rmtree(folder)
        return None
    del annotation.frame_annotations[num_frames:]
    _set_durations(annotation)
    write_annotation(annotation, folder / ANNOTATION_FILE)
    names = [ANNOTATION_FILE]
    if (video := _video(folder)) is not None:
        sync(video)
        names.append(video.name)
    write_manifest(folder, MANIFEST_KIND, names, {})
    final = _publish(folder, target, elsewhere)
    (final / _JOURNAL).unlink()  # its lock is held until it is closed
    sync(final.parent)
    return final, num_frames


def _whole_frames(folder: Path, annotation: messages.VideoAnnotation) -> int:
    num_annotations, rate = len(annotation.frame_annotations), annotation.metadata.frames_per_second
    if not 0 < rate < 1000:
        raise ValueError(f"{folder}: its journal says {rate} frames a second")
    video = _video(folder)
    num_bytes = 0 if video is None else video.lstat().st_size
    num_frames = 0 if video is None else make_whole(video, Fraction(rate), num_annotations)
    if num_frames == 0 and (num_annotations > rate or num_bytes > _HEADER_BYTES):
        raise ValueError(
            f"{folder}: {num_annotations} frames and {num_bytes} bytes of video were recorded, but no frame can be read"
        )
    return num_frames


def _video(folder: Path) -> Path | None:
    """The video, whatever else (a pipe, say) lies there; a link only where no file is, to be refused by its name."""
    modes = {path: path.lstat().st_mode for path in folder.glob(_VIDEOS)}
    kinds = (stat.S_ISREG, stat.S_ISLNK)
    return next((path for is_kind in kinds for path, mode in modes.items() if is_kind(mode)), None)


def _publish(folder: Path, target: Path, elsewhere: bool) -> Path:
    """Give the folder its final name, which nobody else has."""
    names = [target, target.with_name(f"{target.name}-{secrets.token_hex(4)}")]
    for name in names if elsewhere else names[:1]:
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            try:
                os.rename(folder, name)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            else:
                return name
    raise ValueError(f"{target}: exists already; the recording is in {folder}")


def _keep_room(path: Path) -> None:
    with open(path, "xb") as file:
        os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)


# ------------------------------------------------------------------ the journal


def _varint(number: int) -> bytes:
    """A whole number as protocol buffers write it: seven bits a byte, the lowest first."""
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def _read_journal(path: Path) -> messages.VideoAnnotation:
    """The annotation in a journal; of one with a torn end, the whole frames before it."""
    content = read_regular(path, MAX_ANNOTATION_BYTES)
    with limited_memory():
        try:
            return messages.VideoAnnotation.FromString(content)
        except DecodeError:
            return _read_torn(content)


def _read_torn(content: bytes) -> messages.VideoAnnotation:
    annotation = messages.VideoAnnotation()
    position = 0
    for _ in range(MAX_FIELDS):
        end = _field_end(content, position)
        try:
            annotation.MergeFrom(messages.VideoAnnotation.FromString(content[position:end]))
        except DecodeError:
            break
        position = end
        if position >= len(content):
            break
    return annotation


def _field_end(content: bytes, position: int) -> int:
    """Where the field that begins at `position` ends; all of a journal's have tags of one byte."""
    after, length, shift = position + 1, 0, 0
    while after < len(content) and shift < 35:
        byte = content[after]
        length |= (byte & 127) << shift
        after, shift = after + 1, shift + 7
        if byte < 128:
            break
    is_message = content[position] & 7 == 2
    return after + length if is_message else after


def _set_durations(annotation: messages.VideoAnnotation) -> None:
    """How long each instruction held: until the next one, or the empty one that ended it, which is taken out."""
    changes = [
        (index, frame)
        for index, frame in enumerate(annotation.frame_annotations)
        if frame.frame_text_annotation and frame.frame_text_annotation[0].frame_text_annotator.version == TEXT_ANNOTATOR
    ]
    ends = [*(index for index, _ in changes[1:]), len(annotation.frame_annotations)]
    for (index, frame), end in zip(changes, ends, strict=False):
        text = frame.frame_text_annotation[0]
        if text.instruction:
            text.duration = (end - index + 0.25) / FRAME_RATE_HZ  # a reader cuts it down to whole frames
        else:
            del frame.frame_text_annotation[:]


# ------------------------------------------------------------------ after a kill


def repair_recordings(folder: Path) -> list[Repaired]:
    """Complete every recording in `folder` that was left unfinished; one whose owner lives is not touched.

    One without a frame is removed, and not named in the result.
    """
    found = []
    for unfinished, name in _left(folder):
        try:
            made = complete(unfinished, unfinished.with_name(name), None, elsewhere=True)
        except (ValueError, OSError) as error:
            found.append(Repaired(unfinished, 0, str(error)))
        else:
            found += [Repaired(*made)] if made is not None else []
    return found


def discard_unfinished(folder: Path, names: Collection[str]) -> None:
    """Remove what was left unfinished of the recordings `names`, to make them again; not what somebody makes now."""
    for unfinished, name in _left(folder):
        if name in names:
            shutil.rmtree(unfinished)


def _left(folder: Path) -> Iterator[tuple[Path, str]]:
    """The unfinished recordings that nobody owns, owned meanwhile, and their final names."""
    for unfinished in sorted(folder.glob(".*.partial")):
        match = _NAME.fullmatch(unfinished.name)
        if match is None or unfinished.is_symlink():
            continue
        lock = take_left(unfinished / _JOURNAL)
        if lock is not None:
            with lock:
                yield unfinished, match["final"]
