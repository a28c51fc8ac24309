"""How a checkpoint comes under its name, locally whole or not at all, and from there into an object store.

All processes write into one folder, which gets its manifest and is renamed, so Composer's own saver (a link that can be
missing after a crash) is not used. The upload is a thread's; training goes on meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2p.checkpoints.layout import METADATA
from p2p.checkpoints.steps import CONFIG, KIND, local_steps, step_name, steps_in
from p2p.config import PolicyConfig, save_policy_config
from p2p.files import remove_folder, replace_folder, sync, write_file
from p2p.manifest import MANIFEST, FileRecord, Manifest, describe
from p2p.object_storage import ObjectFolder

log = logging.getLogger(__name__)

WRITING = ".writing"
_SUPERSEDED = "superseded-"


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
        replace_folder(folder / step_name(later), aside)
    replace_folder(scratch, folder / step_name(step))
    if keep is not None:
        prune(folder, keep)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a local folder."""
    for step in local_steps(folder)[keep:]:
        remove_folder(folder / step_name(step))


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
