"""The checkpoints of a run, one for each step at which it was saved: verified, and the newest usable one found.

A checkpoint is a folder step-00000500/ of torch.distributed.checkpoint (one file a process, `.metadata`) with the
policy's config.yaml and a manifest: SHA-256 and length of each file, and facts of the run. In an object store the
files arrive one by one, `.metadata` last and the manifest before it: where `.metadata` is, all is there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from p2p import gate
from p2p.checkpoints.layout import METADATA, Layout, needed_bytes, read_layout
from p2p.files import new_folder, write_file
from p2p.manifest import MANIFEST, MAX_BYTES, Manifest, decode_manifest, verify
from p2p.object_storage import ObjectFolder, StoredObject
from p2p.storage import LocalFolder, Storage

log = logging.getLogger(__name__)

KIND = "checkpoint"
CONFIG = "config.yaml"
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


def stored_steps(store: ObjectFolder) -> list[int]:
    """The steps of which there are objects, whole or not, newest first."""
    return steps_in({name.split("/")[0] for name in store.list()})


def uploaded_steps(store: ObjectFolder) -> list[int]:
    """The steps whose last object is there, whatever became of it since; newest first."""
    return steps_in(name.removesuffix("/" + METADATA) for name in store.list())


# ------------------------------------------------------------------ one checkpoint


def inspect(store: Storage, name: str = "") -> tuple[Manifest | None, Mapping[str, StoredObject]]:
    """The manifest of the checkpoint in the folder `name` of a storage, and its files, their lengths as it says.

    A checkpoint that was written before there were manifests has None; of it only names and lengths are known.

    Raises:
        Refused (a ValueError): when it is not whole, or not the step that its folder's name says.
    """
    prefix = f"{name}/" if name else ""
    where = f"{store.url}/{name}".rstrip("/")
    files = {key[len(prefix) :]: each for key, each in store.list(prefix).items() if "/" not in key[len(prefix) :]}
    for needed in (METADATA, CONFIG):
        if needed not in files:
            raise gate.Refused(f"{needed} is missing")
    if MANIFEST not in files:
        log.warning("checkpoint %s has no %s (an older p2p wrote it): damage would go unnoticed", where, MANIFEST)
        return None, files
    manifest = decode_manifest(store.read(prefix + MANIFEST, MAX_BYTES), KIND, f"{where}/{MANIFEST}")
    _check_step(name, check_facts(manifest, f"{where}/{MANIFEST}"))
    for each, expected in manifest.files.items():
        found = files[each].num_bytes if each in files else None
        if found != expected.num_bytes:
            given = "is missing" if found is None else f"has {found} bytes"
            raise gate.Refused(f"{each} {given}, {MANIFEST} says {expected.num_bytes} bytes")
    return manifest, files


def _check_step(name: str, step: int) -> None:
    if _STEP.match(name) and name != step_name(step):
        raise gate.Refused(f"{MANIFEST} is of another step")


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


def check_checkpoint(folder: Path) -> tuple[Manifest | None, Layout]:
    """As `inspect`, of a folder on this machine; also every file is compared with the manifest, and read what it holds.

    Raises:
        Refused: naming what is missing, damaged or not of a checkpoint.
    """
    manifest, _ = inspect(LocalFolder(folder, depth=1))
    if manifest is not None:
        verify(folder, manifest)
    layout = read_layout(folder)
    unknown = set() if manifest is None else needed_bytes(layout).keys() - manifest.files.keys()
    if unknown:
        raise gate.Refused(f"{MANIFEST} does not name {gate.shown(min(unknown))}")
    return manifest, layout


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


def fetch(store: ObjectFolder, name: str, target: Path) -> None:
    """Download the checkpoint in the folder `name` of a store and verify it; it appears as `target` when it is whole.

    Raises:
        Refused: when it is not whole, or not what its manifest says. FileNotFoundError: when it vanishes meanwhile.
    """
    manifest, files = inspect(store, name)
    with new_folder(target) as scratch:
        for each in files if manifest is None else manifest.files:
            store.download(f"{name}/{each}" if name else each, scratch / each, files[each].num_bytes)
        if manifest is not None:
            write_file(scratch / MANIFEST, manifest.encode())
            check_checkpoint(scratch)
        else:
            read_layout(scratch)


# ------------------------------------------------------------------ the newest


def newest_local(folder: Path) -> int | None:
    """The step of the newest usable checkpoint; others are reported and passed over."""

    def use(name: str) -> None:
        manifest, _ = check_checkpoint(folder / name)
        _check_step(name, step_of(folder / name, manifest))

    return _first_usable(str(folder), local_steps(folder), use)


def newest_stored(store: ObjectFolder) -> int | None:
    """The step of the newest checkpoint that is fully uploaded; others are reported and passed over."""
    return _first_usable(store.url, stored_steps(store), lambda name: inspect(store, name))


def fetch_newest(store: ObjectFolder, folder: Path, later_than: int | None) -> int | None:
    """Download the newest usable checkpoint of a step `later_than` this; None when there is none.

    What is incomplete or damaged is reported and passed over.
    """
    steps = [step for step in stored_steps(store) if later_than is None or step > later_than]
    return _first_usable(store.url, steps, lambda name: fetch(store, name, folder / name))


def _first_usable(where: str, steps: Iterable[int], use: Callable[[str], object]) -> int | None:
    for step in steps:
        try:
            use(step_name(step))
            return step
        except (gate.Refused, FileNotFoundError, NotADirectoryError) as error:
            log.warning("checkpoint %s/%s is passed over: %s", where, step_name(step), error)
    return None
