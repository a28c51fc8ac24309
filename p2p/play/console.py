"""What the commands show on the screen while they work: one progress bar at a time."""

import sys
import time
from typing import TextIO

from p2p import gate

_BAR_WIDTH = 28


def duration_text(seconds: float) -> str:
    """Seconds in words: 8s, 2m05s, 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A bar that is redrawn in place on a terminal, and a line every `line_every_s` seconds elsewhere."""

    def __init__(
        self, label: str, total: int, unit: str, stream: TextIO | None = None, line_every_s: float = 20.0
    ) -> None:
        self._label, self._total, self._unit = label, max(total, 1), unit
        self._stream = sys.stderr if stream is None else stream
        self._interval_s = 0.2 if self._stream.isatty() else line_every_s
        self._start_s = self._shown_s = time.monotonic()
        self._done = 0
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """So much of the total is done; `note` stands at the end of the line."""
        self._done, self._note = done, note
        now = time.monotonic()
        if now - self._shown_s >= self._interval_s:
            self._shown_s = now
            self._show(end="\r" if self._stream.isatty() else "\n")

    def close(self) -> None:
        """Show the final state."""
        self._show(end="\n")

    def _show(self, end: str) -> None:
        elapsed_s = max(time.monotonic() - self._start_s, 1e-6)
        share = min(self._done / self._total, 1.0)
        rate = self._done / elapsed_s
        left = f"{duration_text((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        bar = "#" * round(share * _BAR_WIDTH)
        text = (
            f"  {self._label} [{bar:<{_BAR_WIDTH}}] {self._done}/{self._total} {self._unit}"
            f"  {rate:.{0 if rate >= 10 else 1}f}/s  {duration_text(elapsed_s)} {left} {self._note}"
        )
        self._stream.write(f"{gate.printable(text):<110}{end}")
        self._stream.flush()
