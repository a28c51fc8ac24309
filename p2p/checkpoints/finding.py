"""All checkpoints below an address: steps of training runs, policy folders, and original .ckpt files.

Which files there are tells whether a checkpoint is whole, and reading it whether they are (no clock is asked): a run's
step folder gets its .metadata last, an original checkpoint is a zip whose directory comes last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from p2p.checkpoints.layout import METADATA
from p2p.checkpoints.steps import CONFIG, fetch
from p2p.manifest import MANIFEST
from p2p.object_storage import ObjectFolder, StoredObject
from p2p.storage import LocalFolder

RUN, POLICY, ORIGINAL = "run", "policy", "original"
DEPTH = 3  # of a folder: files in it and in folders up to two levels below
_STEP_FOLDER = re.compile(r"^step-(\d+)$")
_STEP = re.compile(r"step[-=_]?(\d+)")
_WEIGHTS, _ORIGINAL_CONFIG = "model.safetensors", "model_config.yaml"
_NEEDED = {RUN: (METADATA, CONFIG), POLICY: (_WEIGHTS, CONFIG), ORIGINAL: (_ORIGINAL_CONFIG,)}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a storage: the folder or .ckpt file `path` in it ("." is all of it) and its files by their names
    there, its kind, the number of updates (None: its name does not say), its name in tables."""

    path: str
    kind: str
    step: int | None
    name: str
    files: Mapping[str, StoredObject]

    def fingerprint(self) -> str:
        """Changes when any of its files is written again."""
        named = {PurePosixPath(name).name: stored for name, stored in self.files.items()}
        if self.kind == POLICY:
            named.pop(MANIFEST, None)
        return " ".join(f"{name}:{stored.num_bytes}:{stored.etag}" for name, stored in named.items())

    def missing(self) -> str | None:
        """Which files it still needs, in words, or None."""
        names = {PurePosixPath(name).name for name in self.files}
        absent = [name for name in _NEEDED[self.kind] if name not in names]
        return f"{', '.join(absent)} is missing" if absent else None


def find_checkpoints(storage: LocalFolder | ObjectFolder) -> list[Checkpoint]:
    """All checkpoints in a storage, by step and name, whole or not; what is in hidden folders is left out.

    Raises:
        ValueError: when there is no such folder, or the store cannot be listed.
    """
    if isinstance(storage, LocalFolder) and not storage.root.is_dir():
        raise ValueError(f"{storage.root}: no such folder; name a run folder, or a folder with checkpoints or policies")
    folders: dict[str, dict[str, StoredObject]] = {}
    for name, stored in storage.list().items():
        folder, _, file = name.rpartition("/")
        if not any(part.startswith(".") for part in folder.split("/")):
            folders.setdefault(folder or ".", {})[file] = stored
    found = [each for folder, files in folders.items() for each in _in_folder(folder, files, storage.name)]
    steps = {each.path for each in found if each.kind == RUN}
    found = [each for each in found if str(PurePosixPath(each.path).parent) not in steps - {each.path}]
    return sorted(found, key=lambda each: (each.step is None, each.step or 0, each.name))


def _in_folder(folder: str, files: Mapping[str, StoredObject], root: str) -> list[Checkpoint]:
    """The checkpoints in one folder, of which these are the files; `root` is what "." is called."""
    above = "" if folder == "." else f"{folder}/"
    own = root if folder == "." else PurePosixPath(folder).name

    def checkpoint(kind: str, path: str, names: tuple[str, ...] | list[str]) -> Checkpoint:
        step = _step_of(own if path == folder else path.rpartition("/")[2])
        return Checkpoint(path, kind, step, root if path == "." else path, {above + n: files[n] for n in names})

    found = []
    if _WEIGHTS in files:
        found.append(checkpoint(POLICY, folder, [name for name in (_WEIGHTS, CONFIG, MANIFEST) if name in files]))
    elif _STEP_FOLDER.match(own):
        found.append(checkpoint(RUN, folder, sorted(files)))
    for name in (name for name in files if name.endswith(".ckpt")):
        found.append(checkpoint(ORIGINAL, above + name, [n for n in (name, _ORIGINAL_CONFIG) if n in files]))
    return found


def _step_of(name: str) -> int | None:
    """The number of updates that a name tells."""
    match = _STEP.search(name)
    return int(match[1]) if match else None


def bring(storage: LocalFolder | ObjectFolder, checkpoint: Checkpoint, scratch: Path) -> Path:
    """Where the checkpoint lies on this machine: in a local folder as it is, else fetched into `scratch`.

    Raises:
        ValueError: when a file cannot be had, or is not what the manifest of a run's checkpoint says.
    """
    if isinstance(storage, LocalFolder):
        return storage.root / checkpoint.path
    try:
        if checkpoint.kind == RUN:
            target = scratch / (PurePosixPath(checkpoint.path).name or storage.name)
            fetch(storage, "" if checkpoint.path == "." else checkpoint.path, target)
            return target
        for name, stored in checkpoint.files.items():
            storage.download(name, scratch / PurePosixPath(name).name, stored.num_bytes)
    except FileNotFoundError as error:  # the trainer keeps the newest ones only
        raise ValueError(f"{storage.url}/{checkpoint.path} is no longer there") from error
    return scratch / PurePosixPath(checkpoint.path).name if checkpoint.kind == ORIGINAL else scratch
