"""The games: what a step does, what the picture and the score are, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from p2p.actions import KEY_NAMES, Action
from p2p.play.doom import KEY_BUTTONS, TURN_DEG_PER_PIXEL, HeadlessDoom, Pose, bearing_deg, button_values
from p2p.play.games import GAMES, game_info, open_game
from p2p.play.player import IdlePlayer, Player, scripted_player
from p2p.play.reaper import marked_processes

HEALTH = "doom:health_gathering"


@pytest.fixture(scope="module")
def health() -> Iterator[HeadlessDoom]:
    with HeadlessDoom(game_info(HEALTH), labels=True) as game:
        yield game


def play_through(game: HeadlessDoom, player: Player, seed: int) -> float:
    game.reset(seed)
    player.begin(game, seed)
    while not game.done:
        game.act(player.act(np.zeros((192, 192, 3), np.uint8)))
    return game.score


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_an_unknown_game_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"doom:helth.*doom:health_gathering"):
        open_game("doom:helth")


def test_every_game_is_played_with_keys_that_the_engine_has() -> None:
    for info in GAMES.values():
        assert set(info.keys) <= set(KEY_BUTTONS)
        assert set(info.keys) <= set(KEY_NAMES)
        assert info.keys or info.buttons


def test_the_picture_is_rgb_of_the_size_that_policies_see(health: HeadlessDoom) -> None:
    health.reset(5)
    frame = health.frame()
    assert frame.shape == (192, 192, 3)
    assert frame.dtype == np.uint8
    floor, sky = frame[150:], frame[:60]
    assert floor[..., 1].mean() > 2 * floor[..., 0].mean()  # the floor of this map is green
    assert sky[..., 2].mean() > sky[..., 0].mean()  # the sky blue


def test_a_seed_fixes_the_episode(health: HeadlessDoom) -> None:
    def first_frames(seed: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        health.reset(seed)
        frames = []
        for _ in range(5):
            frames.append(health.frame().copy())
            health.act(Action(("w", "RightArrow")))
        return frames

    one, again, other = first_frames(1), first_frames(1), first_frames(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_doing_nothing_scores_what_it_must(health: HeadlessDoom) -> None:
    assert play_through(health, IdlePlayer(), 3) == 284.0  # 384 tics alive, 100 off for dying


def test_the_scripted_player_reaches_the_cap(health: HeadlessDoom) -> None:
    assert play_through(health, scripted_player(game_info(HEALTH)), 11) == 2100.0


def test_the_contrary_player_scores_as_if_there_were_no_medikits(health: HeadlessDoom) -> None:
    assert play_through(health, scripted_player(game_info(HEALTH), "contrary"), 11) == 284.0


def test_the_arrow_turns_right_and_the_mouse_turns_by_its_pixels(health: HeadlessDoom) -> None:
    health.reset(1)
    before = {round(t.distance): t.bearing_deg for t in health.things() if "Medikit" in t.name and t.distance > 60}
    health.act(Action(dx=30))
    after = {round(t.distance): t.bearing_deg for t in health.things() if "Medikit" in t.name}
    common = before.keys() & after.keys()
    assert common
    for distance in common:  # turning right moves everything to the left
        assert after[distance] - before[distance] == pytest.approx(-30 * TURN_DEG_PER_PIXEL, abs=0.05)
    health.act(Action(("RightArrow",)))
    later = {round(t.distance): t.bearing_deg for t in health.things()}
    assert all(later[distance] < after[distance] for distance in common & later.keys())


def test_keys_unknown_to_the_game_do_nothing() -> None:
    assert button_values(Action(("q", "3"), ("2",))) == [0.0] * 9
    assert sum(button_values(Action(("Space",), ("0",)))) == 1.0  # two ways to fire


@pytest.mark.parametrize(("x", "y", "expected"), [(10, 0, 0.0), (0, -10, 90.0), (0, 10, -90.0), (10, -10, 45.0)])
def test_bearings_are_positive_to_the_right(x: float, y: float, expected: float) -> None:
    assert bearing_deg(Pose(0, 0, 0), x, y) == pytest.approx(expected)


def test_a_finished_episode_keeps_its_last_picture() -> None:
    with HeadlessDoom(game_info("doom:basic")) as game:
        game.reset(1)
        while not game.done:
            last = game.frame()
            game.act(Action())
        assert np.array_equal(game.frame(), last)
        assert game.score == -300.0


PROGRAM = """
import sys
from p2p.play.games import open_game
from p2p.play.reaper import mark_children
game = open_game("doom:basic")
print(mark_children(), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["sys.stdin.read()", "raise KeyError('a mistake')", "import os; os._exit(3)"])
def test_the_engine_ends_with_its_process_however_that_ends(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        mark = process.stdout.readline().strip()
        if "stdin" in end:
            assert len(marked_processes(mark)) == 1  # the engine
            os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert wait_until(lambda: not marked_processes(mark))


def test_a_closed_game_leaves_no_engine_and_no_folder() -> None:
    from p2p.play.reaper import mark_children

    before = set(marked_processes(mark_children()))
    game = HeadlessDoom(game_info("doom:basic"))
    folder = game._scratch.path
    assert set(marked_processes(mark_children())) - before
    game.close()
    assert wait_until(lambda: set(marked_processes(mark_children())) <= before)
    assert not folder.exists()
