"""The way through a level: what has to be used, walked over or picked up, in which order, and what comes next now.

A plan holds for one situation of the level's doors and floors. What opens a door or calls a lift is found by asking
what can be reached without it: a mechanism is enabled in round n when its line can be reached with those of the rounds
before. So the way to a mechanism never needs a later one, and whoever asks what to do next always gets an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from p2p.gate import Refused
from p2p.levels.field import Field, Jump, find_ways, reachable
from p2p.levels.grid import DIRECTIONS, HEIGHT, RADIUS, SPACING, STEP, Grid, Heights, Places, make_grid, sector_at
from p2p.levels.mechanisms import (
    Key,
    Mechanism,
    Trigger,
    exit_trigger,
    find_exits,
    find_mechanisms,
    find_teleporters,
)
from p2p.levels.wad import MEDIUM_SKILL, MULTIPLAYER, Level

USE_REACH = 44  # from the middle of a player to a line that it uses; the engine's is 64
CROSS_REACH = 12
LOCAL_REACH = 160.0  # what opens a door and is not farther from it is used when one gets there
TAKE_REACH = 24  # along each axis; the engine's is 36, at any height between feet and head
PLAYER_START = 1
KEY_THINGS: dict[int, Key] = {5: "blue", 40: "blue", 6: "yellow", 39: "yellow", 13: "red", 38: "red"}
HARMFUL = (4, 5, 7, 11, 16)  # special numbers of sectors whose floor hurts
HARM_WEIGHT = 5.0
MAX_DEPTH = 12  # of what has to be done before what has to be done


@dataclass(frozen=True)
class Situation:
    """A level's heights and what the player has; `moving` sectors are on their way up or down."""

    floor: Heights
    ceiling: Heights
    keys: frozenset[Key] = frozenset()
    moving: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Target:
    """Something to be used, walked over, or picked up."""

    kind: Trigger | str  # "use", "walk", "take"
    places: tuple[int, ...]  # where one stands to do it
    line: int = -1
    mechanism: Mechanism | None = None
    key: Key = ""

    @property
    def sectors(self) -> set[int]:
        """Those that it changes."""
        return {change.sector for change in self.mechanism.changes} if self.mechanism else set()


@dataclass(frozen=True)
class Task:
    """What comes next: along `way` to `target`; `wait`: something is moving, stay near."""

    target: Target
    way: list[int]
    blocked: int  # index in `way` of the first place that cannot be entered now; len(way): none
    wait: bool = False


@dataclass
class Plan:
    """What can be done in one situation, by rounds."""

    rounds: list[list[Target]]
    steps: list[NDArray[np.bool_]]  # of round n: [places, 8], with what the rounds before enable
    fields: dict[tuple[int, int], Field] = field(default_factory=dict)
    exit_round: int = -1

    def round_of(self, target: Target) -> int:
        """In which round a target can be reached."""
        return next(number for number, targets in enumerate(self.rounds) if target in targets)


