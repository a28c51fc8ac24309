"""Ticks of wall-clock time: answers are executed when they come; late ticks are dropped, never caught up in a burst."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.play.client import Client
from p2p.play.games import Frame


class Ticker:
    """Boundaries every `period_s` from now on; `next` says how many were missed meanwhile."""

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


def followed_by(earlier: Action, later: Action) -> Action:
    """Both in one step: the keys and buttons of the later one stay down, motion of the mouse adds up."""
    return Action(later.keys, later.buttons, earlier.dx + later.dx, earlier.dy + later.dy)


def at_rest(action: Action) -> Action:
    """The same keys and buttons without motion, which belongs to one step."""
    return Action(action.keys, action.buttons)


class RealtimeLoop:
    """Sends a frame each tick; every answer is executed when it comes, and without one the keys stay as they are."""

    def __init__(self, client: Client, statistics: TickStatistics, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._statistics, self._clock = client, statistics, clock
        self._sent_s: dict[int, float] = {}
        self._held = Action()
        self._ticker = Ticker(clock=clock)

    def tick(self, frame: Frame, execute: Callable[[Action], None] = lambda answer: None) -> Action:
        """Send the frame of this tick, wait until the tick is over; returns what its answers come to.

        Args:
            execute: called with each answer in the moment it comes, so that it takes effect when a recorded person's
                keys would have: between its frame and the next. A game that stands still meanwhile needs none.
        """
        statistics = self._statistics
        self._sent_s[self._client.send(frame)] = self._clock()
        deadline_s = self._ticker.deadline_s
        done = at_rest(self._held)
        while self._sent_s and self._clock() < deadline_s:
            for answer in self._take(deadline_s):
                execute(answer)
                done = followed_by(done, answer)
        while (left_s := deadline_s - self._clock()) > 0:
            time.sleep(left_s)
        statistics.num_ticks += 1
        statistics.num_late += bool(self._sent_s)
        statistics.num_skipped += self._ticker.advance()
        self._held = done
        return done

    def _take(self, deadline_s: float) -> Iterator[Action]:
        """The answers that have come, oldest first; waits for the first until `deadline_s`."""
        for action, frame_id in self._client.answers(deadline_s):
            sent_s = self._sent_s.pop(frame_id, None)
            if sent_s is not None:
                self._statistics.latencies_s.append(self._clock() - sent_s)
                for older in [number for number in self._sent_s if number < frame_id]:
                    del self._sent_s[older]  # the server answers only the newest: these never come
                yield action
