"""Time in a rollout: ticks of the wall clock, and answers that are executed when they come."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest

from p2p.actions import Action
from p2p.agents.remote import RemoteAgent
from p2p.environments.game import Outcome
from p2p.play.clock import RealtimeClock, Ticker
from p2p.play.rollout import rollout
from p2p.protocol import MessageReader, encode_action, parse_frame

FRAME = np.full((192, 192, 3), 7, np.uint8)
Peer = Callable[[Callable[[socket.socket], None]], str]


class Standing(gymnasium.Env[Any, Any]):
    """An environment that stands still until a step is done; an episode has 20."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.num_steps = 0
        return FRAME, {}

    def step(self, action: Action) -> Outcome:
        self.num_steps = getattr(self, "num_steps", 0) + 1
        return FRAME, 1.0, self.num_steps == 20, False, {}


class Live(Standing):
    """One that goes on by itself, and hands what is executed on."""

    def __init__(self, hold: Callable[[Action], None]) -> None:
        self.hold = hold

    def observe(self) -> Outcome:
        return FRAME, 0.0, False, False, {}


class Walker:
    """Walks and turns."""

    def reset(self, seed: int) -> None: ...

    def act(self, observation: Any, info: Any) -> Action:
        return Action(("w",), (), 3)


def receive(connection: socket.socket, count: int) -> list[int]:
    """The ids of the next `count` frames."""
    reader, ids = MessageReader(), []
    while len(ids) < count:
        ids += [parse_frame(payload).id for payload in reader.feed(connection.recv(1 << 16))]
    return ids


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ticks_in_time_are_not_skipped() -> None:
    clock = Clock()
    ticker = Ticker(20, clock)
    for index in range(1, 50):
        assert ticker.deadline_s == pytest.approx(100 + index * 0.05)
        clock.now = ticker.deadline_s
        assert ticker.advance() == 0


def test_late_ticks_are_dropped_and_not_caught_up() -> None:
    clock = Clock()
    ticker = Ticker(20, clock)
    clock.now = 100.18  # the boundaries at .05, .10 and .15 have passed
    assert ticker.advance() == 2
    assert ticker.deadline_s == pytest.approx(100.20)
    clock.now = 100.201
    assert ticker.advance() == 0
    assert ticker.deadline_s == pytest.approx(100.25)


def test_twenty_ticks_take_a_second(echo: str) -> None:
    clock, env = RealtimeClock(), Standing()
    with closing(RemoteAgent(echo, one_session=True)) as agent:
        agent.reset()
        agent.act(FRAME, {})
        start = time.monotonic()
        (episode,) = rollout(env, agent, clock=clock)
        elapsed = time.monotonic() - start
    statistics = clock.statistics
    assert (episode.num_steps, statistics.num_ticks) == (20, 20)
    due_s = 0.05 * (20 + statistics.num_skipped)
    assert due_s - 0.001 <= elapsed < due_s + 0.5
    assert len(statistics.latencies_s) >= 10
    assert "20 ticks at 20 Hz" in statistics.summary()


def test_an_answer_is_executed_when_it_comes_and_not_when_the_tick_is_over(echo: str) -> None:
    executed: list[Action] = []
    give_up_s = time.monotonic() + 20

    def clock() -> float:  # stands still until something was executed
        return 200.0 if executed or time.monotonic() > give_up_s else 100.0

    realtime = RealtimeClock(clock=clock)
    with closing(RemoteAgent(echo)) as agent:
        agent.reset()
        realtime.begin()
        done, _ = realtime.step(Live(executed.append), agent, FRAME, {})
    assert done == Action(("w",))
    assert executed == [Action(("w",))]
    assert (realtime.statistics.num_late, len(realtime.statistics.latencies_s)) == (0, 1)


def test_a_late_answer_is_executed_too_and_the_motion_of_both_counts(peer: Peer) -> None:
    first = threading.Event()

    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        assert first.wait(20)
        connection.sendall(encode_action(Action(("w",), (), 12, 3), 0))
        receive(connection, 1)
        connection.sendall(encode_action(Action((), ("0",), -2, 1), 1))
        connection.recv(1)

    executed: list[Action] = []
    clock, env = RealtimeClock(), Live(executed.append)
    with closing(RemoteAgent(peer(behave))) as agent:
        agent.reset()
        clock.begin()
        assert clock.step(env, agent, FRAME, {})[0] == Action()
        first.set()
        done = [clock.step(env, agent, FRAME, {})[0]]
        while len(executed) < 2 and len(done) < 200:
            done.append(clock.step(env, agent, FRAME, {})[0])
    assert executed == [Action(("w",), (), 12, 3), Action((), ("0",), -2, 1)]
    assert (sum(action.dx for action in done), sum(action.dy for action in done)) == (10, 4)
    assert (done[-1].keys, done[-1].buttons) == ((), ("0",))
    assert clock.statistics.num_late >= 1


def test_without_an_answer_the_keys_stay_and_the_mouse_rests(peer: Peer) -> None:
    def behave(connection: socket.socket) -> None:
        receive(connection, 1)
        connection.sendall(encode_action(Action(("w",), ("0",), 12, 3), 0))
        while connection.recv(1 << 16):  # the later frames get no answer
            pass

    clock = RealtimeClock()
    with closing(RemoteAgent(peer(behave))) as agent:
        agent.reset()
        clock.begin()
        done = [clock.step(Standing(), agent, FRAME, {})[0]]
        while done[-1] == Action() and len(done) < 200:  # until the one answer has come
            done.append(clock.step(Standing(), agent, FRAME, {})[0])
        num_late = clock.statistics.num_late
        done += [clock.step(Standing(), agent, FRAME, {})[0] for _ in range(2)]
    assert done[-3:] == [Action(("w",), ("0",), 12, 3), Action(("w",), ("0",)), Action(("w",), ("0",))]
    assert clock.statistics.num_late == num_late + 2


def test_an_agent_in_this_process_is_executed_at_once_and_paced() -> None:
    executed: list[Action] = []
    env = Live(executed.append)
    (episode,) = rollout(env, Walker(), clock=RealtimeClock(seconds=0.2), episodes=None)
    assert executed == [Action(("w",), (), 3)] * episode.num_steps
    assert 1 <= episode.num_steps <= 4
    assert not episode.finished


def test_a_slow_agent_in_this_process_is_executed_although_its_tick_is_over() -> None:
    clock = Clock()

    class Slow(Walker):
        def act(self, observation: Any, info: Any) -> Action:
            clock.now += 0.12
            return super().act(observation, info)

    executed: list[Action] = []
    realtime = RealtimeClock(clock=clock)
    realtime.begin()
    for _ in range(3):
        assert realtime.step(Live(executed.append), Slow(), FRAME, {})[0].keys == ("w",)
    assert len(executed) == 3
    assert realtime.statistics.num_skipped >= 3
