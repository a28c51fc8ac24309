"""metrics.jsonl of a run: a JSON object a line, each update at most once, also after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2p.files import write_file
from p2p.gate import open_regular

_MAX_LINE_BYTES = 1 << 20


class MetricsFile:
    """Appends entries with a `step`; `drop_after` makes room for the updates that a resumed run repeats."""

    def __init__(self, path: Path):
        self.path = path

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries in their order; a torn or damaged line is none.

        Raises:
            Refused: when something else than a file has the name.
        """
        return (entry for _, entry in self._lines())

    def drop_after(self, step: int) -> None:
        """Forget what is later than the update that a run resumes from, and damaged lines.

        Raises:
            Refused: as `entries`.
        """
        kept = [line for line, entry in self._lines() if entry["step"] <= step]
        if self.path.exists():
            write_file(self.path, *kept)

    def append(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        if not self.path.exists():
            return
        with open_regular(self.path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                entry = _entry(line)
                if entry is not None:
                    yield line.removesuffix(b"\n") + b"\n", entry


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and type(entry.get("step")) is int else None
