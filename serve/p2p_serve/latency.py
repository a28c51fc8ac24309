"""Where the time of an answer goes: marks per frame, a table of percentiles, a picture."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STAGES = ("receive", "decode", "queue", "resize", "model", "sampling", "send")
GREEN_MS, AMBER_MS = 50.0, 60.0
COLOURS = {"green": "\x1b[32m", "amber": "\x1b[33m", "red": "\x1b[31m"}
_MS = 1000.0


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
        self._rows = np.zeros((capacity, len(STAGES) + 1), dtype=np.float32)
        self._max = np.zeros(len(STAGES) + 1, dtype=np.float64)
        self.num_answered = 0
        self.num_dropped = 0  # frames that a newer one replaced before they were answered
        self.num_unread = 0  # answers thrown away because the client did not read

    def add(self, marks: Marks) -> None:
        row = marks.durations_ms()
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

    def report(self, colour: bool = False) -> str:
        """The table that is shown at the end of a session."""
        lines = [f"{'ms':<10}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}"]
        for entry in self.statistics():
            values = (entry.p50, entry.p95, entry.p99, entry.max)
            cells = [f"{value:>9.2f}" for value in values]
            if entry.name == "total" and colour:
                cells = [f"{COLOURS[colour_of(v)]}{cell}\x1b[0m" for v, cell in zip(values, cells, strict=True)]
            lines.append(f"{entry.name:<10}" + "".join(cells))
        lines.append(self.summary())
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: how many frames, and how many of the answers were in time."""
        total = self.rows[:, -1]
        parts = [f"answered {self.num_answered}", f"dropped {self.num_dropped}"]
        if self.num_unread:
            parts.append(f"not read by the client {self.num_unread}")
        if len(total):
            green = float((total <= GREEN_MS).mean())
            red = float((total > AMBER_MS).mean())
            parts.append(f"green {green:.1%}, amber {max(0.0, 1 - green - red):.1%}, red {red:.1%}")
        return " · ".join(parts)

    def write_png(self, path: Path) -> None:
        """The total per frame over time and the stages stacked; needs matplotlib. Replaces `path` at once."""
        if self.num_answered == 0:
            return
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ValueError(f"{path}: the picture needs matplotlib: pip install matplotlib") from error

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
        entries = self.statistics()
        for left, values in ((0, [e.p50 for e in entries[:-1]]), (1, [e.p99 for e in entries[:-1]])):
            begin = 0.0
            for index, value in enumerate(values):
                stacked.barh(left, value, left=begin, color=f"C{index}", label=STAGES[index] if left == 0 else None)
                begin += value
        stacked.set(yticks=[0, 1], yticklabels=["p50", "p99"], xlabel="ms, stages one after another")
        stacked.legend(loc="lower right", ncols=len(STAGES), fontsize="small")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
