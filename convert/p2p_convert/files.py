"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
from pathlib import Path

_BUFFER_BYTES = 1 << 20  # many small pieces become few writes


def write_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write beside, sync, rename; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb", buffering=_BUFFER_BYTES) as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
