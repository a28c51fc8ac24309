"""Checkpoints of a run: saved whole or not at all, found again after a crash, kept in object storage.

A checkpoint is a folder step-00000500/ of torch.distributed.checkpoint (one file a process, `.metadata`)
with the policy's config.yaml. It is written under another name and renamed, so Composer's own saver
(a link that can be missing after a crash, and uploads that can hang) is not used; its state dict is.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import re
import shutil
import threading
from pathlib import Path

from p2p.config import PolicyConfig, save_policy_config
from p2p.object_storage import ObjectFolder

log = logging.getLogger(__name__)

METADATA = ".metadata"
CONFIG = "config.yaml"
_STEP = re.compile(r"^step-(\d{8,})$")


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def steps_in(names: list[str]) -> list[int]:
    """The steps of the names that are checkpoints, newest first."""
    return sorted((int(match.group(1)) for name in names if (match := _STEP.match(name))), reverse=True)


def needed_bytes(metadata: bytes) -> dict[str, int]:
    """The files that a checkpoint consists of, and how long each must be at least."""
    needed: dict[str, int] = {}
    for info in pickle.loads(metadata).storage_data.values():  # our own file: torch writes it as a pickle
        needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
    return needed


def missing_part(folder: Path) -> str | None:
    """What makes a checkpoint folder unusable, or None when it is complete."""
    if not (folder / METADATA).is_file():
        return f"{METADATA} is missing"
    try:
        needed = needed_bytes((folder / METADATA).read_bytes())
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        return f"{METADATA} is unreadable ({error})"
    for name, size in needed.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size < size:
            return f"{name} is truncated"
    return None


def newest_local(folder: Path) -> int | None:
    """The step of the newest complete checkpoint; incomplete ones are reported and passed over."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for step in steps_in(names):
        problem = missing_part(folder / step_name(step))
        if problem is None:
            return step
        log.warning("checkpoint %s is passed over: %s", folder / step_name(step), problem)
    return None


def newest_remote(store: ObjectFolder, scratch: Path) -> int | None:
    """As `newest_local`, in object storage; `scratch` takes the metadata files for a look."""
    sizes = {name: each.num_bytes for name, each in store.list().items()}
    for step in steps_in(sorted({name.split("/")[0] for name in sizes})):
        prefix = step_name(step)
        if f"{prefix}/{METADATA}" not in sizes or f"{prefix}/{CONFIG}" not in sizes:
            log.warning("checkpoint %s/%s is passed over: not fully uploaded", store.url, prefix)
            continue
        look = scratch / f".look-{prefix}"
        store.download(f"{prefix}/{METADATA}", look)
        needed = needed_bytes(look.read_bytes())
        look.unlink()
        if all(sizes.get(f"{prefix}/{name}", -1) >= size for name, size in needed.items()):
            return step
        log.warning("checkpoint %s/%s is passed over: not fully uploaded", store.url, prefix)
    return None


def fetch(store: ObjectFolder, step: int, folder: Path) -> None:
    """Download a checkpoint; it appears under its name when it is whole."""
    scratch = folder / f".fetching-{step_name(step)}"
    shutil.rmtree(scratch, ignore_errors=True)
    for name in store.list(step_name(step) + "/"):
        store.download(name, scratch / name.split("/", 1)[1])
    shutil.rmtree(folder / step_name(step), ignore_errors=True)
    os.replace(scratch, folder / step_name(step))


def publish(scratch: Path, target: Path, config: PolicyConfig) -> None:
    """Give a finished checkpoint its final name."""
    save_policy_config(config, scratch / CONFIG)
    for path in scratch.iterdir():
        _sync(path)
    _sync(scratch)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a local folder."""
    for step in steps_in([path.name for path in folder.iterdir()])[keep:]:
        shutil.rmtree(folder / step_name(step), ignore_errors=True)


class Uploader:
    """Uploads checkpoints one after another in a thread; training goes on meanwhile.

    Local copies are deleted once a newer one is uploaded; remote ones beyond the newest `keep`.
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
        folder = self.folder / step_name(step)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == METADATA):  # the metadata last
            self.store.upload(path, f"{step_name(step)}/{path.name}")
        for older in steps_in([path.name for path in self.folder.iterdir()]):
            if older < step:
                shutil.rmtree(self.folder / step_name(older), ignore_errors=True)
        names = list(self.store.list())
        old = steps_in(sorted({name.split("/")[0] for name in names}))[self.keep :]
        self.store.delete([name for name in names if any(name.startswith(step_name(s) + "/") for s in old)])
