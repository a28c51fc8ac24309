"""Checkpoints in object storage: uploaded while training goes on, found again, fetched and verified.

The objects of a checkpoint arrive one by one, its `.metadata` last and its manifest before that: where `.metadata` is,
all is there.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path

from p2p import gate
from p2p.files import new_folder, remove_folder, write_file
from p2p.manifest import MANIFEST, MAX_BYTES, Manifest, decode_manifest
from p2p.object_storage import ObjectFolder, StoredObject
from p2p.train.checkpoints import (
    CONFIG,
    KIND,
    check_checkpoint,
    check_facts,
    local_steps,
    step_name,
    steps_in,
)
from p2p.train.layout import METADATA

log = logging.getLogger(__name__)


def remote_steps(store: ObjectFolder) -> list[int]:
    """The steps of which there are objects, whole or not, newest first."""
    return steps_in(sorted({name.split("/")[0] for name in store.list()}))


def uploaded_steps(store: ObjectFolder) -> list[int]:
    """The steps whose last object is there, whatever became of it since; newest first."""
    return steps_in(name.removesuffix("/" + METADATA) for name in store.list())


def newest_remote(store: ObjectFolder) -> int | None:
    """The step of the newest checkpoint that is fully uploaded; others are reported and passed over."""
    for step in remote_steps(store):
        try:
            _inspect(store, step)
            return step
        except (gate.Refused, FileNotFoundError) as error:
            log.warning("checkpoint %s/%s is passed over: %s", store.url, step_name(step), error)
    return None


def fetch_newest(store: ObjectFolder, folder: Path, later_than: int | None) -> int | None:
    """Download the newest usable checkpoint of a step `later_than` this; None when there is none.

    What is incomplete or damaged is reported and passed over.
    """
    for step in remote_steps(store):
        if later_than is not None and step <= later_than:
            return None
        try:
            log.info("fetching checkpoint %s of %s", step_name(step), store.url)
            fetch(store, step, folder)
            return step
        except (gate.Refused, FileNotFoundError) as error:
            log.warning("checkpoint %s/%s is passed over: %s", store.url, step_name(step), error)
    return None


def fetch(store: ObjectFolder, step: int, folder: Path) -> None:
    """Download a checkpoint and verify it; it appears under its name when it is whole.

    Raises:
        Refused: when it is not whole, or not what its manifest says. FileNotFoundError: when it vanishes meanwhile.
    """
    manifest, objects = _inspect(store, step)
    with new_folder(folder / step_name(step)) as scratch:
        for name in objects if manifest is None else manifest.files:
            store.download(f"{step_name(step)}/{name}", scratch / name, objects[name].num_bytes)
        if manifest is not None:
            write_file(scratch / MANIFEST, manifest.encode())
        check_checkpoint(scratch)


def _inspect(store: ObjectFolder, step: int) -> tuple[Manifest | None, Mapping[str, StoredObject]]:
    """The manifest of a stored checkpoint and its objects by file name, their lengths as the manifest says."""
    prefix = step_name(step) + "/"
    where = f"{store.url}/{step_name(step)}"
    objects = {gate.plain_name(name[len(prefix) :], where): each for name, each in store.list(prefix).items()}
    if METADATA not in objects or CONFIG not in objects:
        raise gate.Refused("not fully uploaded")
    if MANIFEST not in objects:
        log.warning("checkpoint %s has no %s (an older p2p wrote it): damage would go unnoticed", where, MANIFEST)
        return None, objects
    manifest = decode_manifest(store.read(prefix + MANIFEST, MAX_BYTES), KIND, f"{where}/{MANIFEST}")
    if check_facts(manifest, f"{where}/{MANIFEST}") != step:
        raise gate.Refused(f"{MANIFEST} is of another step")
    for name, expected in manifest.files.items():
        found = objects[name].num_bytes if name in objects else None
        if found != expected.num_bytes:
            given = "is missing" if found is None else f"has {found} bytes"
            raise gate.Refused(f"{name} {given}, {MANIFEST} says {expected.num_bytes} bytes")
    return manifest, objects


class Uploader:
    """Uploads checkpoints one after another in a thread; training goes on meanwhile.

    Local copies are deleted once a newer one is uploaded; remote ones beyond the newest `keep`, and those of later
    steps, which the run found unusable.
    A failed upload is tried again with the next checkpoint; `close` raises what the last one left.
    """

    def __init__(self, store: ObjectFolder, folder: Path, keep: int):
        self.store, self.folder, self.keep = store, folder, keep
        self.error: Exception | None = None
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="checkpoint-upload", daemon=True)
        self._thread.start()

    def submit(self, step: int) -> None:
        self._steps.put(step)

    def close(self, timeout_s: float) -> None:
        """Wait for the uploads that are under way.

        Raises:
            OSError: the last upload failed, or did not end in time.
        """
        self._steps.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.store.url}: the upload did not end within {timeout_s:.0f} s")
        if self.error is not None:
            raise OSError(f"{self.store.url}: the last checkpoint was not uploaded: {self.error}") from self.error

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                self._upload(step)
                self.error = None
            except Exception as error:  # noqa: BLE001 (storage errors of any kind are kept, reported, tried again)
                self.error = error
                log.warning("%s: upload of %s failed: %s", self.store.url, step_name(step), error)

    def _upload(self, step: int) -> None:
        last = (MANIFEST, METADATA)
        files = [path for path in (self.folder / step_name(step)).iterdir() if path.name not in last]
        for path in (*sorted(files), *(self.folder / step_name(step) / name for name in last)):
            self.store.upload(path, f"{step_name(step)}/{path.name}")
        for older in local_steps(self.folder):
            if older < step:
                remove_folder(self.folder / step_name(older))
        names = list(self.store.list())
        stored = steps_in(sorted({name.split("/")[0] for name in names}))
        kept = [s for s in stored if s <= step][: self.keep]
        old = [step_name(s) + "/" for s in stored if s not in kept]
        self.store.delete([name for name in names if name.startswith(tuple(old))])
