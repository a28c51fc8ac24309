"""How far it is from every place of a grid to a goal, walking: Dijkstra backwards from the goal, exact.

Distances are in map units over steps in eight directions; the straight line between two points is up to 8 % shorter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2p.levels.grid import DIRECTIONS, SPACING, Grid, Places

LENGTHS = np.array([SPACING * math.hypot(row, column) for row, column in DIRECTIONS])

Jump = tuple[int, int]  # from a place to another, by a teleporter


@dataclass(frozen=True)
class Field:
    """The way from every place to the nearest of some goals.

    Attributes:
        distance: [places] in map units, times the weight of the ground; infinite where there is no way.
        following: [places] the next place on the shortest way; a goal's, and that of a place without a way, is itself.
    """

    distance: NDArray[np.float64]
    following: NDArray[np.int64]

    def way(self, place: int, longest: int = 100_000) -> list[int]:
        """The places from `place` to the goal, both included."""
        found = [place]
        while len(found) < longest and (after := int(self.following[found[-1]])) != found[-1]:
            found.append(after)
        return found


def find_ways(
    grid: Grid,
    steps: NDArray[np.bool_],
    goals: Iterable[int],
    weight: NDArray[np.float64] | None = None,
    jumps: Sequence[Jump] = (),
) -> Field:
    """The shortest ways to the nearest goal.

    Args:
        steps: [places, 8] which steps can be taken (`Grid.steps`).
        weight: [places] at least 1: what a step into a place costs, in its lengths; None: 1 everywhere.
        jumps: whoever stands at the first can be at the second for the cost of one short step.
    """
    found, following = np.full(grid.size, np.inf), np.arange(grid.size)
    first = np.array(sorted(set(goals)), np.int64)
    found[first] = 0.0
    opposite = [(number + 4) % 8 for number in range(8)]
    landing: dict[int, list[int]] = {}
    for origin, target in jumps:
        landing.setdefault(target, []).append(origin)
    # A step costs SPACING or more: the places of one ring, which is SPACING wide, cannot shorten each other's way.
    rings: dict[int, list[Places]] = {0: [first]}
    while rings:
        ring = min(rings)
        places = np.unique(np.concatenate(rings.pop(ring)))
        places = places[found[places] >= ring * SPACING]  # the others were reached by a shorter way since
        if not len(places):
            continue
        near = places[:, None] + grid.offsets
        which, direction = np.nonzero(steps[near, opposite])
        here, new = places[which], near[which, direction]
        cost = found[here] + LENGTHS[direction] * (1.0 if weight is None else weight[here])
        if landing:
            pairs = [(origin, place) for place in landing.keys() & set(places.tolist()) for origin in landing[place]]
            origins, targets = np.array(pairs, np.int64).reshape(-1, 2).T
            new, here = np.concatenate([new, origins]), np.concatenate([here, targets])
            cost = np.concatenate([cost, found[targets] + SPACING])
        shorter = cost < found[new] - 1e-9
        order = np.argsort(-cost[shorter], kind="stable")  # of several ways to a place the last, the shortest, stays
        new, here, cost = new[shorter][order], here[shorter][order], cost[shorter][order]
        found[new], following[new] = cost, here
        reached = (found[new] // SPACING).astype(np.int64)
        for value in np.unique(reached):
            rings.setdefault(int(value), []).append(new[reached == value])
    return Field(found, following)


def reachable(grid: Grid, steps: NDArray[np.bool_], start: int, jumps: Sequence[Jump] = ()) -> NDArray[np.bool_]:
    """[places] Where one gets to from `start`."""
    found = np.zeros(grid.size, np.bool_)
    found[start] = True
    places = np.array([start])
    while len(places):
        which, direction = np.nonzero(steps[places])
        new = places[which] + grid.offsets[direction]
        taken = [target for origin, target in jumps if found[origin]]
        new = np.unique(np.concatenate([new, np.array(taken, np.int64)]))
        places = new[~found[new]]
        found[places] = True
    return found
