"""What to do where a file of a conversion cannot be written, or a disk is full."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Around what writes a file of OUT.

    Raises:
        ValueError: naming the file, when it cannot be written.
    """
    try:
        yield
    except OSError as error:
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
