"""Straight lines on a map: what they meet, who sees whom, what is in front of somebody."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from p2p.levels.grid import Heights
from p2p.levels.wad import Level

Point = tuple[float, float]
LINE_MARGIN = 8.0  # nobody aims nearer to a line's end


def meetings(level: Level, start: Point, end: Point) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The lines that a straight way meets, and after what share of it."""
    (px, py), (qx, qy) = start, end
    a, b = level.start, level.end
    from_a = (qx - px) * (a[:, 1] - py) - (qy - py) * (a[:, 0] - px)
    from_b = (qx - px) * (b[:, 1] - py) - (qy - py) * (b[:, 0] - px)
    along = b - a
    of_p = along[:, 0] * (py - a[:, 1]) - along[:, 1] * (px - a[:, 0])
    of_q = along[:, 0] * (qy - a[:, 1]) - along[:, 1] * (qx - a[:, 0])
    lines = np.flatnonzero((from_a * from_b <= 0) & (of_p * of_q <= 0) & (of_p != of_q))
    return lines, of_p[lines] / (of_p[lines] - of_q[lines])


def ray_hits(level: Level, start: Point, angle_deg: float, line: int, reach: float) -> bool:
    """Whether a line is in front of somebody who looks in a direction, within reach."""
    angle = math.radians(angle_deg)
    lines, _ = meetings(level, start, (start[0] + reach * math.cos(angle), start[1] + reach * math.sin(angle)))
    return bool((lines == line).any())


def sees(level: Level, floor: Heights, ceiling: Heights, eye: tuple[float, ...], point: tuple[float, ...]) -> bool:
    """Whether nothing of the map hides one point (x, y, z) from another."""
    lines, shares = meetings(level, (eye[0], eye[1]), (point[0], point[1]))
    if (level.back[lines] < 0).any():
        return False
    front, back = level.front[lines], level.back[lines]
    height = eye[2] + shares * (point[2] - eye[2])
    low, high = np.maximum(floor[front], floor[back]), np.minimum(ceiling[front], ceiling[back])
    return bool(((height > low) & (height < high)).all())


def nearest_point(level: Level, line: int, x: float, y: float) -> Point:
    """The point of a line, not too near its ends, that is nearest to (x, y)."""
    a, b = level.start[line], level.end[line]
    length = float(np.hypot(*(b - a)))
    margin = min(LINE_MARGIN, length / 3) / length
    along = float(((x, y) - a) @ (b - a)) / length**2
    point = a + min(max(along, margin), 1 - margin) * (b - a)
    return float(point[0]), float(point[1])


def in_front(level: Level, line: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] How far in front of an (endless) line points [n, 2] lie; behind it: negative."""
    a, along = level.start[line], level.end[line] - level.start[line]
    away = points - a
    return np.asarray((along[1] * away[:, 0] - along[0] * away[:, 1]) / np.hypot(*along))
