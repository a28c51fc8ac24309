"""The environments: what a step does, what the picture and the return are, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.actions import KEY_NAMES, Action
from p2p.agents.controls import IdleAgent
from p2p.environments.doom_engine import (
    KEY_BUTTONS,
    LEVEL_KEY_BUTTONS,
    TURN_DEG_PER_PIXEL,
    Pose,
    bearing_deg,
    button_values,
)
from p2p.environments.doom_env import DoomEnv
from p2p.environments.doom_levels import is_level
from p2p.environments.registry import find_game, game_names, make_agent, make_env
from p2p.play.rollout import Step, rollout
from p2p.processes.reaper import mark_children, marked_processes

HEALTH = "doom:health_gathering"


@pytest.fixture(scope="module")
def health() -> Iterator[DoomEnv]:
    with closing(DoomEnv("health_gathering", labels=True)) as env:
        yield env


@pytest.fixture(scope="module")
def unseen() -> Iterator[DoomEnv]:
    """The same for agents that do not look."""
    with closing(DoomEnv("health_gathering", labels=True, pictures=False)) as env:
        yield env


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_an_unknown_game_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"doom:helth.*doom:health_gathering"):
        make_env("doom:helth")


def test_every_game_is_played_with_keys_that_the_engine_has() -> None:
    for game in map(find_game, game_names()):
        assert set(game.keys) <= set(LEVEL_KEY_BUTTONS if is_level(game.name) else KEY_BUTTONS)
        assert set(game.keys) <= set(KEY_NAMES)
        assert game.keys or game.buttons


def test_the_picture_is_rgb_of_the_size_that_policies_see(health: DoomEnv) -> None:
    frame, _ = health.reset(seed=5)
    assert frame.shape == (192, 192, 3)
    assert frame.dtype == np.uint8
    floor, sky = frame[150:], frame[:60]
    assert floor[..., 1].mean() > 2 * floor[..., 0].mean()  # the floor of this map is green
    assert sky[..., 2].mean() > sky[..., 0].mean()  # the sky blue


def test_a_seed_fixes_the_episode(health: DoomEnv) -> None:
    def first_frames(seed: int) -> list[np.ndarray]:  # type: ignore[type-arg]
        frames = [health.reset(seed=seed)[0]]
        frames += [health.step(Action(("w", "RightArrow")))[0] for _ in range(4)]
        return frames

    one, again, other = first_frames(1), first_frames(1), first_frames(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_doing_nothing_scores_what_it_must(unseen: DoomEnv) -> None:
    (episode,) = rollout(unseen, IdleAgent(), seed=3)
    assert episode.score == 284.0  # 384 tics alive, 100 off for dying
    assert episode.num_steps == 192


@pytest.mark.parametrize(("name", "score"), [("expert", 2100.0), ("contrary", 284.0)])
def test_the_scripted_players_score_what_they_must(unseen: DoomEnv, name: str, score: float) -> None:
    """The expert reaches the cap; the contrary one plays as if there were no medikits."""
    ends: list[tuple[bool, bool]] = []
    (episode,) = rollout(
        unseen, make_agent(find_game(HEALTH), name), [lambda s: ends.append((s.terminated, s.truncated))], seed=11
    )
    assert episode.score == score
    assert set(ends[:-1]) == {(False, False)}
    assert ends[-1] == ((False, True) if name == "expert" else (True, False))  # the time is over, or the player dead


def test_who_does_not_look_is_shown_nothing_and_can_still_draw(unseen: DoomEnv, health: DoomEnv) -> None:
    assert not unseen.reset(seed=5)[0].any()
    assert np.array_equal(unseen.render(), health.reset(seed=5)[0])


def test_the_arrow_turns_right_and_the_mouse_turns_by_its_pixels(health: DoomEnv) -> None:
    def medikits(info: dict[str, Any], least: float = 0) -> dict[int, float]:
        kits = [label for label in info["labels"] if "Medikit" in label.name and label.distance > least]
        return {round(kit.distance): kit.bearing_deg for kit in kits}

    before = medikits(health.reset(seed=1)[1], 60)
    after = medikits(health.step(Action(dx=30))[-1])
    common = before.keys() & after.keys()
    assert common
    for distance in common:  # turning right moves everything to the left
        assert after[distance] - before[distance] == pytest.approx(-30 * TURN_DEG_PER_PIXEL, abs=0.05)
    later = medikits(health.step(Action(("RightArrow",)))[-1])
    assert all(later[distance] < after[distance] for distance in common & later.keys())


def test_keys_unknown_to_the_game_do_nothing() -> None:
    assert button_values(Action(("q", "3"), ("2",))) == [0.0] * 9
    assert sum(button_values(Action(("Space",), ("0",)))) == 1.0  # two ways to fire


@pytest.mark.parametrize(("x", "y", "expected"), [(10, 0, 0.0), (0, -10, 90.0), (0, 10, -90.0), (10, -10, 45.0)])
def test_bearings_are_positive_to_the_right(x: float, y: float, expected: float) -> None:
    assert bearing_deg(Pose(0, 0, 0), x, y) == pytest.approx(expected)


def test_a_finished_episode_keeps_its_last_picture() -> None:
    steps: list[Step] = []
    with closing(make_env("doom:basic")) as env:
        (episode,) = rollout(env, IdleAgent(), [steps.append], seed=1)
        assert np.array_equal(env.render(), steps[-1].observation)  # type: ignore[arg-type]
    assert episode.score == -300.0


PROGRAM = """
import sys
from p2p.environments.registry import make_env
from p2p.processes.reaper import mark_children
env = make_env("doom:basic")
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


def test_a_closed_game_leaves_no_engine_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(marked_processes(mark_children()))
    env = DoomEnv("basic")
    assert list(tmp_path.glob("p2p-doom-*"))
    assert set(marked_processes(mark_children())) - before
    env.close()
    assert wait_until(lambda: set(marked_processes(mark_children())) <= before)
    assert not list(tmp_path.glob("p2p-doom-*"))
