"""What a command keeps outside its own folders while it runs: a temporary folder, and the shared memory of an engine.

Both go when the command ends. What one that was killed has left goes when the next begins, or by the helper of
reaper.py: a folder is left when nobody holds the lock in it.
"""

import contextlib
import functools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from p2p.files import take, take_left

SHARED_MEMORY = Path("/dev/shm")
_OWNER, _NAMES = "owner", "shared-memory"
_ENGINE_S = re.compile(r"ViZDoom[A-Za-z0-9]+")


class Scratch:
    """A temporary folder, `path`, that this process owns until `close`."""

    def __init__(self, what: str) -> None:
        _sweep_once()
        self.path = Path(tempfile.mkdtemp(prefix=f"p2p-{what}-"))
        self._lock = take(self.path / _OWNER, str(self.path))

    def remember(self, names: Iterable[str]) -> None:
        """Names in /dev/shm that are to go with the folder."""
        (self.path / _NAMES).write_text("\n".join(names))

    def close(self) -> None:
        """Nothing of it stays."""
        _remove(self.path)
        self._lock.close()


def engine_memory() -> set[str]:
    """The names in /dev/shm that engines of this process have."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    names = {Path(line.split(maxsplit=5)[-1]).name for line in lines if f" {SHARED_MEMORY}/" in line}
    return {name for name in names if _ENGINE_S.fullmatch(name)}


def sweep() -> None:
    """Remove what owners that have ended left in the folder for temporary files; of this user, and of no one else."""
    for folder in Path(tempfile.gettempdir()).glob("p2p-*-*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                continue
            lock = take_left(folder / _OWNER)
            if lock is not None:
                with lock:
                    _remove(folder)


@functools.cache
def _sweep_once() -> None:
    sweep()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (folder / _NAMES).read_text().splitlines():
            if _ENGINE_S.fullmatch(name):
                (SHARED_MEMORY / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _OWNER:  # by which the rest is found again, should this be interrupted
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
