"""Pictures of play: a frame, enlarged, with the keys and the mouse of its action drawn below it."""

import math
from typing import TYPE_CHECKING

import numpy as np

from p2p.actions import Action
from p2p.environments.game import Frame

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

SCALE = 2
PANEL_HEIGHT = 64
_DOWN, _UP, _TEXT, _BACK = (255, 196, 61), (62, 66, 74), (230, 230, 230), (24, 26, 30)
_SIGNS = {"LeftArrow": "left", "RightArrow": "right", "UpArrow": "up", "DownArrow": "down", "LeftShift": "shift"}


def draw_action(frame: Frame, action: Action, keys: tuple[str, ...], caption: str = "") -> Frame:
    """uint8 [Y, X, 3] -> uint8 [2 Y + 64, 2 X, 3]: the frame, and below it each of `keys`, lit while it is down.

    A key that is down and not among `keys` is added at the end; the mouse has a button box and an arrow.
    """
    from PIL import Image, ImageDraw

    height, width = frame.shape[0] * SCALE, frame.shape[1] * SCALE
    canvas = Image.new("RGB", (width, height + PANEL_HEIGHT), _BACK)
    canvas.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(canvas)
    x = 8
    for key in (*keys, *(key for key in action.keys if key not in keys)):
        x += _box(pen, x, height + 8, _SIGNS.get(key, key), key in action.keys) + 6
    for button in action.buttons:
        x += _box(pen, x, height + 8, f"mouse {button}", True) + 6
    if action.dx or action.dy:
        _arrow(pen, (width - 40, height + 24), action)
    pen.text((8, height + 44), caption, fill=_TEXT)
    return np.asarray(canvas)


def _box(pen: "ImageDraw", x: int, y: int, text: str, lit: bool) -> int:
    """A key cap; returns its width."""
    width = max(30, round(pen.textlength(text)) + 14)
    pen.rounded_rectangle((x, y, x + width, y + 28), radius=5, fill=_DOWN if lit else _UP)
    pen.text((x + width / 2, y + 14), text, fill=_BACK if lit else _TEXT, anchor="mm")
    return width


def _arrow(pen: "ImageDraw", centre: tuple[int, int], action: Action) -> None:
    """The mouse motion as a line whose length grows with the root of the distance."""
    distance = math.hypot(action.dx, action.dy)
    length = min(32.0, 3 * math.sqrt(distance))
    end = (centre[0] + action.dx / distance * length, centre[1] + action.dy / distance * length)
    pen.line((*centre, *end), fill=_DOWN, width=4)
    pen.ellipse((centre[0] - 3, centre[1] - 3, centre[0] + 3, centre[1] + 3), fill=_TEXT)
