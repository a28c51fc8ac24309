"""annotation.proto of a recording: read within limits, written as Recap writes it.

frame_annotations[i] describes frame i, so annotation i+1 holds the action that followed frame i. An action whose
`is_known` is false says nothing; one whose keys are empty says that no key was held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.files import write_file
from p2p.gate import read_regular
from p2p.proto import video_annotation_pb2 as messages
from p2p.recording.memory import limited_memory

ANNOTATION_FILE = "annotation.proto"
VIDEO_FILE = "192x192.mp4"
MANIFEST_KIND = "recording"  # of the manifest beside them, which names both; Recap writes none
MAX_ANNOTATION_BYTES = 1 << 29  # a day of play with Recap's input events; a parsed message takes several times as much
ANNOTATION_VERSION = 7  # of Recap's annotations: both actions are there, times are nanoseconds
TEXT_ANNOTATOR = "p2p"
TEXT_TOKENIZER = "gemma"
USER, SYSTEM, UNKNOWN = "user", "system", "unknown"  # whose an action is


def read_annotation(path: Path) -> messages.VideoAnnotation:
    """The annotation of a recording; `path` is the file, or the recording's folder.

    Raises:
        ValueError: when there is no such regular file of at most MAX_ANNOTATION_BYTES, or it is not a
            `VideoAnnotation`.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ANNOTATION_FILE
    try:
        content = read_regular(path, MAX_ANNOTATION_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{path}: no such file; a recording is a folder with {ANNOTATION_FILE} and {VIDEO_FILE}"
        ) from None
    return parse_annotation(content, str(path))


def parse_annotation(content: bytes, where: str) -> messages.VideoAnnotation:
    """The annotation in the bytes of an annotation.proto file; `where` names it in errors.

    Raises:
        ValueError: when the bytes are empty, not a `VideoAnnotation`, or one that takes more than MAX_MEMORY_BYTES.
    """
    if not content:
        raise ValueError(f"{where}: empty file, expected a serialized VideoAnnotation")
    try:
        with limited_memory():
            return messages.VideoAnnotation.FromString(content)
    except DecodeError as error:
        raise ValueError(f"{where}: not a serialized VideoAnnotation ({error}); the file is damaged") from error


def write_annotation(annotation: messages.VideoAnnotation, path: Path) -> None:
    """Write the annotation; the file appears under its name only when complete."""
    write_file(path, annotation.SerializeToString(deterministic=True))


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


def action_message(action: Action | None) -> messages.LowLevelAction:
    """The message of an action; None becomes an unknown one. When no key is held there is no keyboard message."""
    if action is None:
        return messages.LowLevelAction(is_known=False)
    message = messages.LowLevelAction(is_known=True)
    if action.keys:
        message.keyboard.keys.extend(action.keys)
    mouse = message.mouse
    delta = mouse.mouse_delta_px
    delta.x, delta.y = action.dx, action.dy
    if action.buttons:
        mouse.buttons_down.extend(action.buttons)
    return message


def frame_message(user: Action | None, system: Action | None) -> messages.FrameAnnotation:
    """Both actions of a frame; of whom nothing is known, it says so."""
    return messages.FrameAnnotation(user_action=action_message(user), system_action=action_message(system))
