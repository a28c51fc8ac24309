"""The actions and instructions of an annotation, as the arrays of the shard format."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.actions import encode_buttons, encode_keys
from p2p.format import FRAME_RATE_HZ, MAX_BUTTONS, MAX_KEYS, SYSTEM, UNKNOWN, USER, Text
from p2p.proto.video_annotation_pb2 import FrameTextAnnotation, VideoAnnotation

_MOST_ROWS = 2**31 - 1


@dataclass(frozen=True)
class Actions:
    """One row per frame: the action of annotation i + 1, that followed frame i; the last row is unknown.

    keys uint8 [n, 6], buttons uint8 [n, 3], mouse_px int32 [n, 2], taken uint8 [n].
    """

    keys: NDArray[np.uint8]
    buttons: NDArray[np.uint8]
    mouse_px: NDArray[np.int32]
    taken: NDArray[np.uint8]


def extract_actions(annotation: VideoAnnotation, num_frames: int, counts: Counter[str]) -> Actions:
    """The rows of a recording of n frames.

    `counts` receives the foreign names of keys and buttons ("key NAME", "button NAME"), each once per frame.
    """
    ids = np.zeros((num_frames, MAX_KEYS + MAX_BUTTONS), np.uint8)
    mouse_px = np.zeros((num_frames, 2), np.int32)
    taken = np.full(num_frames, UNKNOWN, np.uint8)
    seen: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[list[int], Counter[str]]] = {}
    rows: list[int] = []
    row_ids: list[list[int]] = []
    motion: list[tuple[int, int]] = []
    for row, frame in enumerate(annotation.frame_annotations[1:num_frames]):
        if frame.system_action.is_known:
            action, taken[row] = frame.system_action, SYSTEM
        elif frame.user_action.is_known:
            action, taken[row] = frame.user_action, USER
        else:
            continue
        mouse = action.mouse
        names = tuple(action.keyboard.keys), tuple(mouse.buttons_down)
        known = seen.get(names)
        if known is None:
            known = seen[names] = _encode_names(*names)
        if known[1]:
            counts.update(known[1])
        delta = mouse.mouse_delta_px
        rows.append(row)
        row_ids.append(known[0])
        motion.append((delta.x, delta.y))
    if rows:
        ids[rows], mouse_px[rows] = row_ids, motion
    return Actions(ids[:, :MAX_KEYS], ids[:, MAX_KEYS:], mouse_px, taken)


def _encode_names(keys: tuple[str, ...], buttons: tuple[str, ...]) -> tuple[list[int], Counter[str]]:
    unknown: Counter[str] = Counter()
    return encode_keys(keys, MAX_KEYS, unknown) + encode_buttons(buttons, MAX_BUTTONS, unknown), unknown


def extract_texts(annotation: VideoAnnotation, num_frames: int, counts: Counter[str]) -> list[Text]:
    """The instructions of a recording in their order, of every annotator.

    An instruction on annotation i + 1 begins at the row of frame i; that of annotation 0, and those past the
    last step, have no row. `counts` receives what is odd about them.
    """
    texts = []
    for row, frame in enumerate(annotation.frame_annotations[1:num_frames]):
        for text in frame.frame_text_annotation:
            texts.append(_text(text, row, counts))
    return texts


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
            values = np.array(tensor.values, np.float32)
            if math.prod(tensor.shape) == values.size > 0:
                embeddings[tokenizer] = values.reshape(tuple(tensor.shape))
            else:
                counts["text with a damaged embedding"] += 1
    if not embeddings:
        counts["text without an embedding"] += 1
    return Text(row, num_rows, annotator.version, annotator.provider, text.instruction, embeddings)
