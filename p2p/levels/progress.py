"""How much of the way to a level's exit a player has covered: what the yardstick of whole levels measures.

The way is the shortest one for somebody who knows the map: over every switch and key that it needs, in legs. Doors and
lifts that are used where they stand are ground. Its length is that of steps in eight directions, which is up to 8 %
longer than the straight line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2p.levels.field import find_ways
from p2p.levels.route import Planner
from p2p.levels.targets import Situation, Target

BEFORE_EXIT = 0.999  # at most, as long as the engine does not say that the level has ended
MAX_LEGS = 50


@dataclass(frozen=True)
class Leg:
    """A part of the way: to a key or a switch, and last to the exit.

    Attributes:
        distance: [places] from each place to the leg's end, in map units; infinite where there is no way.
        after: the length of the legs that follow.
    """

    target: Target
    distance: NDArray[np.float32]
    after: float
    way: tuple[int, ...]


class Yardstick:
    """The way through one level.

    Raises:
        ValueError: when the exit cannot be reached.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.legs = _legs(planner)
        first = self.legs[0]
        self.length = float(first.distance[planner.start]) + first.after

    def way(self) -> list[tuple[float, float]]:
        """The points of the shortest way, for a drawing."""
        return [self.planner.grid.point(place) for leg in self.legs for place in leg.way]


class Progress:
    """Of one episode: `share` is the largest part of the way that was covered, 1 at the exit."""

    def __init__(self, yardstick: Yardstick) -> None:
        self._yardstick = yardstick
        self._leg = 0
        self.share = 0.0

    def update(self, x: float, y: float, now: Situation) -> float:
        """The share, after the player was at (x, y)."""
        legs, planner = self._yardstick.legs, self._yardstick.planner
        while self._leg < len(legs) - 1 and _is_done(legs[self._leg].target, planner, now):
            self._leg += 1
        leg = legs[self._leg]
        try:
            place = planner.ground.standing_place(x, y, now)
        except ValueError:  # outside the map
            return self.share
        left = float(leg.distance[place]) + leg.after
        if np.isfinite(left):
            self.share = max(self.share, min(1 - left / self._yardstick.length, BEFORE_EXIT))
        return self.share

    def finish(self) -> float:
        """The engine says that the level has ended, and the player lives."""
        self.share = 1.0
        return self.share


def _is_done(target: Target, planner: Planner, now: Situation) -> bool:
    if target.kind == "take":
        return target.key in now.keys
    level = planner.level
    return any(now.floor[s] != level.floor[s] or now.ceiling[s] != level.ceiling[s] for s in target.sectors)


def _legs(planner: Planner) -> list[Leg]:
    """Walk through the level in mind: do what is needed first, see what that changes, go on."""
    found: list[tuple[Target, NDArray[np.float32], list[int]]] = []
    now, place = planner.beginning, planner.start
    while not found or found[-1][0] not in planner.exits:
        plan = planner.plan(now, place)
        target = planner.needed_target(plan, now, place)
        steps = plan.steps[plan.round_of(target)]
        field = find_ways(planner.grid, steps, target.places, jumps=planner.teleports.jumps)
        way = field.way(place)
        found.append((target, field.distance.astype(np.float32), way))
        if len(found) > MAX_LEGS:
            raise ValueError(f"{planner.level.name}: the way to the exit has more than {MAX_LEGS} legs")
        place, now = way[-1], done(target, now)
    legs: list[Leg] = []
    after = 0.0
    for number in reversed(range(len(found))):
        target, distance, way = found[number]
        legs.insert(0, Leg(target, distance, after, tuple(way)))
        after += float(distance[way[0]])
    return legs


def done(target: Target, now: Situation) -> Situation:
    """What a target makes of a situation; a sector that returns by itself counts as moving from then on."""
    if target.kind == "take":
        return replace(now, keys=now.keys | {target.key})
    floor, ceiling, moving = now.floor.copy(), now.ceiling.copy(), set(now.moving)
    for change in target.mechanism.changes if target.mechanism else ():
        if change.returns:
            moving.add(change.sector)
            continue
        floor[change.sector] = floor[change.sector] if change.floor is None else change.floor
        ceiling[change.sector] = ceiling[change.sector] if change.ceiling is None else change.ceiling
    return Situation(floor, ceiling, now.keys, frozenset(moving))