class Planner:
    """Finds ways through one level; keeps what it has found."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.grid: Grid = make_grid(level)
        starts = [thing for thing in level.things if thing["type"] == PLAYER_START]
        if not starts:
            raise Refused(f"{level.name}: the map has no start for a player")
        self.start = self.grid.place(float(starts[-1]["x"]), float(starts[-1]["y"]))
        self.mechanisms = find_mechanisms(level)
        self.targets = [self._line_target(m.trigger, m.line, m) for m in self.mechanisms]
        self.exits = [self._line_target(exit_trigger(level, line), line) for line in find_exits(level)]
        if not self.exits:
            raise Refused(f"{level.name}: no line of the map ends the level")
        self.keys = [self._key_target(thing) for thing in level.things if _is_key(thing)]
        self._plans: dict[object, Plan] = {}

    # ------------------------------------------------------------------ geometry

    @cached_property
    def weight(self) -> NDArray[np.float64]:
        """[places] What a step costs by its ground: more near walls, most where the floor hurts."""
        grid = self.grid
        solid = grid.solid.reshape(grid.num_rows, grid.num_columns)
        harmful = np.isin(self.level.sector_special, HARMFUL)
        hurts = (harmful[np.maximum(grid.sector, 0)] & (grid.sector >= 0)).reshape(solid.shape)
        weight = 1.0 + 0.5 * _near(solid, 1) + 0.3 * _near(solid, 2) + 0.2 * _near(solid, 3)
        weight += HARM_WEIGHT * hurts + 1.0 * (_near(hurts, 2) & ~hurts)
        return weight.reshape(-1)

    @cached_property
    def _crossings(self) -> tuple[list[Jump], list[tuple[int, int]]]:
        """Of teleporters: the jumps, and the plain steps (place, direction) that do not exist because of them."""
        jumps: list[Jump] = []
        gone: list[tuple[int, int]] = []
        for teleporter in find_teleporters(self.level):
            landing = self.grid.place(teleporter.x, teleporter.y)
            near = self._near_line(teleporter.line, 24)
            side = self._front_distance(near, teleporter.line)
            for place, distance in zip(near.tolist(), side.tolist(), strict=True):
                if distance <= 0:
                    continue
                for number, offset in enumerate(self.grid.offsets.tolist()):
                    if self._crosses(place, place + offset, teleporter.line):
                        gone.append((place, number))
                        jumps.append((place, landing))
        return sorted(set(jumps)), gone

    def _crosses(self, a: int, b: int, line: int) -> bool:
        points = self.grid.points(np.array([a, b]))
        return segments_cross(points[0], points[1], self.level.start[line], self.level.end[line])

    def _near_line(self, line: int, reach: float) -> Places:
        """Places within `reach` of a line."""
        grid, a, b = self.grid, self.level.start[line], self.level.end[line]
        low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
        columns = np.arange(math.ceil((low[0] - grid.west) / SPACING), int((high[0] - grid.west) // SPACING) + 1)
        rows = np.arange(math.ceil((low[1] - grid.south) / SPACING), int((high[1] - grid.south) // SPACING) + 1)
        places = (rows[:, None] * grid.num_columns + columns).reshape(-1)
        along = np.clip(((grid.points(places) - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        closest = a + along[:, None] * (b - a)
        return places[np.hypot(*(grid.points(places) - closest).T) <= reach]

    def _front_distance(self, places: Places, line: int) -> NDArray[np.float64]:
        """How far in front of an (endless) line places lie; behind it: negative."""
        a, b = self.level.start[line], self.level.end[line]
        away = self.grid.points(places) - a
        along = b - a
        return np.asarray((along[1] * away[:, 0] - along[0] * away[:, 1]) / np.hypot(*along))

    def _line_target(self, trigger: Trigger, line: int, mechanism: Mechanism | None = None) -> Target:
        near = self._near_line(line, USE_REACH if trigger == "use" else CROSS_REACH)
        near = near[~self.grid.solid[near]]
        if trigger == "use":
            near = near[self._front_distance(near, line) > 8]
            near = np.array([place for place in near.tolist() if self._sees(place, line)], np.int64)
        key = mechanism.key if mechanism else ""
        return Target(trigger, tuple(near.tolist()), line, mechanism, key)

    def use_point(self, x: float, y: float, line: int) -> tuple[float, float]:
        """The point of a line, not too near its ends, that is nearest to (x, y)."""
        a, b = self.level.start[line], self.level.end[line]
        length = float(np.hypot(*(b - a)))
        margin = min(8.0, length / 3) / length
        along = float(((x, y) - a) @ (b - a)) / length**2
        point = a + min(max(along, margin), 1 - margin) * (b - a)
        return float(point[0]), float(point[1])

    def _sees(self, place: int, line: int) -> bool:
        """Whether nothing stands between a place and the nearest point of a line: no wall, no other line to use."""
        x, y = self.grid.point(place)
        point = self.use_point(x, y, line)
        level = self.level
        stops = level.solid | (level.special != 0)
        stops[line] = False
        return not crossed(level, (x, y), point, stops)

    def _key_target(self, thing: NDArray[np.void]) -> Target:
        x, y = float(thing["x"]), float(thing["y"])
        height = int(self.level.floor[sector_at(self.level, x, y)])
        middle = self.grid.place(x, y)
        shifts = range(-(TAKE_REACH // SPACING), TAKE_REACH // SPACING + 1)
        near = [middle + row * self.grid.num_columns + column for row in shifts for column in shifts]
        low, _ = self._initial_heights
        places = tuple(place for place in near if not self.grid.solid[place] and -8 < height - low[place] < HEIGHT)
        return Target("take", places, key=KEY_THINGS[int(thing["type"])])

    @cached_property
    def _initial_heights(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.grid.heights(self.level.floor, self.level.ceiling)

    # ------------------------------------------------------------------ planning

    def settled(self, situation: Situation) -> Situation:
        """The same with everything that returns by itself, or is still moving, where it was in the beginning."""
        floor, ceiling = self.level.floor.copy(), self.level.ceiling.copy()
        for mechanism in self.mechanisms:
            for change in mechanism.changes:
                s = change.sector
                if not change.returns and s not in situation.moving:
                    floor[s], ceiling[s] = situation.floor[s], situation.ceiling[s]
        return Situation(floor, ceiling, situation.keys)

    def plan(self, situation: Situation, place: int) -> Plan:
        """What can be done in a situation, from a place.

        Raises:
            ValueError: when no way leads from there to an exit.
        """
        settled = self.settled(situation)
        key = (settled.floor.tobytes(), settled.ceiling.tobytes(), settled.keys)
        plan = self._plans.get(key)
        if plan is None or math.isinf(self.field(plan, self._exit(plan), plan.exit_round).distance[place]):
            plan = self._make_plan(settled, place)
            if len(self._plans) > 50:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _exit(self, plan: Plan) -> Target:
        return plan.rounds[plan.exit_round][-1]

    def _make_plan(self, situation: Situation, place: int) -> Plan:
        waiting = [*self.targets, *(key for key in self.keys if key.key not in situation.keys)]
        keys = set(situation.keys)
        enabled: list[Target] = []
        plan = Plan([], [])
        while True:
            steps = self.possible_steps(situation, enabled)
            reach = reachable(self.grid, steps, place, self._crossings[0])
            plan.steps.append(steps)
            found = [t for t in waiting if (t.kind == "take" or t.key == "" or t.key in keys) and _any(reach, t.places)]
            plan.rounds.append(found)
            for way_out in self.exits:
                if _any(reach, way_out.places):
                    plan.exit_round = len(plan.rounds) - 1
                    plan.rounds[-1] = [*found, way_out]
                    return plan
            if not found:
                raise ValueError(f"{self.level.name}: no way leads from {self.grid.point(place)} to an exit")
            waiting = [target for target in waiting if target not in found]
            keys |= {target.key for target in found if target.kind == "take"}
            enabled += found

    def possible_steps(self, situation: Situation, enabled: Sequence[Target]) -> NDArray[np.bool_]:
        """[places, 8] Steps that can be taken now or after what these targets do, whichever of the two."""
        floor, ceiling, opened = situation.floor.copy(), situation.ceiling.copy(), situation.ceiling.copy()
        for target in enabled:
            for change in target.mechanism.changes if target.mechanism else ():
                if change.floor is not None:
                    floor[change.sector] = change.floor
                if change.ceiling is not None:
                    opened[change.sector] = max(ceiling[change.sector], change.ceiling)
        steps = self.grid.steps(situation.floor, opened) | self.grid.steps(floor, opened)
        for place, direction in self._crossings[1]:
            steps[place, direction] = False
        return steps

    def field(self, plan: Plan, target: Target, number: int) -> Field:
        """The ways to a target with what the rounds before `number` enable."""
        key = (id(target), number)
        if key not in plan.fields:
            plan.fields[key] = find_ways(self.grid, plan.steps[number], target.places, self.weight, self._crossings[0])
        return plan.fields[key]

    # ------------------------------------------------------------------ what is next

    def next_task(self, situation: Situation, x: float, y: float) -> Task:
        """What to do now, for whoever stands at (x, y).

        Raises:
            ValueError: when no way leads from there to an exit.
        """
        place = self.standing_place(x, y, situation)
        plan = self.plan(situation, place)
        target, number = self._exit(plan), plan.exit_round
        for _ in range(MAX_DEPTH):
            way = self.field(plan, target, number).way(place)
            blocks = self._blocked(way, situation)
            first = blocks[0] if blocks else len(way)
            needed = self._needed_first(plan, number, target, way, blocks, situation)
            if not needed:
                if first < len(way) and self._comes_by_itself(way, first, situation):
                    return Task(target, way, first, wait=True)
                needed = self._local(plan, number, way, first, situation) if blocks else []
            choices = [(self._far(plan, t, place), index) for index, t in enumerate(needed) if t is not target]
            if not choices or math.isinf(min(choices)[0]):
                break
            target = needed[min(choices)[1]]
            number = plan.round_of(target)
        return Task(target, way, first)

    def _needed_first(
        self, plan: Plan, number: int, target: Target, way: list[int], blocks: list[int], situation: Situation
    ) -> list[Target]:
        """What somewhere else has to be done before this way is begun: one of these; nothing: begin."""
        if target.kind != "take" and target.key and target.key not in situation.keys:
            return [key for key in self.keys if key.key == target.key]
        for index in blocks:
            if any(s in situation.moving for s in self._in_the_way(way[index - 1], way[index], situation)):
                continue
            enabling = self._enabling(plan, number, way, index, situation)
            if enabling and not self._local(plan, number, way, index, situation):
                usable = [t for t in enabling if not t.key or t.key in situation.keys]
                missing = {t.key for t in enabling}
                return usable or [key for key in self.keys if key.key in missing]
        return []

    def _local(self, plan: Plan, number: int, way: list[int], index: int, situation: Situation) -> list[Target]:
        """What opens the way at `index` and can be used from near there, with the keys there are."""
        x, y = self.grid.point(way[index - 1])
        found = []
        for target in self._enabling(plan, number, way, index, situation):
            if not target.key or target.key in situation.keys:
                points = self.grid.points(np.array(target.places))
                if np.hypot(points[:, 0] - x, points[:, 1] - y).min() < LOCAL_REACH:
                    found.append(target)
        return found

    def _far(self, plan: Plan, target: Target, place: int) -> float:
        return float(self.field(plan, target, plan.round_of(target)).distance[place])

    def _enabling(self, plan: Plan, number: int, way: list[int], index: int, situation: Situation) -> list[Target]:
        """What opens the way at `index`, of the rounds before `number`."""
        sectors = set(self._in_the_way(way[index - 1], way[index], situation))
        return [t for targets in plan.rounds[:number] for t in targets if t.sectors & sectors]

    def _comes_by_itself(self, way: list[int], index: int, situation: Situation) -> bool:
        """Whether to wait: what is in the way is moving, or is the lift on which one stands, below."""
        sectors = self._in_the_way(way[index - 1], way[index], situation)
        if any(sector in situation.moving for sector in sectors):
            return True
        under = self.grid.touched(way[0])
        return any(
            s in self._lifts and s in under and situation.floor[s] != self.level.floor[s] for s in sectors
        )

    @cached_property
    def _lifts(self) -> frozenset[int]:
        return frozenset(c.sector for m in self.mechanisms for c in m.changes if c.returns and c.floor is not None)

    def _blocked(self, way: list[int], situation: Situation) -> list[int]:
        """Indices of the places of a way that cannot be entered now from the place before."""
        moves = np.flatnonzero(self.dynamic[way])
        near = sorted({*moves.tolist(), *(moves + 1).tolist()} - {0, len(way)})
        return [index for index in near if not self.passable(way[index - 1], way[index], situation)]

    @cached_property
    def dynamic(self) -> NDArray[np.bool_]:
        """[places] Whether a sector that moves is touched there."""
        moves = np.zeros(len(self.level.floor), np.bool_)
        moves[[change.sector for m in self.mechanisms for change in m.changes]] = True
        return np.asarray(np.logical_or.reduceat(moves[self.grid.sectors], self.grid.starts[:-1]))

    def passable(self, a: int, b: int, situation: Situation) -> bool:
        """Whether one gets from a place to its neighbour now; a jump always."""
        if self.is_jump(a, b):
            return True
        here, there = self.grid.touched(a), self.grid.touched(b)
        low_a = max(int(situation.floor[s]) for s in here)
        low = max(int(situation.floor[s]) for s in there)
        high = min(int(situation.ceiling[s]) for s in there)
        return high - max(low, low_a) >= HEIGHT and low - low_a <= STEP

    def _in_the_way(self, a: int, b: int, situation: Situation) -> list[int]:
        """The sectors that keep one from stepping from a to b."""
        here, there = self.grid.touched(a), self.grid.touched(b)
        low_a = max(int(situation.floor[s]) for s in here)
        low = max(int(situation.floor[s]) for s in there)
        moving = {change.sector for m in self.mechanisms for change in m.changes}
        both = [s for s in dict.fromkeys([*there, *here]) if s in moving]
        return [
            s
            for s in both
            if situation.ceiling[s] - max(low, low_a) < HEIGHT
            or situation.floor[s] - low_a > STEP
            or (s in here and low - situation.floor[s] > STEP)
        ] or both

    # ------------------------------------------------------------------ straight lines

    def is_jump(self, a: int, b: int) -> bool:
        """Whether a teleporter lies between two places of a way."""
        return b - a not in self._offsets

    @cached_property
    def _offsets(self) -> frozenset[int]:
        return frozenset(self.grid.offsets.tolist())

    def teleporter_at(self, place: int) -> int:
        """The teleporter's line that is nearest to a place."""
        x, y = self.grid.point(place)
        lines = [t.line for t in find_teleporters(self.level)]
        return min(lines, key=lambda line: math.dist((x, y), self.use_point(x, y, line)))

    def straight(self, x: float, y: float, way: Sequence[int], index: int, situation: Situation) -> bool:
        """Whether one can walk straight to a place of the way: no drop, nothing in between, no worse ground."""
        worst = float(self.weight[list(way[: index + 1])].max()) + 0.35
        return self._clear(x, y, *self.grid.point(way[index]), situation, worst)

    def straight_to(self, x: float, y: float, to_x: float, to_y: float, situation: Situation) -> bool:
        """Whether one can walk straight to a point over harmless ground, and back."""
        return self._clear(x, y, to_x, to_y, situation, HARM_WEIGHT / 2)

    def _clear(self, x: float, y: float, to_x: float, to_y: float, situation: Situation, worst: float) -> bool:
        count = max(1, math.ceil(math.hypot(to_x - x, to_y - y) / (SPACING / 2)))
        last, height = self.standing_place(x, y, situation), None
        for number in range(1, count + 1):
            share = number / count
            place = self.grid.place(x + share * (to_x - x), y + share * (to_y - y))
            if place == last:
                continue
            if self.grid.solid[place] or self.weight[place] > worst:
                return False
            touched = self.grid.touched(place)
            low = max(int(situation.floor[s]) for s in touched)
            if min(int(situation.ceiling[s]) for s in touched) - low < HEIGHT:
                return False
            if height is None:
                height = max(int(situation.floor[s]) for s in self.grid.touched(last))
            if abs(low - height) > STEP:
                return False
            last, height = place, low
        return True

    def ray_hits(self, x: float, y: float, angle_deg: float, line: int, reach: float) -> bool:
        """Whether a line is what somebody who looks in a direction has before him, within reach."""
        angle = math.radians(angle_deg)
        end = np.array([x + reach * math.cos(angle), y + reach * math.sin(angle)])
        return segments_cross(np.array([x, y]), end, self.level.start[line], self.level.end[line])

    def sees(self, x: float, y: float, z: float, to_x: float, to_y: float, to_z: float, situation: Situation) -> bool:
        """Whether nothing of the map hides one point from another."""
        level = self.level
        lines, shares = meetings(level, (x, y), (to_x, to_y))
        if (level.back[lines] < 0).any():
            return False
        front, back = level.front[lines], level.back[lines]
        low = np.maximum(situation.floor[front], situation.floor[back])
        high = np.minimum(situation.ceiling[front], situation.ceiling[back])
        height = z + shares * (to_z - z)
        return bool(((height > low) & (height < high)).all())

    def standing_place(self, x: float, y: float, situation: Situation) -> int:
        """The place nearest to (x, y) where a player can stand: who slides along a wall is often a little off."""
        middle = self.grid.place(x, y)
        if not self.grid.solid[middle] and self._fits(middle, situation):
            return middle
        nearest, shortest = middle, math.inf
        for row in range(-3, 4):
            for column in range(-3, 4):
                place = middle + row * self.grid.num_columns + column
                if 0 <= place < self.grid.size and not self.grid.solid[place] and self._fits(place, situation):
                    px, py = self.grid.point(place)
                    if (away := math.hypot(px - x, py - y)) < shortest:
                        nearest, shortest = place, away
        return nearest

    def _fits(self, place: int, situation: Situation) -> bool:
        touched = self.grid.touched(place)
        return min(int(situation.ceiling[s]) for s in touched) - max(int(situation.floor[s]) for s in touched) >= HEIGHT


