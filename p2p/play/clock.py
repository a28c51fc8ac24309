"""How time passes in a rollout: step by step, or by the wall clock, where answers are executed when they come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.environments.game import Agent, Frame, Info, Outcome

if TYPE_CHECKING:
    import gymnasium


class Ticker:
    """Boundaries from now on, `rate_hz` a second; late ones are dropped, never caught up in a burst."""

    def __init__(self, rate_hz: float = FRAME_RATE_HZ, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s, self._clock = 1.0 / rate_hz, clock
        self._start_s = clock()
        self._tick = 0

    @property
    def deadline_s(self) -> float:
        """The time of the next boundary."""
        return self._start_s + (self._tick + 1) * self._period_s

    def advance(self) -> int:
        """Go to the newest boundary that has passed; returns how many were skipped (0: in time).

        Call it at or after `deadline_s`.
        """
        now_tick = math.floor((self._clock() - self._start_s) / self._period_s + 1e-9)
        skipped = max(0, now_tick - self._tick - 1)
        self._tick = max(now_tick, self._tick + 1)
        return skipped


@dataclass
class TickStatistics:
    """What happened to the ticks of real-time play."""

    num_ticks: int = 0
    num_skipped: int = 0  # whole ticks that nothing was done in, because the one before took too long
    num_late: int = 0  # frames whose answer was not there when the next frame was due
    latencies_s: list[float] = field(default_factory=list)

    @property
    def late_share(self) -> float:
        """Late or skipped ticks over all."""
        return (self.num_late + self.num_skipped) / max(1, self.num_ticks + self.num_skipped)

    def summary(self) -> str:
        """One line."""
        if not self.latencies_s:
            return "no answers"
        p50, p99 = np.percentile(self.latencies_s, [50, 99]) * 1000
        return (
            f"{self.num_ticks} ticks at {FRAME_RATE_HZ} Hz, {100 * self.late_share:.1f} % late or dropped, "
            f"round trip p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )


class Clock(Protocol):
    """How the steps of a rollout follow each other."""

    @property
    def is_over(self) -> bool:
        """Whether the time of the rollout is over."""

    def begin(self) -> None:
        """An episode begins."""

    def step(
        self, env: gymnasium.Env[Frame, Any], agent: Agent, observation: Frame, info: Info
    ) -> tuple[Action, Outcome]:
        """One step: what the agent did, and what the environment says after it."""


class StepClock:
    """The environment waits for each answer: as fast as the two can."""

    is_over = False

    def begin(self) -> None:
        return

    def step(
        self, env: gymnasium.Env[Frame, Any], agent: Agent, observation: Frame, info: Info
    ) -> tuple[Action, Outcome]:
        action = agent.act(observation, info)
        return action, env.step(action)


@runtime_checkable
class LiveEnv(Protocol):
    """An environment that goes on by itself, such as `WindowEnv`."""

    def hold(self, action: Action) -> None: ...

    def observe(self) -> Outcome: ...


@runtime_checkable
class LiveAgent(Protocol):
    """An agent that need not be waited for, such as `RemoteAgent`."""

    def send(self, observation: Frame, info: Info) -> int: ...

    def answers(self, deadline_s: float) -> list[tuple[Action, int]]: ...


class _Immediate:
    """An agent that answers at once, as a LiveAgent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def send(self, observation: Frame, info: Info) -> int:
        self._answer = self._agent.act(observation, info)
        return 0

    def answers(self, deadline_s: float) -> list[tuple[Action, int]]:
        return [(self._answer, 0)]


class RealtimeClock:
    """20 steps a second: a frame each tick; every answer is executed when it comes; without one the keys stay.

    Args:
        seconds: of all episodes together; then the rollout is over.
        clock: seconds since some moment.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.statistics = TickStatistics()
        self._seconds, self._clock = seconds, clock
        self._end_s: float | None = None

    @property
    def is_over(self) -> bool:
        return self._end_s is not None and self._clock() >= self._end_s

    def begin(self) -> None:
        if self._end_s is None:
            self._end_s = self._clock() + self._seconds
        self._sent_s: dict[int, float] = {}
        self._held = Action()
        self._ticker = Ticker(clock=self._clock)

    def step(
        self, env: gymnasium.Env[Frame, Any], agent: Agent, observation: Frame, info: Info
    ) -> tuple[Action, Outcome]:
        """Send the frame of this tick, and wait until the tick is over.

        An environment that goes on by itself executes each answer in the moment it comes, so that it takes effect when
        a recorded person's keys would have: between its frame and the next. One that stands still meanwhile is told
        what all of them come to.
        """
        live_agent = agent if isinstance(agent, LiveAgent) else _Immediate(agent)
        live_env = env if isinstance(env, LiveEnv) else None
        done = self._tick(live_agent, observation, info, live_env.hold if live_env else None)
        return done, live_env.observe() if live_env else env.step(done)

    def _tick(
        self, agent: LiveAgent, observation: Frame, info: Info, execute: Callable[[Action], None] | None
    ) -> Action:
        sent_s = self._clock()
        self._sent_s[agent.send(observation, info)] = sent_s
        deadline_s = self._ticker.deadline_s
        done = self._held.at_rest()
        while self._sent_s:
            for answer in self._take(agent, deadline_s):
                if execute is not None:
                    execute(answer)
                done = done.followed_by(answer)
            if self._clock() >= deadline_s:  # asked once at least: an agent in this process may take longer than a tick
                break
        while (left_s := deadline_s - self._clock()) > 0:
            time.sleep(left_s)
        self.statistics.num_ticks += 1
        self.statistics.num_late += bool(self._sent_s)
        self.statistics.num_skipped += self._ticker.advance()
        self._held = done
        return done

    def _take(self, agent: LiveAgent, deadline_s: float) -> Iterator[Action]:
        """The answers that have come, oldest first; waits for the first until `deadline_s`."""
        for action, number in agent.answers(deadline_s):
            sent_s = self._sent_s.pop(number, None)
            if sent_s is not None:
                self.statistics.latencies_s.append(self._clock() - sent_s)
                for older in [other for other in self._sent_s if other < number]:
                    del self._sent_s[older]  # the server answers only the newest: these never come
                yield action
