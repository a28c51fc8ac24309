"""Whole levels as environments: how far a player got, when it is over, and a scripted player that gets to the exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from p2p.actions import Action
from p2p.agents.controls import IdleAgent
from p2p.environments import doom_levels
from p2p.environments.doom_engine import TURN_DEG_PER_PIXEL
from p2p.environments.doom_level_env import DoomLevelEnv
from p2p.environments.gym_ids import gym_id, register
from p2p.environments.registry import find_game, game_names, make_agent, make_env
from p2p.levels import walking
from p2p.play.rollout import Step, rollout

EMPTY = "doom:freedoom2:MAP01:no_monsters"


@pytest.fixture(scope="module")
def empty() -> Iterator[DoomLevelEnv]:
    """MAP01 without monsters, for its scripted player."""
    with closing(DoomLevelEnv(doom_levels.level_map(EMPTY), labels=True, pictures=False)) as env:
        yield env


def test_the_scripted_player_finishes_a_level_and_progress_only_grows(empty: DoomLevelEnv) -> None:
    steps: list[Step] = []
    (episode,) = rollout(empty, make_agent(find_game(EMPTY)), [steps.append], seed=3)
    shares = [step.outcome["progress"] for step in steps]
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert all(share < 1 for share in shares[:-1])
    assert shares[-1] == 1
    assert (steps[-1].terminated, steps[-1].outcome["exited"], steps[-1].outcome["dead"]) == (True, True, False)
    assert episode.score == pytest.approx(100)
    assert episode.num_steps < 20 * 30, "half a minute is twice of what it takes"
    assert max(abs(step.action.dx) for step in steps) <= walking.MAX_TURN_PX


def test_it_goes_on_from_wherever_somebody_else_has_left_it(empty: DoomLevelEnv) -> None:
    """The answer depends on the state, so it can be asked in the middle of another's episode."""

    class Wanderer:
        """Somebody else for five seconds: forward, to the left."""

        def __init__(self) -> None:
            self.expert = make_agent(find_game(EMPTY))

        def reset(self, seed: int) -> None:
            self.num_steps = 0
            self.expert.reset(seed)

        def act(self, observation: Any, info: Any) -> Action:
            self.num_steps += 1
            return Action(("a", "w"), (), 3) if self.num_steps < 100 else self.expert.act(observation, info)

    last: list[Step] = []
    rollout(empty, Wanderer(), [last.append], seed=4)
    assert last[-1].outcome["exited"]


def test_a_seed_fixes_the_episode_and_another_gives_another(empty: DoomLevelEnv) -> None:
    def start(seed: int) -> tuple[float, float]:
        position: tuple[float, float] = empty.reset(seed=seed)[1]["position"]
        return position

    assert start(1) == start(1) != start(2)


def test_who_does_nothing_covers_nothing_and_the_time_runs_out() -> None:
    with closing(DoomLevelEnv(doom_levels.level_map(EMPTY), pictures=False, seconds=2)) as env:
        steps: list[Step] = []
        (episode,) = rollout(env, IdleAgent(), [steps.append], seed=1)
    assert episode.num_steps == 40
    assert steps[-1].truncated
    assert not steps[-1].outcome["exited"]
    assert episode.score < 5


def test_the_scripted_player_must_be_told_of_its_surroundings() -> None:
    agent = make_agent(find_game(EMPTY))
    agent.reset(0)
    with pytest.raises(ValueError, match="labels=True"):
        agent.act(np.zeros((192, 192, 3), np.uint8), {})


@pytest.mark.parametrize(
    "name", ["doom:freedoom2:MAP1", "doom:freedoom2", "doom:freedoom1:E1M1:easy", "doom:freedoom2:../x"]
)
def test_a_level_that_cannot_be_is_refused_with_what_can(name: str) -> None:
    with pytest.raises(ValueError, match="expected doom:IWAD:MAP"):
        make_env(name)


def test_a_map_that_the_file_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no map 'E1M1'; the maps in it are MAP01"):
        make_env("doom:freedoom2:E1M1")


def test_the_mouse_turns_as_far_in_the_expert_s_mind_as_in_the_engine() -> None:
    assert walking.TURN_DEG_PER_PIXEL == TURN_DEG_PER_PIXEL


@pytest.mark.parametrize("seed", [25, 77])
def test_no_picture_of_an_episode_shows_what_was_done_in_the_one_before(seed: int) -> None:
    with closing(DoomLevelEnv(doom_levels.level_map("doom:freedoom2:MAP01"))) as env:
        env.action_space.seed(123)
        action = env.action_space.sample()
        env.reset(seed=123)
        first = env.step(action)[0].copy()
        env.action_space.seed(100_000 + seed)
        other = env.action_space.sample()
        env.reset(seed=seed)
        for _ in range(seed % 3 + 1):
            env.step(other)
        env.reset(seed=123)
        np.testing.assert_array_equal(env.step(action)[0], first)


def test_gymnasium_makes_our_games_by_their_ids_and_its_checker_passes() -> None:
    register()
    assert gym_id("doom:freedoom2:MAP01") == "p2p/doom-levels-MAP01-v0"
    assert gym_id("doom:freedoom1:E1M1:no_monsters") == "p2p/doom-levels-E1M1-no-monsters-v0"
    assert gym_id("doom:health_gathering") == "p2p/doom-rooms-health-gathering-v0"
    ids = {gym_id(name) for name in game_names()}
    assert len(ids) == len(game_names())
    assert ids <= set(gymnasium.registry)
    with closing(gymnasium.make("p2p/doom-levels-MAP01-v0")) as env:
        check_env(env.unwrapped)
    with pytest.raises(ValueError, match="render_mode 'human'"):
        gymnasium.make("p2p/doom-levels-MAP01-v0", render_mode="human")
