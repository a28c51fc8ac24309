"""What real time does to a score. `python tests/benchmarks/realtime_score.py POLICY --game doom:defend_the_center`

The same seeds in three ways: the game waits for each answer (as `p2p play` without a window has it), and a game that
goes on by itself, a tic every 25 ms, played in the time of `p2p play --window`: each answer executed when it comes,
or at the end of the client's tick, as it was before. The engine is stepped by a thread of its own, without a window,
because ViZDoom counts no score in one. Printed with the scores: the round trips, and late or dropped ticks.

With --delays: the game waits, and each answer is executed so many tics after its frame. With 0 the recordings were
made; an answer that is executed when it comes is 1 tic late at most, one that waits for the tick's end 2.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.agents.remote import RemoteAgent
from p2p.agents.serving import served
from p2p.console import ProgressBar
from p2p.environments.doom_engine import TICS_PER_STEP, button_values
from p2p.environments.doom_env import DoomEnv
from p2p.environments.environment import AnyAction, as_action
from p2p.environments.game import Frame
from p2p.environments.registry import game_names
from p2p.play.clock import Outcome, RealtimeClock, StepClock, Ticker
from p2p.play.comparison import FIRST_SEED
from p2p.play.rollout import rollout


class TicDoom(DoomEnv):
    """Each answer is executed `delay` tics after its frame."""

    def __init__(self, scenario: str, delay: int = 0) -> None:
        super().__init__(scenario)
        self._delay = delay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        self._waiting = deque([Action()] * self._delay)
        return super().reset(seed=seed, options=options)

    def tic(self, action: Action) -> float:
        """Half a step; the reward of it."""
        return 0.0 if self.is_over else float(self._engine.make_action(button_values(action), 1))

    @property
    def is_over(self) -> bool:
        return bool(self._engine.is_episode_finished())

    def step(self, action: AnyAction) -> Outcome:
        reward = 0.0
        for _ in range(TICS_PER_STEP):
            self._waiting.append(as_action(action))
            reward += self.tic(self._waiting.popleft())
        return self.render(), reward, self.is_over, False, {}


class LiveDoom(TicDoom):
    """Goes on by itself, a tic every 25 ms, with what is held at that time.

    Args:
        at_the_end: what is to be held waits until the client looks again.
    """

    def __init__(self, scenario: str, at_the_end: bool = False) -> None:
        super().__init__(scenario)
        self._at_the_end, self._lock = at_the_end, threading.Lock()
        self._thread: threading.Thread | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        self.join()
        first = super().reset(seed=seed, options=options)
        self._screen, self._held, self._next, self._reward = first[0], Action(), Action(), 0.0
        self._over = False
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()
        return first

    def _go_on(self) -> None:
        ticker = Ticker(FRAME_RATE_HZ * TICS_PER_STEP)
        while not self.is_over:
            time.sleep(max(0.0, ticker.deadline_s - time.monotonic()))
            with self._lock:
                held, self._held = self._held, self._held.at_rest()
            # one event of motion falls into one tic; `button_values` divides a step's among its tics
            reward = self.tic(Action(held.keys, held.buttons, TICS_PER_STEP * held.dx, TICS_PER_STEP * held.dy))
            with self._lock:
                self._reward += reward
            self._screen = self.render()
            ticker.advance()
        self._over = True

    def hold(self, action: Action) -> None:
        """Keys and buttons from now on; motion adds up until a tic takes it."""
        with self._lock:
            if self._at_the_end:
                self._next = self._next.followed_by(action)
            else:
                self._held = self._held.followed_by(action)

    def observe(self) -> Outcome:
        with self._lock:
            if self._at_the_end:
                self._held = self._held.followed_by(self._next)
                self._next = self._next.at_rest()
            reward, self._reward = self._reward, 0.0
        return self._screen, reward, self._over, False, {}

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.join()
        super().close()


def mean(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):{sign}.1f} ± {error:.1f}"


def ways_of(scenario: str, delays: Sequence[int] | None) -> dict[str, tuple[TicDoom, StepClock | RealtimeClock]]:
    """A game and its clock, by the text of a row."""
    if delays is not None:
        tic_ms = 1000 // FRAME_RATE_HZ // TICS_PER_STEP
        return {f"the game waits, {tic_ms * tics} ms late": (TicDoom(scenario, tics), StepClock()) for tics in delays}
    return {
        "the game waits": (TicDoom(scenario), StepClock()),
        "real time, when it comes": (LiveDoom(scenario), RealtimeClock()),
        "real time, at the tick's end": (LiveDoom(scenario, at_the_end=True), RealtimeClock()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, help="policy folder")
    parser.add_argument("--game", required=True, choices=game_names())
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--delays", type=int, nargs="+", help="tics (1/40 s), instead of real time")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest action")
    args = parser.parse_args()
    options = ["--threads", "1", *(["--greedy"] if args.greedy else [])]
    ways = ways_of(args.game.removeprefix("doom:"), args.delays)
    scores: dict[str, list[float]] = {way: [] for way in ways}
    progress = ProgressBar("playing", len(ways) * args.episodes, "episodes")
    with ExitStack() as stack:
        agent = stack.enter_context(closing(RemoteAgent(stack.enter_context(served(args.policy, 0, options)))))
        for env, _ in ways.values():
            stack.callback(env.close)
        for seed in range(FIRST_SEED, FIRST_SEED + args.episodes):  # all ways in turn, so that they meet the same load
            for way, (env, clock) in ways.items():
                scores[way] += [episode.score for episode in rollout(env, agent, clock=clock, seed=seed)]
                progress.update(sum(map(len, scores.values())))
    progress.close()
    print("| answers are executed | score | difference from the first row | ticks |\n| --- | ---: | ---: | --- |")
    first = next(iter(scores.values()))
    for way, found in scores.items():
        difference = "" if found is first else mean([a - b for a, b in zip(found, first, strict=True)], "+")
        clock = ways[way][1]
        ticks = clock.statistics.summary() if isinstance(clock, RealtimeClock) else ""
        print(f"| {way} | {mean(found)} | {difference} | {ticks} |")
    print(f"load at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
