"""Where the time of an answer goes: marks per frame, a table of percentiles, a picture."""

from __future__ import annotations

import importlib.util
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2p.console import aligned
from p2p.files import write_file

STAGES = ("receive", "decode", "queue", "resize", "model", "sampling", "send")
GREEN_MS, AMBER_MS = 50.0, 60.0
_MS = 1000.0
_FIRST_CAPACITY = 256  # grows: most connections are short


class Marks:
    """The moments (seconds of the monotonic clock) at which the stages of one frame ended."""

    __slots__ = ("_ends", "start")

    def __init__(self, start: float) -> None:
        self.start = start  # the first byte of the message arrived
        self._ends: dict[str, float] = {}

    def end(self, stage: str, now: float | None = None) -> None:
        """Note that `stage`, one of STAGES, has just ended."""
        self._ends[stage] = time.monotonic() if now is None else now

    def durations_ms(self) -> list[float]:
        """One number per stage, then the total; a stage that was not marked took no time."""
        previous, row = self.start, []
        for stage in STAGES:
            end = self._ends.get(stage, previous)
            row.append((end - previous) * _MS)
            previous = end
        return [*row, (previous - self.start) * _MS]


def colour_of(latency_ms: float) -> str:
    """green up to 50 ms, amber up to 60, red above."""
    return "green" if latency_ms <= GREEN_MS else "amber" if latency_ms <= AMBER_MS else "red"


@dataclass(frozen=True)
class StageStatistics:
    """Percentiles in milliseconds of one stage over the frames that are remembered; the maximum over all."""

    name: str
    p50: float
    p95: float
    p99: float
    max: float


class LatencyLog:
    """The durations of a session's answers; remembers the last `capacity`, so memory stays flat."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._rows = np.zeros((min(capacity, _FIRST_CAPACITY), len(STAGES) + 1), dtype=np.float32)
        self._max = np.zeros(len(STAGES) + 1, dtype=np.float64)
        self.num_answered = 0
        self.num_dropped = 0  # frames that a newer one replaced before they were answered
        self.num_not_sent = 0  # ids that never came: frames that the client itself dropped
        self.num_malformed = 0  # messages that are no frame
        self.num_too_large = 0  # messages that were read past
        self.num_unread = 0  # answers thrown away because the client did not read

    def add(self, marks: Marks) -> None:
        row = marks.durations_ms()
        if self.num_answered == len(self._rows) < self._capacity:
            more = min(len(self._rows), self._capacity - len(self._rows))
            self._rows = np.concatenate([self._rows, np.zeros((more, len(STAGES) + 1), dtype=np.float32)])
        self._rows[self.num_answered % len(self._rows)] = row
        np.maximum(self._max, row, out=self._max)
        self.num_answered += 1

    @property
    def rows(self) -> NDArray[np.float32]:
        """Milliseconds [frames, stages + 1] of the remembered frames, oldest first; the last column is the total."""
        if self.num_answered <= len(self._rows):
            return self._rows[: self.num_answered].copy()
        return np.roll(self._rows, -(self.num_answered % len(self._rows)), axis=0)

    def statistics(self) -> list[StageStatistics]:
        """One entry per stage, then the total; empty when nothing was answered."""
        if self.num_answered == 0:
            return []
        percentiles = np.percentile(self.rows, [50, 95, 99], axis=0).T
        names = (*STAGES, "total")
        return [
            StageStatistics(name, float(p[0]), float(p[1]), float(p[2]), float(m))
            for name, p, m in zip(names, percentiles, self._max, strict=True)
        ]

    def report(self) -> str:
        """The table that is shown at the end of a session; the last row says what each total is worth."""
        found = [(entry.name, entry.p50, entry.p95, entry.p99, entry.max) for entry in self.statistics()]
        rows = [
            ["ms", "p50", "p95", "p99", "max"],
            *([name, *(f"{ms:.2f}" for ms in values)] for name, *values in found),
        ]
        if found:
            rows.append(["", *(colour_of(ms) for ms in found[-1][1:])])
        return f"{aligned(rows)}\n{self.summary()}"

    def summary(self) -> str:
        """One line: how many frames, and how many of the answers were in time."""
        total = self.rows[:, -1]
        parts = [f"answered {self.num_answered}", f"dropped {self.num_dropped}"]
        for name, count in (
            ("not sent by the client", self.num_not_sent),
            ("not read by the client", self.num_unread),
            ("malformed", self.num_malformed),
            ("too large", self.num_too_large),
        ):
            if count:
                parts.append(f"{name} {count}")
        if len(total):
            green = float((total <= GREEN_MS).mean())
            red = float((total > AMBER_MS).mean())
            parts.append(f"green {green:.1%}, amber {max(0.0, 1 - green - red):.1%}, red {red:.1%}")
        return " · ".join(parts)

    def parts(self) -> list[tuple[str, NDArray[np.float64]]]:
        """Where the time of an answer went: (name, mean milliseconds per stage), of all answers and of the slowest.

        Means add up to the mean of the total; percentiles of stages would not add up to any percentile.
        """
        rows = self.rows.astype(np.float64)
        slowest = rows[np.argsort(rows[:, -1])[-max(1, len(rows) // 100) :]]
        return [("all", rows[:, :-1].mean(axis=0)), ("slowest 1 %", slowest[:, :-1].mean(axis=0))]

    def write_png(self, path: Path) -> None:
        """The total per frame over time, and the mean of the stages one after another; needs matplotlib.

        Raises:
            ValueError, OSError: when it cannot be drawn or written.
        """
        if self.num_answered == 0:
            return
        check_png(path)
        from matplotlib.figure import Figure

        rows = self.rows
        figure = Figure(figsize=(10, 6), layout="constrained")
        over_time, stacked = figure.subplots(2, 1)
        shades = {"green": "tab:green", "amber": "orange", "red": "tab:red"}
        total = rows[:, -1]
        for name, low, high in (("green", -1, GREEN_MS), ("amber", GREEN_MS, AMBER_MS), ("red", AMBER_MS, np.inf)):
            chosen = np.nonzero((total > low) & (total <= high))[0]
            over_time.plot(chosen, total[chosen], ".", color=shades[name], markersize=3, label=name)
        over_time.axhline(GREEN_MS, color="grey", linewidth=0.5)
        over_time.set(ylabel="answer, ms", title=self.summary())
        over_time.legend(loc="upper right")
        bars = self.parts()
        for place, (_, means) in enumerate(bars):
            begins = np.cumsum(means) - means
            for index, (begin, mean) in enumerate(zip(begins, means, strict=True)):
                stacked.barh(place, mean, left=begin, color=f"C{index}", label=None if place else STAGES[index])
        stacked.set(yticks=range(len(bars)), yticklabels=[name for name, _ in bars], xlabel="mean ms of an answer")
        stacked.legend(loc="lower right", ncols=len(STAGES), fontsize="small")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        write_file(path, drawn.getvalue())


def check_png(path: Path) -> None:
    """See to it, before hours of play, that a picture can be written at `path`.

    Raises:
        ValueError: when its folder is missing or may not be written, it is a folder, or matplotlib is missing.
    """
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: {path.parent} is not a folder that can be written to; make it, or name another")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name the file of the picture, such as {path / 'latency.png'}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{path}: the picture needs matplotlib: pip install matplotlib")