def _is_key(thing: NDArray[np.void]) -> bool:
    flags = int(thing["flags"])
    return int(thing["type"]) in KEY_THINGS and bool(flags & MEDIUM_SKILL) and not flags & MULTIPLAYER


def _any(reach: NDArray[np.bool_], places: Sequence[int]) -> bool:
    return bool(reach[list(places)].any()) if places else False


def _near(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Where something of the mask is within `count` places."""
    found = mask.copy()
    for _ in range(count):
        grown = found.copy()
        for row, column in DIRECTIONS:
            grown |= np.roll(found, (row, column), (0, 1))
        found = grown
    return found


def segments_cross(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], d: NDArray[np.float64]
) -> bool:
    """Whether the segments ab and cd meet."""

    def side(p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64]) -> float:
        return float((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0]))

    return side(c, d, a) * side(c, d, b) <= 0 and side(a, b, c) * side(a, b, d) <= 0 and side(c, d, a) != side(c, d, b)


def meetings(
    level: Level, start: tuple[float, float], end: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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


def crossed(
    level: Level, start: tuple[float, float], end: tuple[float, float], stops: NDArray[np.bool_]
) -> list[int]:
    """The lines among `stops` that a straight way from start to end meets."""
    lines, _ = meetings(level, start, end)
    return [int(line) for line in lines if stops[line]]
