"""Files that appear under their name only when they are complete, and what to do where a disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_BUFFER_BYTES = 1 << 20  # many small pieces become few writes


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write beside, sync, rename; the folder is made if need be.

    Raises:
        ValueError: naming the file, when it cannot be written; what there is of it is removed.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", buffering=_BUFFER_BYTES) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        advice = "make room" if is_full(error) else "mend that"
        raise ValueError(
            f"{path}: cannot be written: {error.strerror or error}; {advice} and run the same command again to go on"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """Around what writes temporary files.

    Raises:
        ValueError: naming their folder, where it is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise ValueError(
            f"{tempfile.gettempdir()}: no room for temporary files; make room, or name another folder in TMPDIR, "
            "and run the same command again to go on"
        ) from error
