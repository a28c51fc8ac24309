"""Plays a benchmark's episodes, one after another; an environment that crashes costs one, and is opened anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import gymnasium

from p2p.actions import FRAME_RATE_HZ
from p2p.bench.scores import End, Scored
from p2p.environments.game import Agent, Frame
from p2p.environments.registry import AGENT_NAMES, find_game, make_env
from p2p.play.players import Players
from p2p.play.results import POLICY, SHUFFLED
from p2p.play.rollout import Step, rollout

PLAYERS = ("expert", "random", "blind", "idle")  # beside the policy and its control
SAMPLE_EPISODES = 2  # of the expert, for the players that draw from them: those of a level are long
WAY_EVERY = FRAME_RATE_HZ // 2


class EnvironmentFailed(ValueError):  # noqa: N818  the field's word would be a crash
    """The environment, not the player, cannot go on."""


class Guarded(gymnasium.Wrapper[Frame, Any, Frame, Any]):
    """Says of an error that it was the environment's."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        with _failing():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Frame, Any, bool, bool, dict[str, Any]]:
        with _failing():
            return self.env.step(action)


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise EnvironmentFailed(str(error)) from error


MakeEnv = Callable[..., gymnasium.Env[Frame, Any]]


class Trace:
    """A subscriber that keeps what an episode is scored by."""

    def __init__(self) -> None:
        self.curve: list[float] = []
        self.way: list[tuple[float, float]] = []
        self.last: Step | None = None

    def __call__(self, step: Step) -> None:
        self.last = step
        told = step.outcome
        ended = step.terminated or step.truncated
        if "progress" in told and (step.index % FRAME_RATE_HZ == 0 or ended):
            self.curve.append(round(float(told["progress"]), 4))
        if "position" in told and (step.index % WAY_EVERY == 0 or ended):
            x, y = told["position"]
            self.way.append((round(x, 1), round(y, 1)))

    def scored(self, game: str, player: str, seed: int) -> Scored:
        """The episode that was followed."""
        assert self.last is not None, "an episode has a step at least"
        told, last = self.last.outcome, self.last
        end: End = "over"
        if "exited" in told:
            end = "exit" if told["exited"] else "dead" if told["dead"] else "time"
        score, kills = last.score + last.reward, int(told.get("kills", 0))
        return Scored(game, player, seed, end, score, last.index + 1, kills, tuple(self.curve), tuple(self.way))


class GamePlayers:
    """One game of a benchmark and whoever plays it.

    Args:
        policy: what is scored; None: only what it is compared with.
        make: opens an environment (`make_env`).
    """

    def __init__(self, game: str, policy: Agent | None = None, make: MakeEnv = make_env) -> None:
        self._game, self._make = find_game(game), make
        self._players = Players(
            self._game, policy, lambda: closing(self._make(game, labels=True, pictures=False)), SAMPLE_EPISODES
        )

    def play(self, player: str, seeds: Sequence[int]) -> Iterator[Scored]:
        """The player's episodes. One in which the environment fails is a crash, and the next has a new environment."""
        left = list(seeds)
        while left:
            with closing(self._open(player)) as env:
                agent = self._players.agent(player)
                while left:
                    seed, trace = left.pop(0), Trace()
                    try:
                        rollout(Guarded(env), agent, [trace], seed=seed)
                    except EnvironmentFailed as error:
                        yield Scored(self._game.name, player, seed, "crash", 0.0, 0, error=str(error))
                        break
                    yield trace.scored(self._game.name, player, seed)

    def _open(self, player: str) -> gymnasium.Env[Frame, Any]:
        return self._make(self._game.name, labels=player in AGENT_NAMES, pictures=player == POLICY)


def players_of(with_policy: bool, names: Sequence[str] = ("expert", "random", "blind")) -> list[str]:
    """Who plays, in this order: the policy and its control, if there is one, and those it is compared with.

    Raises:
        ValueError: for a name that is none of PLAYERS.
    """
    unknown = [name for name in names if name not in PLAYERS]
    if unknown:
        raise ValueError(f"--players {unknown[0]!r}: choose from {', '.join(PLAYERS)}")
    return [*((POLICY, SHUFFLED) if with_policy else ()), *names]
