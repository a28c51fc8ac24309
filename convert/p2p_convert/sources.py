"""Where raw recordings come from: folders, found in a fixed order and read one recording at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p.recording import ANNOTATION_FILE, VIDEO_FILE
from p2p_convert.segments import RawRecording

WANTED_FILES = (ANNOTATION_FILE, VIDEO_FILE)


@dataclass(frozen=True)
class FolderSource:
    """Recordings in folders; num_bytes of their wanted files tell one content from another."""

    folders: tuple[str, ...]
    num_bytes: int

    def recordings(self) -> Iterator[RawRecording]:
        """The recordings in order."""
        for name in self.folders:
            folder = Path(name)
            files = {n: (folder / n).read_bytes() for n in WANTED_FILES if (folder / n).is_file()}
            yield RawRecording(folder.name, name, files)


def find_recordings(root: Path) -> list[Path]:
    """All recording folders below (or at) `root`, by name: those with an annotation or an MP4 file.

    Raises:
        ValueError: when `root` is no folder, or holds no recording.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected raw recordings (folders with {ANNOTATION_FILE})")
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if any(name == ANNOTATION_FILE or name.endswith(".mp4") for name in files):
            found.append(Path(folder))
            subfolders.clear()
    if not found:
        raise ValueError(f"{root}: no recording in it; a recording is a folder with {ANNOTATION_FILE} and {VIDEO_FILE}")
    return sorted(found, key=lambda path: (path.name, str(path)))


def num_bytes(folder: Path) -> int:
    """Size of the files of a recording that are converted."""
    return sum((folder / name).stat().st_size for name in WANTED_FILES if (folder / name).is_file())


def split_position(recording: str) -> float:
    """Where a recording stands in [0, 1), by the hash of its id alone."""
    return int.from_bytes(hashlib.sha256(recording.encode()).digest()[:8], "big") / 2**64


def validation_ids(recordings: Sequence[str], fraction: float) -> frozenset[str]:
    """The recordings of the validation split: those whose position is below the fraction.

    Where a small set would be left without validation (or without training), the recording with the lowest
    position (all but the highest) is taken, so that both splits have one.
    """
    if fraction <= 0 or not recordings:
        return frozenset()
    ordered = sorted(set(recordings), key=split_position)
    count = sum(split_position(recording) < fraction for recording in ordered)
    if len(ordered) > 1:
        count = min(max(count, 1), len(ordered) - 1)
    return frozenset(ordered[:count])
