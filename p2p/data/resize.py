"""Stretch a frame to the size that the model sees; training and serving use this one function (numpy only).

The filter is an interpolation with a Hamming kernel of one source pixel: two taps an axis, no antialiasing even
when it shrinks. Weights are 16-bit integers; the vertical pass comes first and leaves uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MAX_WEIGHT = 2**15


@dataclass(frozen=True)
class _Axis:
    """The two taps of each output position of one axis."""

    taps: NDArray[np.intp]  # [2 * out], all first taps, then all second ones
    weights: NDArray[np.int32]  # [2, out]
    power: int  # the weights of an output sum to about 2 ** power


def hamming(t: float) -> float:
    """The kernel at distance `t`, in source pixels."""
    if t == 0:
        return 1.0
    if abs(t) >= 1:
        return 0.0
    return (0.54 + 0.46 * math.cos(math.pi * t)) * math.sin(math.pi * t) / (math.pi * t)


@lru_cache(maxsize=32)
def _axis(num_in: int, num_out: int) -> _Axis:
    taps = np.zeros((2, num_out), dtype=np.intp)
    weights = np.zeros((2, num_out), dtype=np.float64)
    for out in range(num_out):
        centre = (out + 0.5) * num_in / num_out
        first, last = max(0, math.floor(centre - 1)), min(num_in, math.ceil(centre + 1)) - 1
        found = [(tap, hamming(tap + 0.5 - centre)) for tap in range(first, last + 1)]
        found = [(tap, weight) for tap, weight in found if weight > 0]
        total = sum(weight for _, weight in found)
        for place, (tap, weight) in enumerate(found):
            taps[place, out], weights[place, out] = tap, weight / total
        if len(found) == 1:
            taps[1, out] = taps[0, out]
    power = 0
    while math.floor(weights.max() * 2 ** (power + 1) + 0.5) < _MAX_WEIGHT:
        power += 1
    return _Axis(taps.reshape(-1), np.floor(weights * 2**power + 0.5).astype(np.int32), power)


def resize(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The frame uint8 [Y, X, C] stretched to uint8 [height, width, C]; the frame itself if it has that size.

    Raises:
        ValueError: when the frame is not uint8 [Y, X, C] with at least one pixel, or the size is not positive.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or 0 in frame.shape or height < 1 or width < 1:
        raise ValueError(
            f"cannot resize a frame of type {frame.dtype} and shape {frame.shape} to {height} x {width}; "
            "expected uint8 [height, width, channels] and a positive size"
        )
    num_rows, num_columns, num_channels = frame.shape
    if (num_rows, num_columns) == (height, width):
        return frame
    vertical, horizontal = _axis(num_rows, height), _axis(num_columns, width)
    # Only the pixels that some output needs are touched, so a large source costs no more than a small one.
    # Whole rows are the quicker way to begin, unless they are absurdly long.
    if num_columns * height <= 8 * num_rows * width:
        needed = frame.take(vertical.taps, axis=0).take(horizontal.taps, axis=1)
    else:
        needed = frame.take(horizontal.taps, axis=1).take(vertical.taps, axis=0)
    rows = _blend(needed.reshape(2, height, -1), vertical.weights[:, :, None], vertical.power)
    columns = rows.reshape(height, 2, width, num_channels).swapaxes(0, 1)
    return _blend(columns, horizontal.weights[:, None, :, None], horizontal.power)


def _blend(taps: NDArray[np.uint8], weights: NDArray[np.int32], power: int) -> NDArray[np.uint8]:
    """The weighted sum over the first axis (2 long), rounded, as uint8."""
    total: NDArray[np.int32] = np.multiply(taps[0], weights[0], dtype=np.int32)
    total += np.multiply(taps[1], weights[1], dtype=np.int32)
    total += 2 ** (power - 1)
    total >>= power
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8)
