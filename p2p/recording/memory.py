"""What one recording may cost in memory: two bytes of a message can take a hundred once it is parsed."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_MEMORY_BYTES = 4 << 30  # on top of what the process holds when it begins with a recording


@contextlib.contextmanager
def limited_memory(num_bytes: int = MAX_MEMORY_BYTES) -> Iterator[None]:
    """Within it, the process gets at most this much more memory: what asks for more gets a MemoryError
    (of protobuf: a DecodeError) instead.

    Without it, the kernel would kill the process, and all that it does with it. Linux only; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit = used + num_bytes
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
