"""Environments through Gymnasium's eyes, the one loop, and a game that comes from elsewhere."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from p2p.actions import BUTTON_NAMES, KEY_NAMES, Action
from p2p.agents.controls import IdleAgent
from p2p.cli import main
from p2p.environments.environment import Environment
from p2p.environments.registry import find_game, game_names, make_agent, make_env
from p2p.play.clock import StepClock
from p2p.play.rollout import Episode, Step, rollout

BASIC = "doom:basic"
PICTURE = np.full((192, 192, 3), 9, np.uint8)


class Counting(Environment):
    """Ends after three steps; the reward is how many keys are down."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds = [*getattr(self, "seeds", []), self.episode_seed(seed)]
        self.left = 3
        return PICTURE.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return PICTURE.copy(), float(len(action.keys)), self.left == 0, False, {}


class Walker:
    """Walks; keeps the seeds that it was told."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)

    def act(self, observation: Any, info: Any) -> Action:
        return Action(("w",))


# ------------------------------------------------------------------ the interface


@pytest.mark.parametrize("labels", [False, True])
def test_gymnasium_s_checker_finds_nothing_wrong(labels: bool) -> None:
    with closing(make_env("doom:health_gathering", labels=labels)) as env:
        check_env(env, skip_close_check=True)


def test_a_step_takes_an_action_and_a_sample_alike() -> None:
    turned = Action(("RightArrow",), (), 12)
    with closing(make_env("doom:health_gathering")) as env:
        after = []
        for action in (turned, turned.to_sample()):
            env.reset(seed=4)
            after.append(env.step(action)[0])
        env.reset(seed=4)
        still = env.step(Action())[0]
    assert np.array_equal(*after)
    assert not np.array_equal(after[0], still)


@given(
    st.sets(st.sampled_from(KEY_NAMES[1:])),
    st.sets(st.sampled_from(BUTTON_NAMES[1:])),
    st.integers(-501, 501),
    st.integers(-151, 151),
)
def test_an_action_comes_back_from_the_action_space(keys: set[str], buttons: set[str], dx: int, dy: int) -> None:
    action = Action(tuple(sorted(keys)), tuple(sorted(buttons)), dx, dy)
    sample = action.to_sample()
    assert SPACE.contains(sample)
    assert Action.from_sample(sample) == action


SPACE = Environment().action_space


def test_every_sample_of_the_space_is_an_action() -> None:
    SPACE.seed(1)
    for _ in range(50):
        sample = SPACE.sample()
        back = Action.from_sample(sample).to_sample()
        assert all(np.array_equal(sample[part], back[part]) for part in ("keys", "buttons", "mouse"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": None}, "keys of an action"),
        ({"keys": np.zeros(18)}, r"keys of an action has shape \[18\].*expected \[19\]"),
        ({"keys": np.full(19, 2)}, "expected 0 or 1 for each of Space, 1, 2"),
        ({"buttons": ["a", "b", "c"]}, "buttons of an action: expected 3 numbers"),
        ({"mouse": [float("nan"), 0]}, "no finite numbers"),
        ({"mouse": [10**400, 0]}, "mouse of an action: expected 2 numbers"),
        ({"mouse": [1 << 40, 0]}, "no finite numbers"),
    ],
)
def test_what_is_no_action_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Action.from_sample({**Action().to_sample(), **change})


@pytest.mark.parametrize("action", [{}, 3, None, {"keys": np.zeros(19), "buttons": np.zeros(3)}])
def test_an_action_with_a_part_missing_says_which_parts_there_are(action: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an Action, or keys \[19\], buttons \[3\] and mouse \[2\]"):
        Action.from_sample(action)


# ------------------------------------------------------------------ the loop


def test_a_rollout_tells_every_subscriber_every_step_and_returns_the_episodes() -> None:
    env, agent, steps, also = Counting(), Walker(), [], []  # type: ignore[var-annotated]
    episodes = rollout(env, agent, [steps.append, also.append], episodes=2, seed=7)
    assert episodes == [Episode(7, 3.0, 3, True), Episode(8, 3.0, 3, True)]
    assert env.seeds == agent.seeds == [7, 8]
    assert steps == also
    assert [(s.index, s.score, s.reward, s.terminated) for s in steps[3:]] == [
        (0, 0.0, 1.0, False),
        (1, 1.0, 1.0, False),
        (2, 2.0, 1.0, True),
    ]


def test_the_same_seed_is_the_same_episode_to_the_pixel() -> None:
    with closing(make_env(BASIC, labels=True)) as env:
        runs: list[list[Step]] = [[], []]
        for run in runs:
            rollout(env, make_agent(find_game(BASIC)), [run.append], seed=5)
    assert len(runs[0]) == len(runs[1]) > 3
    assert all(
        a.action == b.action and np.array_equal(a.observation, b.observation) for a, b in zip(*runs, strict=True)
    )


def test_a_subscriber_that_fails_ends_the_rollout() -> None:
    def full(step: Step) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        rollout(Counting(), Walker(), [full])


class FewSteps(StepClock):
    """A clock that has time for four steps."""

    def __init__(self) -> None:
        self.num_steps = 0

    @property
    def is_over(self) -> bool:  # type: ignore[override]
        return self.num_steps >= 4

    def step(self, *arguments: Any) -> Any:
        self.num_steps += 1
        return super().step(*arguments)


def test_a_clock_ends_the_rollout_and_its_last_episode_is_unfinished() -> None:
    assert rollout(Counting(), Walker(), clock=FewSteps(), episodes=None) == [
        Episode(0, 3.0, 3, True),
        Episode(1, 1.0, 1, False),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"episodes": 0}, "episodes"), ({"seed": -1}, "seed"), ({"episodes": None}, "give the number of episodes")],
)
def test_numbers_that_no_rollout_has_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(Counting(), Walker(), **arguments)


# ------------------------------------------------------------------ a game from elsewhere

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
WITH_EXPERT = """
from p2p.actions import Action


