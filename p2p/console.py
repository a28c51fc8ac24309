"""What a program writes to a terminal: lines in which nothing is obeyed, whoever gave the names in them.

All programs (p2p, p2p-convert, p2p-serve, launch) print, log and fail through this file. Names of recordings,
games and files, keys and values in error texts are a stranger's, so control characters and escapes are spelt out.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Sequence

from p2p import gate

USER_ERROR = 2


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
