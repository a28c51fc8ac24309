"""The actions and instructions of an annotation, as the arrays of the shard format."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p import gate
from p2p.actions import FRAME_RATE_HZ, encode_buttons, encode_keys
from p2p.format import MAX_BUTTONS, MAX_KEYS, SYSTEM, UNKNOWN, USER, Text
from p2p.proto.video_annotation_pb2 import FloatTensor, FrameTextAnnotation, VideoAnnotation
from p2p_convert.errors import Rejected

_MOST_ROWS = 2**31 - 1
MAX_TEXTS = 50_000  # of a recording
MAX_NUMBERS = 1 << 20  # of an embedding
_MAX_FOREIGN_NAMES = 100  # of keys and buttons that a recording may add to the counts


@dataclass(frozen=True)
class Actions:
    """One row per frame: the action of annotation i + 1, that followed frame i; the last row is unknown.

    keys uint8 [n, 6], buttons uint8 [n, 3], mouse_px int32 [n, 2], taken uint8 [n].
    """

    keys: NDArray[np.uint8]
    buttons: NDArray[np.uint8]
    mouse_px: NDArray[np.int32]
    taken: NDArray[np.uint8]


def extract(
    annotation: VideoAnnotation, num_frames: int, counts: Counter[str], where: str = "annotation"
) -> tuple[Actions, list[Text]]:
    """The rows of a recording of n frames, and its instructions, of every annotator, in order.

    An instruction on annotation i + 1 begins at the row of frame i; that of annotation 0, and those past the
    last step, have no row.

    `counts` receives the foreign names of keys and buttons ("key NAME", "button NAME"), each once per frame, and
    what is odd about texts.

    Raises:
        Rejected: when there is more text than a recording may hold.
    """
    ids = np.zeros((num_frames, MAX_KEYS + MAX_BUTTONS), np.uint8)
    mouse_px = np.zeros((num_frames, 2), np.int32)
    taken = np.full(num_frames, UNKNOWN, np.uint8)
    whose: list[int] = []
    seen: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[list[int], Counter[str]]] = {}
    foreign: Counter[str] = Counter()
    rows: list[int] = []
    row_ids: list[list[int]] = []
    motion: list[int] = []
    texts: list[Text] = []
    for row, frame in enumerate(annotation.frame_annotations[1:num_frames]):
        if frame.frame_text_annotation:
            if len(texts) + len(frame.frame_text_annotation) > MAX_TEXTS:
                raise Rejected("too much text", f"{where}: more than {MAX_TEXTS} instructions, at annotation {row + 1}")
            texts += [_text(text, row, counts) for text in frame.frame_text_annotation]
        # Each access makes an object, and this loop is most of what a conversion costs beside reading. A repeated
        # field is copied by its slice in half the time that walking over it takes.
        action = frame.system_action
        if action.is_known:
            whose.append(SYSTEM)
        else:
            action = frame.user_action
            if not action.is_known:
                continue
            whose.append(USER)
        mouse = action.mouse
        names = tuple(action.keyboard.keys[:]), tuple(mouse.buttons_down[:])
        known = seen.get(names)
        if known is None:
            known = seen[names] = _encode_names(*names)
        if known[1]:
            foreign.update(known[1])
        delta = mouse.mouse_delta_px
        rows.append(row)
        row_ids.append(known[0])
        motion += (delta.x, delta.y)
    if rows:
        ids[rows] = row_ids
        taken[rows] = whose
        mouse_px[rows] = np.array(motion, np.int32).reshape(-1, 2)
    for name, count in foreign.most_common(_MAX_FOREIGN_NAMES):
        counts[gate.shown(name, quote=False)] += count
    if len(foreign) > _MAX_FOREIGN_NAMES:
        counts["recordings with more foreign names than are counted"] += 1
    return Actions(ids[:, :MAX_KEYS], ids[:, MAX_KEYS:], mouse_px, taken), texts


def _encode_names(keys: tuple[str, ...], buttons: tuple[str, ...]) -> tuple[list[int], Counter[str]]:
    unknown: Counter[str] = Counter()
    return encode_keys(keys, MAX_KEYS, unknown) + encode_buttons(buttons, MAX_BUTTONS, unknown), unknown


def _text(text: FrameTextAnnotation, row: int, counts: Counter[str]) -> Text:
    duration = text.duration  # float32 on the wire, widened here before the product
    num_rows = 0
    if math.isnan(duration) or duration <= 0:
        counts["text with a duration that is not positive"] += 1
    else:
        num_rows = int(min(duration * FRAME_RATE_HZ, _MOST_ROWS))
    annotator = text.frame_text_annotator
    embeddings: dict[str, NDArray[np.float32]] = {}
    if annotator.version in text.text_embedding_dict:
        for tokenizer, tensor in text.text_embedding_dict[annotator.version].text_embeddings.items():
            embedding = _embedding(tensor)
            if embedding is None:
                counts["text with a damaged embedding"] += 1
            else:
                embeddings[tokenizer] = embedding
    if not embeddings:
        counts["text without an embedding"] += 1
    return Text(row, num_rows, annotator.version, annotator.provider, text.instruction, embeddings)


def _embedding(tensor: FloatTensor) -> NDArray[np.float32] | None:
    """float32 [tokens, width]; None when the numbers are not finite, too many, or not as many as the shape says.

    An embedding that is damaged leaves its instruction without one, as if nobody had embedded it: training on NaN
    would lose every weight.
    """
    shape = tuple(tensor.shape)
    if len(shape) != 2 or min(shape) < 1 or not shape[0] * shape[1] == len(tensor.values) <= MAX_NUMBERS:
        return None
    values = np.array(tensor.values, np.float32)
    return values.reshape(shape) if np.isfinite(values).all() else None
