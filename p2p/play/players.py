"""Who plays a game, by name: the policy, its control, scripted agents, and those that look at nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from p2p.actions import Action
from p2p.agents.controls import BlindAgent, IdleAgent, RandomAgent, ShuffledAgent
from p2p.environments.game import Agent, Frame, Game, Info
from p2p.environments.registry import AGENT_NAMES, make_agent
from p2p.play.results import POLICY, SHUFFLED
from p2p.play.rollout import rollout

if TYPE_CHECKING:
    import gymnasium

SAMPLE_SEED = 900_000_000
SAMPLE_EPISODES = 4  # of the scripted player: what the blind player draws from, and the frames of other moments
MAX_SHUFFLED_FRAMES = 600


class Players:
    """The agents of a game; the scripted player's episodes that some of them need are played when they are.

    Args:
        policy: what plays as the policy, and behind its control; None: neither is there.
        sample_env: an environment of the game with labels and without pictures, to sample in.
    """

    def __init__(
        self,
        game: Game,
        policy: Agent | None,
        sample_env: Callable[[], AbstractContextManager[gymnasium.Env[Frame, Any]]],
        sample_episodes: int = SAMPLE_EPISODES,
    ) -> None:
        self._game, self._policy = game, policy
        self._sample_env, self._sample_episodes = sample_env, sample_episodes

    def agent(self, name: str) -> Agent:
        """A new agent; the policy is always the same.

        Raises:
            ValueError: for a name that is no player's, and the policy's where there is none.
        """
        if name in (POLICY, SHUFFLED):
            if self._policy is None:
                raise ValueError(f"player {name!r}: there is no policy to play")
            return self._policy if name == POLICY else ShuffledAgent(self._policy, self._samples.frames)
        if name in AGENT_NAMES:
            return make_agent(self._game, name)
        if name == "blind":
            return BlindAgent(self._samples.actions)
        if name == "random":
            return RandomAgent(self._game)
        if name == "idle":
            return IdleAgent()
        raise ValueError(f"there is no player {name!r}")

    @cached_property
    def _samples(self) -> Sampled:
        """All actions and some frames of a few episodes of the scripted player."""
        every = max(1, self._sample_episodes * self._game.max_steps // MAX_SHUFFLED_FRAMES)
        with self._sample_env() as env:
            sampled = Sampled(make_agent(self._game), env, every)
            rollout(env, sampled, episodes=self._sample_episodes, seed=SAMPLE_SEED)
        return sampled


class Sampled:
    """An agent whose actions are kept, and of every few of them the picture before it."""

    def __init__(self, agent: Agent, env: gymnasium.Env[Frame, Any], every: int) -> None:
        self._agent, self._env, self._every = agent, env, every
        self.actions: list[Action] = []
        self.frames: list[Frame] = []

    def reset(self, seed: int) -> None:
        self._agent.reset(seed)

    def act(self, observation: Frame, info: Info) -> Action:
        if len(self.actions) % self._every == 0:
            picture: Any = self._env.render()
            self.frames.append(picture)
        self.actions.append(self._agent.act(observation, info))
        return self.actions[-1]
