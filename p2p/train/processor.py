"""What a training process does with the machine's processor and memory before it computes on them."""

from __future__ import annotations

import ctypes
import logging
import os

import torch

log = logging.getLogger(__name__)

# Of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0


def share_cores() -> None:
    """Let torch compute with this process's share of the cores that it may use."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def time_convolutions() -> None:
    """On a GPU, let cuDNN time its convolutions at the first frames of each shape and keep the fastest."""
    torch.backends.cudnn.benchmark = torch.cuda.is_available()


def keep_memory() -> bool:
    """Have the C library keep what is freed instead of giving it back; False where it cannot be asked (not glibc).

    A step frees and takes gigabytes in large pieces. Each of them would come fresh from the kernel, which clears it
    page by page at the first touch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("no mallopt here: memory goes back to the kernel after each use")
        return False
    return bool(mallopt(_MMAP_MAX, _NONE) and mallopt(_TRIM_THRESHOLD, _NEVER))
