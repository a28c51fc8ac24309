"""The way through a level: what has to be used, walked over or taken, in which order, and what comes next now.

A plan holds for one situation of the level's doors and floors. What opens a door or calls a lift is found by asking
what can be reached without it: a mechanism is of round n when its line can be reached with those of the rounds before.
So the way to a mechanism never needs a later one, and whoever asks what to do next always gets an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from p2p.gate import Refused
from p2p.levels.field import Field, find_ways, reachable
from p2p.levels.grid import Grid, make_grid
from p2p.levels.ground import Ground
from p2p.levels.targets import Situation, Target, exit_targets, find_teleports, key_targets, mechanism_targets
from p2p.levels.wad import Level

PLAYER_START = 1
LOCAL_REACH = 160.0  # what opens a door and is not farther from it is used when one gets there
MAX_DEPTH = 12  # of what has to be done before what has to be done
MAX_PLANS = 50


@dataclass(frozen=True)
class Task:
    """What comes next: along `way` to `target`.

    Attributes:
        blocked: the index in `way` of the first place that cannot be entered now; len(way): none.
        wait: what is in the way opens by itself: go there, and wait.
    """

    target: Target
    way: list[int]
    blocked: int
    wait: bool = False


@dataclass
class Plan:
    """What can be done in one situation, by rounds; the last of the last round is an exit.

    Attributes:
        steps: of each round: [places, 8], the steps that can be taken with what the rounds before enable.
    """

    rounds: list[list[Target]] = field(default_factory=list)
    steps: list[NDArray[np.bool_]] = field(default_factory=list)
    fields: dict[tuple[int, int], Field] = field(default_factory=dict)

    @property
    def exit(self) -> Target:
        """The first that is reached."""
        return self.rounds[-1][-1]

    def round_of(self, target: Target) -> int:
        """In which round a target can be reached."""
        return next(number for number, targets in enumerate(self.rounds) if target in targets)


class Planner:
    """Finds ways through one level, and keeps what it has found.

    Raises:
        Refused: when the map has no start or no exit.
    """

    def __init__(self, level: Level) -> None:
        self.level = level
        self.grid: Grid = make_grid(level)
        starts = level.things[level.things["type"] == PLAYER_START]
        if not len(starts):
            raise Refused(f"{level.name}: the map has no start for a player")
        self.start = self.grid.place(float(starts[-1]["x"]), float(starts[-1]["y"]))
        self.targets = mechanism_targets(level, self.grid)
        self.exits = exit_targets(level, self.grid)
        if not self.exits:
            raise Refused(f"{level.name}: no line of the map ends the level")
        self.keys = key_targets(level, self.grid)
        self.teleports = find_teleports(level, self.grid)
        changes = [change for target in self.targets if target.mechanism for change in target.mechanism.changes]
        self.ground = Ground(self.grid, (change.sector for change in changes))
        self._lifts = frozenset(c.sector for c in changes if c.returns and c.floor is not None)
        self._staying = sorted({c.sector for c in changes if not c.returns})
        self._plans: dict[object, Plan] = {}

    @property
    def beginning(self) -> Situation:
        """As the level is when it begins."""
        return Situation(self.level.floor, self.level.ceiling)

    # ------------------------------------------------------------------ plans

    def settled(self, now: Situation) -> Situation:
        """The same with everything that returns by itself, or is still moving, where it was in the beginning."""
        floor, ceiling = self.level.floor.copy(), self.level.ceiling.copy()
        staying = [sector for sector in self._staying if sector not in now.moving]
        floor[staying], ceiling[staying] = now.floor[staying], now.ceiling[staying]
        return Situation(floor, ceiling, now.keys)

    def plan(self, now: Situation, place: int) -> Plan:
        """What can be done in a situation, from a place.

        Raises:
            ValueError: when no way leads from there to an exit.
        """
        settled = self.settled(now)
        key = (settled.floor.tobytes(), settled.ceiling.tobytes(), settled.keys)
        plan = self._plans.get(key)
        if plan is None or math.isinf(self._far(plan, plan.exit, place)):
            plan = self._make_plan(settled, place)
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _make_plan(self, settled: Situation, place: int) -> Plan:
        waiting = [*self.targets, *(key for key in self.keys if key.key not in settled.keys)]
        keys = set(settled.keys)
        plan = Plan()
        while True:
            enabled = [target for targets in plan.rounds for target in targets]
            plan.steps.append(self._possible_steps(settled, enabled))
            reach = reachable(self.grid, plan.steps[-1], place, self.teleports.jumps)
            for way_out in self.exits:
                if reach[list(way_out.places)].any():
                    plan.rounds.append([way_out])
                    return plan
            found = [t for t in waiting if (t.kind == "take" or t.key in ("", *keys)) and reach[list(t.places)].any()]
            if not found:
                raise ValueError(f"{self.level.name}: no way leads from {self.grid.point(place)} to an exit")
            plan.rounds.append(found)
            waiting = [target for target in waiting if target not in found]
            keys |= {target.key for target in found if target.kind == "take"}

    def _possible_steps(self, settled: Situation, enabled: Sequence[Target]) -> NDArray[np.bool_]:
        """[places, 8] Steps that can be taken now or after what these targets do, whichever of the two."""
        floor, ceiling = settled.floor.copy(), settled.ceiling.copy()
        for target in enabled:
            for change in target.mechanism.changes if target.mechanism else ():
                if change.floor is not None:
                    floor[change.sector] = change.floor
                if change.ceiling is not None:
                    ceiling[change.sector] = max(settled.ceiling[change.sector], change.ceiling)
        steps = self.grid.steps(settled.floor, ceiling) | self.grid.steps(floor, ceiling)
        if self.teleports.gone:
            steps[tuple(np.array(self.teleports.gone).T)] = False
        return steps

    def field(self, plan: Plan, target: Target) -> Field:
        """The ways to a target of the plan."""
        number = plan.round_of(target)
        key = (id(target), number)
        if key not in plan.fields:
            plan.fields[key] = find_ways(
                self.grid, plan.steps[number], target.places, self.ground.weight, self.teleports.jumps
            )
        return plan.fields[key]

    def _far(self, plan: Plan, target: Target, place: int) -> float:
        return float(self.field(plan, target).distance[place])

    # ------------------------------------------------------------------ what is next

    def next_task(self, now: Situation, x: float, y: float) -> Task:
        """What to do now, for whoever stands at (x, y).

        Raises:
            ValueError: when no way leads from there to an exit.
        """
        place = self.ground.standing_place(x, y, now)
        plan = self.plan(now, place)
        target = plan.exit
        for _ in range(MAX_DEPTH):
            way = self.field(plan, target).way(place)
            blocks = self.ground.blocked(way, now)
            first = blocks[0] if blocks else len(way)
            needed = self._needed_first(plan, target, way, blocks, now)
            if not needed and blocks:
                if self._comes_by_itself(way, first, now):
                    return Task(target, way, first, wait=True)
                needed = self._local(plan, target, way, first, now)
            distances = [(self._far(plan, t, place), index) for index, t in enumerate(needed) if t is not target]
            if not distances or math.isinf(min(distances)[0]):
                break
            target = needed[min(distances)[1]]
        return Task(target, way, first)

    def needed_target(self, plan: Plan, now: Situation, place: int) -> Target:
        """Where to go first, on the way from a place to the exit: a key, something to use far from where it opens the
        way, or the exit. What is used on the way, such as a door, is none."""
        target = plan.exit
        for _ in range(MAX_DEPTH):
            way = self.field(plan, target).way(place)
            needed = self._needed_first(plan, target, way, self.ground.blocked(way, now), now)
            distances = [(self._far(plan, t, place), index) for index, t in enumerate(needed) if t is not target]
            if not distances or math.isinf(min(distances)[0]):
                break
            target = needed[min(distances)[1]]
        return target

    def _needed_first(
        self, plan: Plan, target: Target, way: list[int], blocks: list[int], now: Situation
    ) -> list[Target]:
        """What has to be done somewhere else before this way is begun: one of these; nothing: begin."""
        if target.kind != "take" and target.key and target.key not in now.keys:
            return self._keys_of(plan, {target.key})
        for index in blocks:
            if any(sector in now.moving for sector in self.ground.in_the_way(way[index - 1], way[index], now)):
                continue
            enabling = self._enabling(plan, target, way, index, now)
            if enabling and not self._local(plan, target, way, index, now):
                usable = [t for t in enabling if not t.key or t.key in now.keys]
                return usable or self._keys_of(plan, {t.key for t in enabling})
        return []

    def _keys_of(self, plan: Plan, colours: set[str]) -> list[Target]:
        return [t for targets in plan.rounds for t in targets if t.kind == "take" and t.key in colours]

    def _enabling(self, plan: Plan, target: Target, way: list[int], index: int, now: Situation) -> list[Target]:
        """What opens the way to a target at `index`, of the rounds before the target's."""
        sectors = set(self.ground.in_the_way(way[index - 1], way[index], now))
        return [t for targets in plan.rounds[: plan.round_of(target)] for t in targets if t.sectors & sectors]

    def _local(self, plan: Plan, target: Target, way: list[int], index: int, now: Situation) -> list[Target]:
        """What opens the way at `index` and can be used from near there, with the keys there are."""
        x, y = self.grid.point(way[index - 1])
        found = []
        for enabling in self._enabling(plan, target, way, index, now):
            if not enabling.key or enabling.key in now.keys:
                points = self.grid.points(np.array(enabling.places))
                if np.hypot(points[:, 0] - x, points[:, 1] - y).min() < LOCAL_REACH:
                    found.append(enabling)
        return found

    def _comes_by_itself(self, way: list[int], index: int, now: Situation) -> bool:
        """Whether to wait there: what is in the way is moving, or is the lift, below, on which one stands by then."""
        sectors = self.ground.in_the_way(way[index - 1], way[index], now)
        if any(sector in now.moving for sector in sectors):
            return True
        under = self.grid.touched(way[index - 1])
        return any(s in self._lifts and s in under and now.floor[s] != self.level.floor[s] for s in sectors)
