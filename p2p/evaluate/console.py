"""The one place where the commands of this folder write their answers to the terminal."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One answer, followed by a line break, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
