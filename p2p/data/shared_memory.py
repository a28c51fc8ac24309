"""Streaming's shared memory: what a killed process left behind goes, and runs that start at once take turns."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from streaming.base.constant import SHM_TO_CLEAN
from streaming.base.distributed import get_local_rank, get_world_size
from torch import distributed

from p2p.files import runtime_folder

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_ADVICE = "make it larger (docker run --shm-size=8g), or load without workers (data.num_workers=0)"
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal)")
_NAME = re.compile(rf"\d{{6}}_({'|'.join(SHM_TO_CLEAN)})")


@contextmanager
def taking_turns(timeout_s: float) -> Iterator[None]:
    """One run of this user at a time looks for a free name in shared memory and takes it.

    Streaming looks first and takes later, so two runs that start together found the same name. The first process
    of a node holds the lock, its other processes wait for it. Locks lie where no other user can make or hold them.

    Raises:
        filelock.Timeout: when another run holds the lock for longer than `timeout_s`. ValueError: when there is no
            folder for it that is this user's alone.
    """
    is_first = get_local_rank() == 0
    folder, usual = runtime_folder(), tempfile.tempdir
    lock = FileLock(folder / "p2p-streaming.lock", timeout=timeout_s)
    if is_first:
        lock.acquire()
    try:
        if distributed.is_available() and distributed.is_initialized():
            distributed.barrier()
        tempfile.tempdir = str(folder)  # where Streaming puts its own locks
        yield
    finally:
        tempfile.tempdir = usual
        if is_first:
            lock.release()


def remove_stale_shared_memory() -> list[str]:
    """Remove what Streaming shared and no process has open any more; returns the names.

    One process of each node does it, the others wait; without a process group to wait in, nothing is done.
    """
    is_alone = get_world_size() == 1
    if not is_alone and not (distributed.is_available() and distributed.is_initialized()):
        return []
    removed = _remove() if get_local_rank() == 0 and _SHARED_MEMORY.is_dir() else []
    if not is_alone:
        distributed.barrier()
    return removed


def require_shared_memory(num_bytes: int, what: str) -> None:
    """Refuse what is known not to fit: a process that writes beyond the end of shared memory is killed (SIGBUS).

    Raises:
        ValueError: saying how much is free, and what to do.
    """
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else num_bytes
    if free < num_bytes:
        raise ValueError(f"{_SHARED_MEMORY} has {_mb(free)} free; {what} needs {_mb(num_bytes)}: {_ADVICE}")


def shared_memory_fault(error: RuntimeError) -> str:
    """In words what torch raises when a loader's worker died or found shared memory full; "" for any other error.

    torch tells of a bus error as such, or, when it looks too late, only that the worker is gone.
    """
    text = str(error)
    if any(sign in text for sign in ("Bus error", "shared memory(shm)", "</torch_")):
        return f"a worker of the loader was stopped: {_SHARED_MEMORY}, in which batches travel, is full: {_ADVICE}"
    if _DEAD_WORKER.search(text):
        return (
            f"{text.splitlines()[0]}: it was killed, or ran out of memory or of {_SHARED_MEMORY}, in which batches "
            f"travel; for the latter {_ADVICE}"
        )
    return ""


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.1f} MiB"


def _remove() -> list[str]:
    # A process opens these files in the moment that it makes them: what is listed now and in use nowhere is stale.
    found: dict[str, set[Path]] = {}
    for path in _SHARED_MEMORY.iterdir():
        if _NAME.fullmatch(path.name) and _is_ours(path):
            found.setdefault(path.name[:6], set()).add(path)
    removed = []
    holders = _open_files() if found else []
    for _, paths in sorted(found.items()):
        if not any(_uses(paths, held) for held in holders):
            for path in sorted(paths):
                path.unlink(missing_ok=True)
                removed.append(path.name)
    if removed:
        logger.info("removed the shared memory of a process that is gone: %s", ", ".join(removed))
    return removed


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False


def _uses(paths: set[Path], held: set[Path]) -> bool:
    """Whether a process that holds some files uses these, which have one prefix.

    Another that looks for a free prefix opens them too, one after another; the owner holds all of them.
    """
    return len(paths & held) >= min(2, len(paths))


def _open_files() -> list[set[Path]]:
    """For each process, the files in shared memory that it has open."""
    holders = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        files = set()
        try:
            for descriptor in os.scandir(descriptors):
                target = os.readlink(descriptor.path)
                if target.startswith(str(_SHARED_MEMORY)):
                    files.add(Path(target))
        except OSError:  # the process ended, or is not ours
            pass
        if files:
            holders.append(files)
    return holders
