"""A scripted player that finishes levels. What it does depends on the game's state alone, so it can be asked anywhere.

It knows the map and what the engine tells of monsters and doors, which no policy is told. A little randomness, from
its seed, frees it when it does not get on.
"""

from __future__ import annotations

import math
import random
from collections import deque

from p2p.actions import Action
from p2p.levels.fighting import find_fight, useful_item
from p2p.levels.route import Planner, Task
from p2p.levels.sight import nearest_point, ray_hits
from p2p.levels.view import View
from p2p.levels.walking import RUN_SPEED, WALK_SPEED, Move, act_on

LOOK_AHEAD = 14  # places of the way that are cut short at most
LEAST_AHEAD = 3
STUCK_STEPS, STUCK_UNITS = 24, 10.0
FREEING_STEPS = 10
USE_RANGE = 60.0


class LevelExpert:
    """Walks the planner's ways, opens what is in its way, and fights what it sees."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.reset(0)

    def reset(self, seed: int) -> None:
        """A new episode begins."""
        self._random = random.Random(seed)
        self._trail: deque[tuple[float, float]] = deque(maxlen=STUCK_STEPS)
        self._freeing = 0
        self._side = 1

    def act(self, view: View) -> Action:
        """What it would do now."""
        fight = find_fight(view, self.planner)
        move, keys = self._travel(view)
        if fight is not None:
            self._trail.clear()
            return fight.action(view, move, keys)
        return self._unstuck(view, move, keys)

    # ------------------------------------------------------------------ on the way

    def _travel(self, view: View) -> tuple[Move, tuple[str, ...]]:
        try:
            task = self.planner.next_task(view.situation, view.x, view.y)
        except ValueError:  # no way is known from here: what the floor did not plan for, such as a monster's cage
            x, y = self._random.uniform(-1, 1) * 200 + view.x, self._random.uniform(-1, 1) * 200 + view.y
            return Move(x, y, (x, y)), ("e",) if view.step % 8 == 0 else ()
        item = useful_item(view, self.planner)
        if item is not None and not task.wait:
            return Move(item.x, item.y, (item.x, item.y)), ()
        if task.target.kind == "use" and task.way[0] in task.target.places and not task.wait:
            return self._use(view, task.target.line)
        if task.target.kind == "walk" and len(task.way) <= 3 and task.blocked >= len(task.way):
            x, y = self._beyond(view, task.target.line)
            return Move(x, y, (x, y)), ()
        return self._walk(view, task), ()

    def _use(self, view: View, line: int) -> tuple[Move, tuple[str, ...]]:
        point = nearest_point(self.planner.level, line, view.x, view.y)
        hits = ray_hits(self.planner.level, (view.x, view.y), view.angle_deg, line, USE_RANGE)
        near = view.distance(*point) < 36
        move = Move(view.x, view.y, point, pass_by=False) if near else Move(*point, point, speed=4.0)
        return move, ("e",) if hits and view.step % 4 < 2 else ()

    def _beyond(self, view: View, line: int) -> tuple[float, float]:
        """A point behind a line that is to be walked over."""
        px, py = nearest_point(self.planner.level, line, view.x, view.y)
        ux, uy = px - view.x, py - view.y
        away = math.hypot(ux, uy)
        if away < 2:  # on it: straight on
            angle = math.radians(view.angle_deg)
            ux, uy, away = math.cos(angle), math.sin(angle), 1.0
        return px + 48 * ux / away, py + 48 * uy / away

    def _walk(self, view: View, task: Task) -> Move:
        grid = self.planner.grid
        way = task.way
        last = len(way) - 1 if task.blocked >= len(way) else max(0, task.blocked - 1)
        if task.wait and task.blocked <= 6:
            look = grid.point(way[min(len(way) - 1, task.blocked + 6)])
            back = grid.point(way[max(0, task.blocked - 1)])
            return Move(*back, look, speed=4.0, pass_by=False)
        ahead = min(LEAST_AHEAD, last)
        for index in range(ahead + 1, min(last, LOOK_AHEAD) + 1):
            if self.planner.ground.is_jump(way[index - 1], way[index]):
                break
            if not self.planner.ground.straight(view.x, view.y, way, index, view.situation):
                break
            ahead = index
        jump = next((i for i in range(1, ahead + 1) if self.planner.ground.is_jump(way[i - 1], way[i])), None)
        if jump is not None:
            x, y = self._beyond(view, self.planner.teleports.lines[way[jump - 1], way[jump]])
            return Move(x, y, (x, y))
        x, y = grid.point(way[ahead])
        look_at = min(last, ahead + 8)
        look = grid.point(way[look_at]) if view.distance(*grid.point(way[look_at])) > 24 else grid.point(way[-1])
        fast = ahead >= 10 and abs(view.bearing_deg(x, y)) < 30
        return Move(x, y, look, RUN_SPEED if fast else WALK_SPEED)

    def _unstuck(self, view: View, move: Move, keys: tuple[str, ...]) -> Action:
        waiting = not move.pass_by or "e" in keys
        if waiting:
            self._trail.clear()
        else:
            self._trail.append((view.x, view.y))
        if len(self._trail) == STUCK_STEPS and self._freeing == 0:
            x, y = self._trail[0]
            if view.distance(x, y) < STUCK_UNITS:
                self._freeing, self._side = FREEING_STEPS, self._random.choice((-1, 1))
                self._trail.clear()
        if self._freeing:
            self._freeing -= 1
            action = act_on(move, view)
            side = "d" if self._side > 0 else "a"
            held = {*action.keys, side, *(("s",) if self._freeing > FREEING_STEPS // 2 else ())}
            held -= {"a" if side == "d" else "d", "w" if "s" in held else ""}
            return Action(tuple(sorted(held | ({"e"} if self._freeing % 4 == 0 else set()))), (), action.dx)
        return act_on(move, view, keys)
