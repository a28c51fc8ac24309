"""From where to go to keys and mouse: the player slides, so velocity is steered; it turns at a person's pace."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2p.actions import Action
from p2p.levels.view import View

TURN_DEG_PER_PIXEL = 0.1318
WALK_SPEED, RUN_SPEED = 8.3, 16.6  # at most, in map units per tic
MAX_TURN_PX = 90  # in a step: 240 degrees a second
TURN_GAIN = 0.4  # the share of the angle that one step turns


@dataclass(frozen=True)
class Move:
    """What the legs are to do: be at (x, y), at most this fast. `look`: the point that the eyes turn to."""

    x: float
    y: float
    look: tuple[float, float]
    speed: float = WALK_SPEED
    pass_by: bool = True  # False: stop there


def act_on(move: Move, view: View, keys: tuple[str, ...] = (), buttons: tuple[str, ...] = ()) -> Action:
    """Keys and mouse that bring the player's velocity nearer to what is wanted, and its eyes to where to look."""
    right, forward = wanted_change(move, view)
    pressed = set(keys)
    if abs(forward) > 0.8:
        pressed.add("w" if forward > 0 else "s")
    if abs(right) > 1.2:
        pressed.add("d" if right > 0 else "a")
    if move.speed > WALK_SPEED and max(abs(right), abs(forward)) > 3:
        pressed.add("LeftShift")
    return Action(tuple(sorted(pressed)), buttons, turn_pixels(view.bearing_deg(*move.look)))


def turn_pixels(bearing_deg: float, gain: float = TURN_GAIN, most: int = MAX_TURN_PX) -> int:
    """The motion of the mouse towards a bearing, bounded."""
    return max(-most, min(most, round(gain * bearing_deg / TURN_DEG_PER_PIXEL)))


def wanted_change(move: Move, view: View) -> tuple[float, float]:
    """By how much the velocity should change, to the right and forward, in units per tic."""
    dx, dy = move.x - view.x, move.y - view.y
    away = math.hypot(dx, dy)
    speed = move.speed if move.pass_by else min(move.speed, max(0.0, away - 4) * 0.12)
    vx, vy = (dx / away * speed, dy / away * speed) if away > 1 else (0.0, 0.0)
    ex, ey = vx - view.vx, vy - view.vy
    angle = math.radians(view.angle_deg)
    return ex * math.sin(angle) - ey * math.cos(angle), ex * math.cos(angle) + ey * math.sin(angle)
