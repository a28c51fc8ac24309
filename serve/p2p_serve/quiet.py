"""A logger that a flood of clients cannot fill a disk with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_BURST_LINES = 100
_LINES_PER_S = 2.0


class QuietLog:
    """Passes on a burst of lines, then a few a second; the next line that passes says how many were left out."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._credit, self._last_s = float(_BURST_LINES), clock()
        self._num_left_out = 0

    def info(self, message: str, *arguments: object) -> None:
        self._line(logging.INFO, message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        self._line(logging.WARNING, message, arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._line(logging.ERROR, message, arguments, exc_info=True)

    def _line(self, level: int, message: str, arguments: tuple[object, ...], exc_info: bool = False) -> None:
        now = self._clock()
        self._credit = min(_BURST_LINES, self._credit + (now - self._last_s) * _LINES_PER_S)
        self._last_s = now
        if self._credit < 1:
            self._num_left_out += 1
            return
        self._credit -= 1
        if self._num_left_out:
            message, arguments = f"{message} (%d lines before this one were left out)", (*arguments, self._num_left_out)
            self._num_left_out = 0
        self._log.log(level, message, *arguments, exc_info=exc_info)
