"""What a program writes to a terminal: lines, tables and progress in which nothing is obeyed, whoever gave the names.

All programs (p2p, p2p-convert, p2p-serve, launch) print, log and fail through this file. Names of recordings,
games and files, keys and values in error texts are a stranger's, so control characters and escapes are spelt out.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Collection, Sequence

from p2p import gate

USER_ERROR = 2
_BAR_WIDTH = 28


def say(text: object = "") -> None:
    """One answer, of one or several lines, on standard output, at once."""
    sys.stdout.write(plain_lines(text) + "\n")
    sys.stdout.flush()


def note(text: object) -> None:
    """As `say`, on standard error."""
    sys.stderr.write(plain_lines(text) + "\n")
    sys.stderr.flush()


def fail(error: object) -> int:
    """Say what the user can mend; returns the exit status."""
    note(f"p2p: error: {error}")
    return USER_ERROR


def reader_is_gone() -> int:
    """After a BrokenPipeError: nothing more is written to standard output, also not at the end; returns 0."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def plain_lines(text: object) -> str:
    """The text, its line breaks kept, with everything else spelt out that a terminal would obey."""
    return "\n".join(gate.printable_lines(str(text).split("\n")))


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of cells as a table: the columns of `left` begin together, the others, numbers mostly, end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(widths)), strict=True)
        lines.append("  ".join(cell.ljust(width) if i in left else cell.rjust(width) for cell, width, i in cells))
    return "\n".join(line.rstrip() for line in lines)


def duration_text(seconds: float) -> str:
    """Seconds in words: 8s, 2m05s, 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class ProgressBar:
    """A bar that is redrawn in place on a terminal, and a line every `line_every_s` seconds elsewhere."""

    def __init__(self, label: str, total: int, unit: str, line_every_s: float = 20.0) -> None:
        self._label, self._total, self._unit = label, max(total, 1), unit
        self._stream = sys.stderr
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


class PlainFormatter(logging.Formatter):
    """The standard formatter, with the message and its traceback as `plain_lines` gives them."""

    def format(self, record: logging.LogRecord) -> str:
        return plain_lines(super().format(record))


def log_to_stderr(level: int, line: str = "%(message)s", date: str | None = None) -> None:
    """Set logging up for a program; without effect when it is set up already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter(line, date))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("botocore").setLevel(max(level, logging.WARNING))  # it tells where it found credentials
