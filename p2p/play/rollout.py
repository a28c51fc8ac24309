"""The one loop in which an agent acts in an environment; all else that happens meanwhile is a subscriber or a clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.actions import Action
from p2p.agents.policy import PolicySession, SessionAgent
from p2p.environments.game import Agent, Frame, Info
from p2p.play.clock import Clock, LiveEnv, RealtimeClock, StepClock

if TYPE_CHECKING:
    import gymnasium

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Step:
    """What a subscriber is told, once it is over.

    Args:
        index: in its episode, from 0.
        score: the return before it: the rewards of the steps before.
        observation: the picture that the agent saw, uint8 [Y, X, 3]; `info` beside it.
        outcome: what the environment said after it; where a person may play along, who did what (`WindowEnv`).
    """

    index: int
    score: float
    observation: Frame
    info: Info
    action: Action
    reward: float
    terminated: bool
    truncated: bool
    outcome: Info


@dataclass(frozen=True)
class Episode:
    """One that was played. `score` is its return, the sum of its rewards; `finished`: it came to its end."""

    seed: int
    score: float
    num_steps: int
    finished: bool


Subscriber = Callable[[Step], object]


def rollout(
    env: gymnasium.Env[Frame, Any],
    agent: Agent | PolicySession,
    subscribers: Iterable[Subscriber] = (),
    clock: Clock | None = None,
    episodes: int | None = 1,
    seed: int = 0,
) -> list[Episode]:
    """Let an agent act in an environment for whole episodes; returns what came of them.

        env = p2p.make_env("doom:health_gathering")
        for episode in p2p.rollout(env, policy.session(seed=0), episodes=3):
            print(episode.seed, episode.score)

    Args:
        env: such as `p2p.make_env` opens; any Gymnasium environment whose `step` takes an `Action` will do.
        agent: a `p2p.Session`, which forgets its history before each episode, or anything with `reset(seed)` and
            `act(observation, info) -> Action`.
        subscribers: each is called with every `Step`, in this order.
        clock: how time passes. Default: step by step, or in real time where the environment goes on by itself.
        episodes: how many; None: as many as the clock has time for. The clock may end the last one before its end.
        seed: of the first episode, 0 or more; that of each further one is the next number.

    Raises:
        ValueError: for a number that does not exist, or when the environment or the agent cannot go on.
    """
    gate.whole_number(seed, "seed", 0, MAX_SEED)
    if episodes is not None:
        gate.whole_number(episodes, "episodes", 1, MAX_SEED)
    elif clock is None:
        raise ValueError("episodes=None: without a clock that ends, give the number of episodes")
    clock = clock or (RealtimeClock() if isinstance(env.unwrapped, LiveEnv) else StepClock())
    player = SessionAgent(agent) if isinstance(agent, PolicySession) else agent
    told, played = [*subscribers], []
    for number in itertools.count() if episodes is None else range(episodes):
        if clock.is_over:
            break
        played.append(_episode(env, player, told, clock, seed + number))
    return played


def _episode(
    env: gymnasium.Env[Frame, Any], agent: Agent, subscribers: Iterable[Subscriber], clock: Clock, seed: int
) -> Episode:
    observation, info = env.reset(seed=seed)
    agent.reset(seed)
    clock.begin()
    score, num_steps, finished = 0.0, 0, False
    while not finished and not clock.is_over:
        action, outcome = clock.step(env, agent, observation, info)
        after, reward, terminated, truncated, told = outcome
        step = Step(num_steps, score, observation, info, action, float(reward), terminated, truncated, told)
        for subscriber in subscribers:
            subscriber(step)
        observation, info = after, told
        score, num_steps, finished = score + step.reward, num_steps + 1, terminated or truncated
    return Episode(seed, score, num_steps, finished)
