"""The checkpoints that `p2p validate` finds in a folder: of a training run, policy folders, and original .ckpt files.

A checkpoint counts once it is whole, which its own files tell (no clock is asked): a policy folder's safetensors
header names its length, a .ckpt is a zip whose directory comes last, a run's step folder gets its .metadata last.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

RUN, POLICY, ORIGINAL = "run", "policy", "original"
_STEP_FOLDER = re.compile(r"^step-(\d+)$")
_STEP = re.compile(r"step[-=_]?(\d+)")
_WEIGHTS, _CONFIG, _METADATA, _ORIGINAL_CONFIG = "model.safetensors", "config.yaml", ".metadata", "model_config.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies, its kind, the number of updates (None: its name does not say), its name in tables."""

    path: Path
    kind: str
    step: int | None
    name: str

    def files(self) -> list[Path]:
        """The files that it consists of."""
        if self.path.is_file():
            return [self.path, self.path.parent / _ORIGINAL_CONFIG]
        names = (_WEIGHTS, _CONFIG) if self.kind == POLICY else None
        return [self.path / n for n in names] if names else sorted(p for p in self.path.iterdir() if p.is_file())

    def fingerprint(self) -> str:
        """Changes when any of its files is written again."""
        stats = [(path.name, path.stat()) for path in self.files() if path.exists()]
        return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)

    def missing(self) -> str | None:
        """Why it is not whole yet, or None."""
        if self.kind == ORIGINAL:
            return _missing_of_original(self.path)
        if self.kind == POLICY:
            return _missing_of_policy(self.path)
        absent = [name for name in (_METADATA, _CONFIG) if not (self.path / name).is_file()]
        return f"{', '.join(absent)} is missing" if absent else None


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints in a folder and up to two levels below it, by step and name, whole or not.

    Raises:
        ValueError: when there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a run folder, or a folder with checkpoints or policies")
    places = [folder, *_visible(folder), *(path for parent in _visible(folder) for path in _visible(parent))]
    found = [c for place in places if (c := _checkpoint_at(place, folder)) is not None]
    inside_steps = {c.path for c in found if c.kind == RUN}
    found = [c for c in found if c.path.parent not in inside_steps]
    return sorted(found, key=lambda c: (c.step is None, c.step or 0, c.name))


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _checkpoint_at(path: Path, folder: Path) -> Checkpoint | None:
    name = str(path.relative_to(folder)) if path != folder else path.resolve().name
    if path.suffix == ".ckpt":
        return Checkpoint(path, ORIGINAL, _step_of(path.name), name)
    if _STEP_FOLDER.match(path.name) and path.is_dir() and not (path / _WEIGHTS).exists():
        return Checkpoint(path, RUN, _step_of(path.name), name)
    if (path / _WEIGHTS).is_file():
        return Checkpoint(path, POLICY, _step_of(path.name), name)
    return None


def _step_of(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) if match else None


def _missing_of_original(path: Path) -> str | None:
    if not (path.parent / _ORIGINAL_CONFIG).is_file():
        return f"{_ORIGINAL_CONFIG} is missing beside it"
    return None if zipfile.is_zipfile(path) else "it is not a whole zip file"


def _missing_of_policy(path: Path) -> str | None:
    import json

    if not (path / _CONFIG).is_file():
        return f"{_CONFIG} is missing"
    with open(path / _WEIGHTS, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < 2**30 else b""
        size = file.seek(0, 2)
    try:
        entries = json.loads(header)
    except ValueError:
        return f"{_WEIGHTS} has no whole header"
    end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    return None if size >= 8 + length + end else f"{_WEIGHTS} is truncated"


def export_run_checkpoint(checkpoint: Checkpoint, out: Path) -> Path:
    """The policy folder of a run's step folder, written by `p2p export` (a process of its own: what a training
    checkpoint consists of is the trainer's business).

    Raises:
        ValueError: with what `p2p export` says.
    """
    command = [sys.executable, "-m", "p2p.cli", "export", str(checkpoint.path), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        raise ValueError(lines[-1].removeprefix("p2p: error: "))
    return out