class Straight:
    def reset(self, seed): ...

    def act(self, observation, info):
        return Action(("w",))


SHORT.agents["expert"] = Straight
"""


@pytest.fixture
def maze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with the game that the page on contributing shows: a module and an entry point."""
    (shown,) = re.findall(r"## A new game\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    site = tmp_path / "site"
    (site / "p2p_maze-1.dist-info").mkdir(parents=True)
    (site / "p2p_maze.py").write_text(shown + WITH_EXPERT)
    (site / "p2p_maze-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: p2p-maze\nVersion: 1\n")
    (site / "p2p_maze-1.dist-info" / "entry_points.txt").write_text("[p2p.environments]\nmaze = p2p_maze\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{':'.join(sys.path)}")  # of the processes that play
    importlib.invalidate_caches()
    yield site
    sys.modules.pop("p2p_maze", None)


def test_a_game_of_another_package_is_listed_checked_and_played(maze: Path) -> None:
    assert "maze:short" in game_names()
    env = make_env("maze:short")
    check_env(env, skip_close_check=True)
    assert rollout(env, make_agent(find_game("maze:short")), seed=2) == [Episode(2, -5.0, 5, True)]
    with pytest.raises(ValueError, match="the one maze is maze:short"):
        make_env("maze:long")


def test_a_game_of_another_package_is_played_and_recorded_by_the_commands(
    maze: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", "--game", "maze:short", "--compare", "expert", "--episodes", "2"]) == 0
    assert "| expert |        2 |       -5.0 |" in capsys.readouterr().out
    record = ["record", "--game", "maze:short", "--episodes", "1", "--disturbance", "0", "--out", str(tmp_path / "raw")]
    assert main(record) == 0
    assert "1 recordings made (5 frames" in capsys.readouterr().out


def test_a_package_whose_games_cannot_be_loaded_is_named_and_leaves_the_others(
    maze: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (maze / "p2p_maze.py").write_text("import no_such_module")
    assert "doom:basic" in game_names()
    assert "the games maze: of p2p_maze cannot be loaded: No module named 'no_such_module'" in caplog.text
    with pytest.raises(ValueError, match="cannot be loaded"):
        make_env("maze:short")


def test_an_environment_of_gymnasium_s_own_can_be_rolled_out() -> None:
    class Theirs(gymnasium.Env[Any, Any]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return PICTURE, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return PICTURE, 1.0, False, True, {}

    wrapped = gymnasium.wrappers.RecordEpisodeStatistics(Theirs())
    assert rollout(wrapped, IdleAgent(), episodes=2) == [Episode(0, 1.0, 1, True), Episode(1, 1.0, 1, True)]
