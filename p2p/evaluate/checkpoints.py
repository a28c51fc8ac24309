"""The checkpoints that `p2p validate` finds in a folder: of a training run, policy folders, and original .ckpt files.

A checkpoint counts once it is whole, which its own files tell (no clock is asked): a policy folder's safetensors
header names its length, a .ckpt is a zip whose directory comes last, a run's step folder gets its .metadata last.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from p2p import gate

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
        folder = self.path.parent if self.kind == ORIGINAL else self.path
        absent = missing_names(self.kind, {path.name for path in folder.iterdir()})
        if absent is None and self.kind == ORIGINAL:
            return None if self.path.is_file() and zipfile.is_zipfile(self.path) else "it is not a whole zip file"
        if absent is None and self.kind == POLICY:
            return _missing_weights(self.path / _WEIGHTS)
        return absent


def missing_names(kind: str, names: Set[str]) -> str | None:
    """Which of the files that a checkpoint of this kind needs are not among `names` of its folder, in words."""
    needed = {RUN: (_METADATA, _CONFIG), POLICY: (_WEIGHTS, _CONFIG), ORIGINAL: (_ORIGINAL_CONFIG,)}[kind]
    absent = [name for name in needed if name not in names]
    return f"{', '.join(absent)} is missing" if absent else None


def kind_of(folder: str, names: Set[str]) -> str | None:
    """The kind of checkpoint that a folder of this name with these files is, or None."""
    if _WEIGHTS in names:
        return POLICY
    return RUN if _STEP_FOLDER.match(folder) else None


def step_of(name: str) -> int | None:
    """The number of updates that a name tells."""
    match = _STEP.search(name)
    return int(match[1]) if match else None


class LocalFolder:
    """A folder on this machine that holds checkpoints; `RemoteFolder` has the same methods."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self) -> list[Checkpoint]:
        return find_checkpoints(self.folder)

    def fetch(self, checkpoint: Checkpoint, scratch: Path) -> Checkpoint:
        return checkpoint


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
        return Checkpoint(path, ORIGINAL, step_of(path.name), name)
    kind = kind_of(path.name, {entry.name for entry in path.iterdir()}) if path.is_dir() else None
    return None if kind is None else Checkpoint(path, kind, step_of(path.name), name)


def _missing_weights(path: Path) -> str | None:
    from p2p.model.tensor_file import MAX_HEADER_BYTES

    try:
        with gate.open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, MAX_HEADER_BYTES))
            size = file.seek(0, os.SEEK_END)
        entries = gate.mapping(gate.parse_json(header, _WEIGHTS), _WEIGHTS)
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
        return None if size >= 8 + length + end else f"{_WEIGHTS} is truncated"
    except (ValueError, TypeError, LookupError):  # not whole yet, or never a header
        return f"{_WEIGHTS} has no whole header"


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
