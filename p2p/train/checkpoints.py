"""Checkpoints of a run: saved whole or not at all, verified before they are used, the newest usable one found.

A checkpoint is a folder step-00000500/ of torch.distributed.checkpoint (one file a process, `.metadata`) with the
policy's config.yaml and a manifest: SHA-256 and length of each file, and the facts that `facts` compares. It is written
under another name and renamed, so Composer's own saver (a link that can be missing after a crash) is not used.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.config import PolicyConfig, save_policy_config
from p2p.files import remove_folder, sync, temporary_path, write_file
from p2p.manifest import MANIFEST, FileRecord, Manifest, describe, read_manifest, verify
from p2p.train.layout import METADATA, Layout, needed_bytes, read_layout

log = logging.getLogger(__name__)

KIND = "checkpoint"
CONFIG = "config.yaml"
WRITING = ".writing"
_SUPERSEDED = "superseded-"
_STEP = re.compile(r"^step-(\d{8,18})$", re.ASCII)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def steps_in(names: Iterable[str]) -> list[int]:
    """The steps of the names that are checkpoints, newest first."""
    found = [(name, int(match[1])) for name in names if (match := _STEP.match(name))]
    return sorted({step for name, step in found if name == step_name(step)}, reverse=True)


def local_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, usable or not, newest first."""
    return steps_in([path.name for path in folder.iterdir()]) if folder.is_dir() else []


def check_checkpoint(folder: Path) -> tuple[Manifest | None, Layout]:
    """The manifest of a checkpoint, every file compared with it, and what it holds.

    A checkpoint that was written before there were manifests has None; of it only names and lengths are known.

    Raises:
        Refused (a ValueError): naming what is missing, damaged or not of a checkpoint.
    """
    names = {path.name for path in folder.iterdir()}
    for name in (METADATA, CONFIG):
        if name not in names:
            raise gate.Refused(f"{name} is missing")
    manifest = read_manifest(folder, KIND) if MANIFEST in names else None
    if manifest is not None:
        check_facts(manifest, folder / MANIFEST)
        verify(folder, manifest)
    layout = read_layout(folder)
    unknown = set() if manifest is None else needed_bytes(layout).keys() - manifest.files.keys()
    if unknown:
        raise gate.Refused(f"{MANIFEST} does not name {gate.shown(min(unknown))}")
    return manifest, layout


def check_facts(manifest: Manifest, where: Path | str) -> int:
    """The step of a checkpoint, from its manifest.

    Raises:
        Refused: when it is none of a whole checkpoint with finite weights.
    """
    for name in (METADATA, CONFIG):
        if name not in manifest.files:
            raise gate.Refused(f"{where}: does not name {name}")
    if manifest.facts.get("finite") is not True:
        raise gate.Refused(f"{where}: does not say that the weights are finite")
    return gate.whole_number(manifest.facts.get("step"), f"{where}: step", 0, 1 << 60)


def step_of(folder: Path, manifest: Manifest | None) -> int:
    """The number of updates of a checkpoint: as its manifest says, else as its folder is named.

    Raises:
        Refused: when neither tells.
    """
    if manifest is not None:
        return check_facts(manifest, folder / MANIFEST)
    steps = steps_in([folder.name])
    if not steps:
        raise gate.Refused(f"{folder}: a checkpoint without {MANIFEST}; name its folder step-00000000, with its step")
    return steps[0]


def newest_local(folder: Path) -> int | None:
    """The step of the newest usable checkpoint; others are reported and passed over."""
    for step in local_steps(folder):
        if is_usable(folder / step_name(step)):
            return step
    return None


def is_usable(checkpoint: Path) -> bool:
    """Whether a checkpoint passes `check_checkpoint`; what is wrong is reported."""
    try:
        manifest, _ = check_checkpoint(checkpoint)
        if f"{step_of(checkpoint, manifest):08d}" != checkpoint.name.removeprefix("step-"):
            raise gate.Refused(f"{MANIFEST} is of another step")
    except (gate.Refused, FileNotFoundError, NotADirectoryError) as error:
        log.warning("checkpoint %s is passed over: %s", checkpoint, error)
        return False
    if manifest is None:
        log.warning("checkpoint %s has no %s (an older p2p wrote it): damage would go unnoticed", checkpoint, MANIFEST)
    return True


# ------------------------------------------------------------------ writing


def begin(folder: Path) -> Path:
    """An empty folder in which all processes write a checkpoint; also clears away what a killed run left."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / WRITING
    for path in (scratch, *folder.glob(".*.partial")):
        remove_folder(path)
    scratch.mkdir()
    return scratch


def publish(
    folder: Path, config: PolicyConfig, facts: Mapping[str, Any], records: Mapping[str, FileRecord], keep: int | None
) -> None:
    """Give what all processes wrote its manifest and its final name, then delete all but the newest `keep`.

    `records` describe the data files. Checkpoints of later steps are of a run that this one does not go on from
    (they were damaged, or it began anew): they are set aside.
    """
    scratch, step = folder / WRITING, int(facts["step"])
    save_policy_config(config, scratch / CONFIG)
    others = {name: describe(scratch / name) for name in (METADATA, CONFIG)}
    write_file(scratch / MANIFEST, Manifest(KIND, {**records, **others}, facts).encode())
    for name in (METADATA, CONFIG):
        sync(scratch / name)
    sync(scratch)
    for later in (s for s in local_steps(folder) if s > step):
        aside = folder / f"{_SUPERSEDED}{step_name(later)}"
        log.warning("checkpoint %s is of another course of this run: set aside as %s", step_name(later), aside.name)
        _replace(folder / step_name(later), aside)
    _replace(scratch, folder / step_name(step))
    if keep is not None:
        prune(folder, keep)


def _replace(source: Path, target: Path) -> None:
    """Rename a folder over another, which is whole under its name until then."""
    aside = temporary_path(target)
    if target.exists():
        os.rename(target, aside)
    os.rename(source, target)
    sync(target.parent)
    remove_folder(aside)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a local folder."""
    for step in local_steps(folder)[keep:]:
        remove_folder(folder / step_name(step))
