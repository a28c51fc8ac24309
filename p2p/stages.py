"""Stages of a long command: each leaves its result and a note, and is reused while nothing before it changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2p.console import duration_text, say
from p2p.files import write_file


class Stages:
    """Runs what is not done yet, in order; `key` names the settings of a stage and of all before it."""

    def __init__(self, folder: Path, num_stages: int) -> None:
        self._folder, self._num_stages = folder, num_stages
        self._number = 0
        self.key = ""
        self.seconds: dict[str, float] = {}

    def run(self, name: str, what: str, settings: dict[str, Any], result: Path, work: Callable[[], str]) -> None:
        """One stage. `result` is complete if it exists; `work` makes it and returns what there is to say about it."""
        self._number += 1
        text = json.dumps({"stage": name, **settings, "after": self.key}, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        note = self._folder / f"{name}.json"
        say(f"[{self._number}/{self._num_stages}] {name}: {what}")
        done = read_note(note)
        if done.get("key") == self.key and done.get("complete") and result.exists():
            say(f"      reused: {done['summary']}")
            self.seconds[name] = done["seconds"]
            return
        if done.get("key") != self.key:  # what is there was made with other settings, or was never begun
            _write_note(note, {"key": self.key, "complete": False})
            if result.exists():
                clear(result, self._folder.parent)
        start_s = time.monotonic()
        summary = work()
        self.seconds[name] = time.monotonic() - start_s
        _write_note(note, {"key": self.key, "complete": True, "summary": summary, "seconds": self.seconds[name]})
        say(f"      {summary} ({duration_text(self.seconds[name])})")


def clear(path: Path, out: Path) -> None:
    """Make room for a new result: what lies in the demo's own folder is removed, what lies elsewhere is set aside."""
    if not path.is_relative_to(out):
        number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.old-{n}").exists())
        path.rename(path.with_name(f"{path.name}.old-{number}"))
        say(f"      {path} was made otherwise; it is now {path.name}.old-{number}")
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def read_note(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_note(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")
