"""The viewer's video: each frame enlarged, beside it the keys and the mouse, recorded and predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2p.recording.film import VideoWriter

if TYPE_CHECKING:
    from p2p.actions import Action
    from p2p.evaluate.clip import Clip

FRAME_PX, PANEL_PX, CAPTION_PX = 480, 320, 60
_BACK, _TEXT, _DIM, _UP = (24, 26, 30), (232, 232, 232), (140, 144, 152), (58, 62, 70)
RECORDED_RGB, PREDICTED_RGB = (255, 190, 60), (90, 180, 255)
_LARGEST_ROW_PX, _ROWS_PX, _COLUMN_PX = 28, 380, 84


def drawn_frames(clip: Clip) -> Iterator[NDArray[np.uint8]]:
    """Pictures uint8 [540, 800, 3] of the clip, one per frame."""
    names = clip.names()
    for index in range(len(clip.frames)):
        yield draw_frame(clip, index, names)


def draw_frame(clip: Clip, index: int, names: list[str]) -> NDArray[np.uint8]:
    """One picture: the frame, a row per key with its lamps, the mouse arrows, and the instruction below."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("RGB", (FRAME_PX + PANEL_PX, FRAME_PX + CAPTION_PX), _BACK)
    picture = Image.fromarray(clip.frames[index]).resize((FRAME_PX, FRAME_PX), Image.Resampling.NEAREST)
    canvas.paste(picture, (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    predicted = clip.predicted[index] if clip.predicted is not None else None
    columns: list[tuple[str, tuple[int, int, int], Action | None]] = [("recorded", RECORDED_RGB, clip.recorded[index])]
    if clip.predicted is not None:
        columns.append(("predicted", PREDICTED_RGB, predicted))
    left, row_px = FRAME_PX + 110, min(_LARGEST_ROW_PX, _ROWS_PX // max(len(names), 1))
    mouse_y = 50 + len(names) * row_px + 40
    for column, (title, colour, action) in enumerate(columns):
        x = left + column * (_COLUMN_PX + 10)
        pen.text((x, 12), title, fill=colour, font=font)
        for row, name in enumerate(names):
            box = (x, 40 + row * row_px, x + _COLUMN_PX, 40 + row * row_px + row_px - 6)
            lit = action is not None and name in _held(action)
            pen.rounded_rectangle(box, radius=4, fill=colour if lit else _UP)
        _mouse(pen, (x + _COLUMN_PX // 2, mouse_y), colour, action, font)
    for row, name in enumerate(names):
        pen.text((FRAME_PX + 14, 40 + row * row_px + row_px // 2 - 3), name, fill=_TEXT, font=font, anchor="lm")
    pen.text((FRAME_PX + 14, mouse_y), "mouse", fill=_TEXT, font=font, anchor="lm")
    seconds = (clip.start + index) / clip.frame_rate_hz
    state = f"frame {clip.start + index}   {seconds:.2f} s   actions of: {clip.who[index]}"
    pen.text((10, FRAME_PX + 8), state, fill=_DIM, font=font)
    pen.text((10, FRAME_PX + 32), clip.texts[index], fill=_TEXT, font=font)
    return np.asarray(canvas)


def _held(action: Action) -> set[str]:
    return {*action.keys, *(f"mouse {button}" for button in action.buttons)}


def _mouse(pen: Any, centre: tuple[int, int], colour: tuple[int, int, int], action: Action | None, font: Any) -> None:
    """The motion as a line whose length grows with the root of the distance, and its pixels below."""
    x, y = centre
    pen.ellipse((x - 34, y - 34, x + 34, y + 34), outline=_UP, width=2)
    if action is None:
        return
    distance = math.hypot(action.dx, action.dy)
    if distance > 0:
        length = min(32.0, 4 * math.sqrt(distance))
        pen.line((x, y, x + action.dx / distance * length, y + action.dy / distance * length), fill=colour, width=4)
    pen.text((x, y + 44), f"{action.dx:+d}, {action.dy:+d}", fill=_DIM, font=font, anchor="mm")


def write_video(pictures: Iterator[NDArray[np.uint8]], path: Path, frame_rate_hz: int, crf: int = 20) -> None:
    """An H.264 MP4 that browsers play, of pictures uint8 [Y, X, 3] with even sides; whole or not there at all."""
    with VideoWriter(path, frame_rate_hz, crf) as film:
        for picture in pictures:
            film.add(picture)
