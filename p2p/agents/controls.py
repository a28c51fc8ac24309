"""Agents that learned nothing, with which a policy is compared, and wrappers that change what an agent sees or does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2p.actions import Action
from p2p.environments.game import Agent, Frame, Game, Info


class RandomAgent:
    """Random keys, buttons and turns of the game's own vocabulary, each choice held for 1 to 10 steps."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))
        self._left = 0
        self._action = Action()

    def act(self, observation: Frame, info: Info) -> Action:
        if self._left == 0:
            self._left = int(self._rng.integers(1, 11))
            self._action = random_action(self._game, self._rng)
        self._left -= 1
        return self._action


def random_action(game: Game, rng: np.random.Generator) -> Action:
    """Each key and button of the game's vocabulary is down with probability 1/2; the mouse turns by up to 60 pixels."""
    keys = tuple(key for key in game.keys if rng.random() < 0.5)
    buttons = tuple(button for button in game.buttons if rng.random() < 0.5)
    return Action(keys, buttons, int(rng.integers(-60, 61)) if game.mouse else 0)


class IdleAgent:
    """Presses nothing."""

    def reset(self, seed: int) -> None:
        return

    def act(self, observation: Frame, info: Info) -> Action:
        return Action()


class BlindAgent:
    """Draws each step's action from those that an agent took, as often as it took them, without looking."""

    def __init__(self, actions: Sequence[Action]) -> None:
        if not actions:
            raise ValueError("the blind player has no actions to draw from; give at least one episode of them")
        self._actions = actions

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 2))

    def act(self, observation: Frame, info: Info) -> Action:
        return self._actions[int(self._rng.integers(len(self._actions)))]


class ShuffledAgent:
    """The same agent, but each frame is replaced by one of another moment, drawn from a bank."""

    def __init__(self, agent: Agent, bank: Sequence[Frame]) -> None:
        self._agent, self._bank = agent, bank

    def reset(self, seed: int) -> None:
        self._agent.reset(seed)
        self._rng = np.random.default_rng((seed, 4))

    def act(self, observation: Frame, info: Info) -> Action:
        return self._agent.act(self._bank[int(self._rng.integers(len(self._bank)))], info)


class DisturbedAgent:
    """Executes short bursts of random actions now and then, while `intended` stays what the agent would have done.

    So recordings hold mistakes and the way back from them, all labelled with what the agent wanted.
    """

    def __init__(self, agent: Agent, game: Game, rate: float, longest_steps: int = 8) -> None:
        self._agent, self._game = agent, game
        self._rate, self._longest = rate, longest_steps
        self.intended = Action()

    def reset(self, seed: int) -> None:
        self._agent.reset(seed)
        self._rng = np.random.default_rng((seed, 3))
        self._left = 0
        self._burst = Action()

    def act(self, observation: Frame, info: Info) -> Action:
        self.intended = self._agent.act(observation, info)
        if self._left == 0 and self._rng.random() < self._rate:
            self._left = int(self._rng.integers(1, self._longest + 1))
            self._burst = random_action(self._game, self._rng)
        if self._left == 0:
            return self.intended
        self._left -= 1
        return self._burst
