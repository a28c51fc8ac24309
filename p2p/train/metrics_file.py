"""metrics.jsonl of a run: a JSON object a line, each update at most once, also after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p2p.files import write_file


class MetricsFile:
    """Appends entries with a `step`; `drop_after` makes room for the updates that a resumed run repeats."""

    def __init__(self, path: Path):
        self.path = path

    def drop_after(self, step: int) -> None:
        """Forget what is later than the update that a run resumes from, and a torn last line."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        write_file(self.path, *(f"{line}\n".encode() for line in kept))

    def append(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
