"""/dev/shm, in which batches travel from a loader's workers: what does not fit, and what happened when it did not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_ADVICE = "make it larger (docker run --shm-size=8g), or load without workers (data.num_workers=0)"
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|killed by signal)")


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
