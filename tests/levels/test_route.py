"""Where a player can walk on a map, how far it is, and what has to be done first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p2p.gate import Refused
from p2p.levels.field import find_ways
from p2p.levels.grid import make_grid, sector_at
from p2p.levels.route import Planner
from p2p.levels.wad import Level, read_level
from tests.levels.tiny_wad import Point, Room, box, tiny_wad

EXIT_SWITCH, EXIT_LINE, DOOR, RED_DOOR, LIFT_SWITCH, REMOTE_DOOR, TELEPORTER = 11, 52, 1, 28, 62, 103, 97
RED_KEY, LANDING = 13, 14

Specials = Mapping[tuple[Point, Point], tuple[int, int]]


@pytest.fixture
def make(tmp_path: Path):  # type: ignore[no-untyped-def]  # a function of rooms
    def level(
        rooms: Sequence[Room],
        start: Point,
        specials: Specials | None = None,
        things: Sequence[tuple[int, int, int]] = (),
    ) -> Level:
        path = tmp_path / "tiny.wad"
        path.write_bytes(tiny_wad(rooms, start, specials, things))
        return read_level(path, "MAP01")

    return level


def walk(level: Level, start: Point, goal: Point) -> float:
    """The shortest way between two points, with all doors as they stand."""
    grid = make_grid(level)
    steps = grid.steps(level.floor, level.ceiling)
    return float(find_ways(grid, steps, [grid.place(*goal)]).distance[grid.place(*start)])


def test_a_straight_way_is_as_long_as_it_is(make) -> None:  # type: ignore[no-untyped-def]
    level = make([box(0, 0, 512, 256)], (64, 64))
    assert walk(level, (64, 64), (464, 64)) == 400
    assert walk(level, (64, 64), (224, 224)) == pytest.approx(160 * math.sqrt(2))


def test_a_way_leads_around_a_wall(make) -> None:  # type: ignore[no-untyped-def]
    corners = [(0, 0), (0, 256), (240, 256), (240, 64), (272, 64), (272, 256), (512, 256), (512, 0)]
    level = make([Room(corners)], (64, 224))
    around = math.dist((64, 224), (224, 48)) + 64 + math.dist((288, 48), (448, 224))
    assert around <= walk(level, (64, 224), (448, 224)) <= 1.09 * around


@pytest.mark.parametrize(("height", "there", "back"), [(24, True, True), (25, False, True), (-100, True, False)])
def test_a_step_of_24_is_climbed_and_any_drop_is_taken(make, height: int, there: bool, back: bool) -> None:  # type: ignore[no-untyped-def]
    level = make([box(0, 0, 256, 256), box(256, 0, 512, 256, floor=height)], (64, 64))
    assert math.isfinite(walk(level, (64, 128), (448, 128))) == there
    assert math.isfinite(walk(level, (448, 128), (64, 128))) == back


@pytest.mark.parametrize(("ceiling", "passes"), [(56, True), (55, False)])
def test_a_player_needs_56_units_of_headroom(make, ceiling: int, passes: bool) -> None:  # type: ignore[no-untyped-def]
    rooms = [box(0, 0, 256, 256), box(256, 96, 320, 160, ceiling=ceiling), box(320, 0, 512, 256)]
    rooms = [
        replace(rooms[0], corners=[(0, 0), (0, 256), (256, 256), (256, 160), (256, 96), (256, 0)]),
        rooms[1],
        replace(rooms[2], corners=[(320, 0), (320, 96), (320, 160), (320, 256), (512, 256), (512, 0)]),
    ]
    assert math.isfinite(walk(make(rooms, (64, 64)), (64, 128), (448, 128))) == passes


@pytest.mark.parametrize(("width", "passes"), [(32, True), (30, False)])
def test_a_player_is_32_units_wide(make, width: int, passes: bool) -> None:  # type: ignore[no-untyped-def]
    low, high = 128 - width // 2, 128 + width // 2
    corners = [(0, 0), (0, 256), (240, 256), (240, high), (272, high), (272, 256), (512, 256)]
    corners += [(512, 0), (272, 0), (272, low), (240, low), (240, 0)]
    assert math.isfinite(walk(make([Room(corners)], (64, 64)), (64, 128), (448, 128))) == passes


def test_a_pillar_of_decoration_is_walked_around(make) -> None:  # type: ignore[no-untyped-def]
    free = make([box(0, 0, 512, 256)], (64, 128))
    blocked = make([box(0, 0, 512, 256)], (64, 128), things=[(256, 128, 30)])
    assert walk(blocked, (64, 128), (448, 128)) > walk(free, (64, 128), (448, 128))


def test_every_place_lies_in_the_sector_of_its_room(make) -> None:  # type: ignore[no-untyped-def]
    rooms = [box(0, 0, 256, 256), box(256, 0, 512, 256, floor=16), box(0, 256, 256, 512, floor=8)]
    level = make(rooms, (64, 64))
    grid = make_grid(level)
    for number, (x, y) in enumerate([(128, 128), (384, 128), (128, 384)]):
        assert grid.sector[grid.place(x, y)] == number == sector_at(level, x, y)
    assert grid.sector[grid.place(384, 384)] == -1 == sector_at(level, 384, 384)


# A room with the start; a door; a corridor with a switch to leave.
HALL = Room([(0, 0), (0, 256), (256, 256), (256, 160), (256, 96), (256, 0)])
DOORWAY = box(256, 96, 272, 160, ceiling=0)
CORRIDOR = Room([(272, 0), (272, 96), (272, 160), (272, 256), (512, 256), (512, 0)])
FACE, EXIT = ((256, 160), (256, 96)), ((512, 256), (512, 0))


def doors(make, door: int = DOOR, things: Sequence[tuple[int, int, int]] = ()) -> Planner:  # type: ignore[no-untyped-def]
    return Planner(make([HALL, DOORWAY, CORRIDOR], (64, 128), {FACE: (door, 0), EXIT: (EXIT_SWITCH, 0)}, things))


def test_first_the_door_is_opened_and_then_the_exit_is_used(make) -> None:  # type: ignore[no-untyped-def]
    planner = doors(make)
    closed = planner.beginning
    task = planner.next_task(closed, 64, 128)
    assert (task.target.kind, task.target.sectors) == ("use", {1})
    opened = replace(closed, ceiling=np.array([128, 124, 128]))
    task = planner.next_task(opened, 64, 128)
    assert (task.target.kind, task.target.line, task.blocked) == ("use", planner.exits[0].line, len(task.way))


def test_who_stands_before_a_door_that_moves_waits(make) -> None:  # type: ignore[no-untyped-def]
    planner = doors(make)
    opening = replace(planner.beginning, ceiling=np.array([128, 30, 128]), moving=frozenset({1}))
    assert planner.next_task(opening, 224, 128).wait


def test_a_locked_door_wants_its_key_first(make) -> None:  # type: ignore[no-untyped-def]
    planner = doors(make, RED_DOOR, [(64, 224, RED_KEY)])
    without = planner.beginning
    assert (planner.next_task(without, 64, 64).target.kind, planner.next_task(without, 64, 64).target.key) == (
        "take",
        "red",
    )
    with_key = replace(without, keys=frozenset({"red"}))
    assert planner.next_task(with_key, 64, 64).target.sectors == {1}


def test_a_locked_door_without_a_key_leaves_no_way(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no way leads from"):
        doors(make, RED_DOOR).next_task(doors(make, RED_DOOR).beginning, 64, 64)


def test_a_switch_far_away_is_used_before_the_door_that_it_opens(make) -> None:  # type: ignore[no-untyped-def]
    rooms = [replace(HALL, corners=[(-1024, 0), (-1024, 256), *HALL.corners[2:]]), replace(DOORWAY, tag=5), CORRIDOR]
    switch = ((-1024, 0), (-1024, 256))
    planner = Planner(make(rooms, (64, 128), {switch: (REMOTE_DOOR, 5), EXIT: (EXIT_SWITCH, 0)}))
    task = planner.next_task(planner.beginning, 200, 128)
    assert (task.target.kind, task.target.sectors, task.blocked) == ("use", {1}, len(task.way))
    assert planner.grid.point(task.way[-1])[0] < -960


def test_a_lift_is_called_ridden_and_left(make) -> None:  # type: ignore[no-untyped-def]
    lift, upstairs = box(256, 0, 384, 256, floor=96, ceiling=256, tag=3), box(384, 0, 640, 256, floor=96, ceiling=256)
    face, way_out = ((256, 256), (256, 0)), ((640, 256), (640, 0))
    rooms = [box(0, 0, 256, 256, ceiling=256), lift, upstairs]
    planner = Planner(make(rooms, (64, 128), {face: (LIFT_SWITCH, 3), way_out: (EXIT_SWITCH, 0)}))
    up = planner.beginning
    down = replace(up, floor=np.array([0, 0, 96]))
    called = planner.next_task(up, 64, 128)
    assert (called.target.kind, called.target.sectors) == ("use", {1})
    entering = planner.next_task(down, 64, 128)
    assert (entering.wait, entering.target.line) == (True, planner.exits[0].line)
    riding = planner.next_task(down, 320, 128)
    assert riding.wait
    leaving = planner.next_task(up, 320, 128)
    assert (leaving.wait, leaving.target.line) == (False, planner.exits[0].line)


def test_a_teleporter_is_part_of_the_way(make) -> None:  # type: ignore[no-untyped-def]
    here, there = Room([(0, 0), (0, 256), (128, 256), (128, 0)]), box(128, 0, 256, 256)
    far = box(1024, 0, 1280, 256, tag=9)
    line, way_out = ((128, 256), (128, 0)), ((1280, 256), (1280, 0))
    specials = {line: (TELEPORTER, 9), way_out: (EXIT_SWITCH, 0)}
    planner = Planner(make([here, there, far], (64, 128), specials, [(1152, 128, LANDING)]))
    way = planner.next_task(planner.beginning, 64, 128).way
    jumps = [index for index in range(1, len(way)) if planner.ground.is_jump(way[index - 1], way[index])]
    assert len(jumps) == 1
    assert planner.grid.point(way[jumps[0]]) == (1152, 128)


def test_an_exit_line_is_walked_over(make) -> None:  # type: ignore[no-untyped-def]
    rooms = [box(0, 0, 256, 256), box(256, 0, 512, 256)]
    planner = Planner(make(rooms, (64, 128), {((256, 256), (256, 0)): (EXIT_LINE, 0)}))
    assert planner.next_task(planner.beginning, 64, 128).target.kind == "walk"


@pytest.mark.parametrize(("start", "exits", "reason"), [(True, False, "ends the level"), (False, True, "no start")])
def test_a_map_without_start_or_exit_is_refused(make, start: bool, exits: bool, reason: str) -> None:  # type: ignore[no-untyped-def]
    level = make([box(0, 0, 256, 256)], (64, 128), {((256, 256), (256, 0)): (EXIT_SWITCH, 0)} if exits else {})
    with pytest.raises(Refused, match=reason):
        Planner(level if start else replace(level, things=level.things[:0]))


def test_a_map_that_is_too_wide_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Refused, match="places; at most"):
        make_grid(make([box(-32000, -32000, 32000, 32000)], (0, 0)))
