"""What one can do on foot on a map as its doors and floors stand at one moment: stand, step, walk straight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from p2p.levels.grid import DIRECTIONS, HEIGHT, SPACING, STEP, Grid
from p2p.levels.targets import Situation

HARMFUL = (4, 5, 7, 11, 16)  # special numbers of sectors whose floor hurts
HARM_WEIGHT = 5.0
WEIGHT_SLACK = 0.35  # a short cut may lead over ground that is this much worse than the way's


class Ground:
    """A grid, and which of its sectors can move."""

    def __init__(self, grid: Grid, movable: Iterable[int]) -> None:
        self.grid = grid
        self.movable = frozenset(movable)
        self._offsets = frozenset(grid.offsets.tolist())

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """[places] What a step costs by its ground: more near walls, most where the floor hurts."""
        grid = self.grid
        solid = grid.solid.reshape(grid.num_rows, grid.num_columns)
        harmful = np.isin(grid.level.sector_special, HARMFUL)
        hurts = (harmful[np.maximum(grid.sector, 0)] & (grid.sector >= 0)).reshape(solid.shape)
        weight = 1.0 + 0.5 * _near(solid, 1) + 0.3 * _near(solid, 2) + 0.2 * _near(solid, 3)
        weight += HARM_WEIGHT * hurts + 1.0 * (_near(hurts, 2) & ~hurts)
        return np.asarray(weight.reshape(-1))

    @cached_property
    def _touches_movable(self) -> NDArray[np.bool_]:
        moves = np.zeros(len(self.grid.level.floor), np.bool_)
        moves[list(self.movable)] = True
        return np.asarray(np.logical_or.reduceat(moves[self.grid.sectors], self.grid.starts[:-1]))

    def is_jump(self, a: int, b: int) -> bool:
        """Whether a teleporter lies between two places of a way."""
        return b - a not in self._offsets

    def span(self, place: int, now: Situation) -> tuple[int, int]:
        """Floor and ceiling of whoever stands at a place."""
        touched = self.grid.touched(place)
        return max(int(now.floor[s]) for s in touched), min(int(now.ceiling[s]) for s in touched)

    def fits(self, place: int, now: Situation) -> bool:
        """Whether a player has room there."""
        low, high = self.span(place, now)
        return not self.grid.solid[place] and high - low >= HEIGHT

    def passable(self, a: int, b: int, now: Situation) -> bool:
        """Whether one gets from a place to its neighbour; a jump always."""
        if self.is_jump(a, b):
            return True
        here, (low, high) = self.span(a, now)[0], self.span(b, now)
        return high - max(low, here) >= HEIGHT and low - here <= STEP

    def blocked(self, way: Sequence[int], now: Situation) -> list[int]:
        """Indices of the places of a way that cannot be entered from the place before."""
        moves = np.flatnonzero(self._touches_movable[list(way)])
        near = sorted({*moves.tolist(), *(moves + 1).tolist()} - {0, len(way)})
        return [index for index in near if not self.passable(way[index - 1], way[index], now)]

    def in_the_way(self, a: int, b: int, now: Situation) -> list[int]:
        """The movable sectors that keep one from stepping from a to b."""
        here, (low, _) = self.span(a, now)[0], self.span(b, now)
        standing, entered = self.grid.touched(a), self.grid.touched(b)
        candidates = [s for s in dict.fromkeys([*entered, *standing]) if s in self.movable]
        return [
            s
            for s in candidates
            if now.ceiling[s] - max(low, here) < HEIGHT
            or now.floor[s] - here > STEP
            or (s in standing and low - now.floor[s] > STEP)
        ] or candidates

    def standing_place(self, x: float, y: float, now: Situation) -> int:
        """The place nearest to (x, y) where a player can stand: who slides along a wall is often a little off.

        Raises:
            ValueError: outside the map.
        """
        middle = self.grid.place(x, y)
        if self.fits(middle, now):
            return middle
        around = [middle + row * self.grid.num_columns + column for row in range(-3, 4) for column in range(-3, 4)]
        standing = [place for place in around if 0 <= place < self.grid.size and self.fits(place, now)]
        return min(standing, key=lambda place: math.dist(self.grid.point(place), (x, y)), default=middle)

    def straight(self, x: float, y: float, way: Sequence[int], index: int, now: Situation) -> bool:
        """Whether one can walk straight to a place of the way: no drop, nothing in between, no worse ground."""
        worst = float(self.weight[list(way[: index + 1])].max()) + WEIGHT_SLACK
        return self._clear(x, y, *self.grid.point(way[index]), now, worst)

    def straight_to(self, x: float, y: float, to_x: float, to_y: float, now: Situation) -> bool:
        """Whether one can walk straight to a point over harmless ground, and back."""
        return self._clear(x, y, to_x, to_y, now, HARM_WEIGHT / 2)

    def _clear(self, x: float, y: float, to_x: float, to_y: float, now: Situation, worst: float) -> bool:
        count = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / (SPACING / 2)))
        last = self.standing_place(x, y, now)
        height = self.span(last, now)[0]
        for number in range(1, count + 1):
            share = number / count
            place = self.grid.place(x + share * (to_x - x), y + share * (to_y - y))
            if place == last:
                continue
            low, high = self.span(place, now)
            if self.grid.solid[place] or self.weight[place] > worst or high - low < HEIGHT or abs(low - height) > STEP:
                return False
            last, height = place, low
        return True


def _near(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Where something of the mask is within `count` places."""
    found = mask.copy()
    for _ in range(count):
        grown = found.copy()
        for row, column in DIRECTIONS:
            grown |= np.roll(found, (row, column), (0, 1))
        found = grown
    return found
