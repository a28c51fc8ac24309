"""Where raw recordings come from: folders and tar archives, read one recording at a time."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from p2p.recording import ANNOTATION_FILE, VIDEO_FILE
from p2p_convert import hub
from p2p_convert.segments import ORIGINAL_VIDEO_FILE, RawRecording

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
            files: dict[str, bytes | Path] = {n: folder / n for n in wanted_files(folder)}
            yield RawRecording(folder.name, name, files)


@dataclass(frozen=True)
class ArchiveSource:
    """Recordings in a tar archive, read from its beginning to its end, never unpacked.

    The files of a recording stand together in an archive. What is not wanted is passed over: the original video.mp4,
    most of the bytes, may come before the small one, so the recordings that have no other are read in a second pass.
    """

    archive: str
    num_bytes: int

    def recordings(self) -> Iterator[RawRecording]:
        """The recordings in the order of the archive, those with only an original video last; one is in memory.

        Raises:
            BadArchive: after the last whole recording, when the archive ends too early or is damaged.
        """
        originals: set[str] = set()
        try:
            for folder, files in self._folders(lambda path: path.name in WANTED_FILES):
                if VIDEO_FILE not in files and ORIGINAL_VIDEO_FILE in files:
                    originals.add(folder)
                else:
                    yield self._recording(folder, files)
                del files  # before the next one is read
        except BadArchive:
            if not originals:
                raise
        if originals:
            wanted = (ANNOTATION_FILE, ORIGINAL_VIDEO_FILE)
            for folder, files in self._folders(lambda path: path.name in wanted and str(path.parent) in originals):
                if folder in originals:
                    yield self._recording(folder, files)
                del files

    def _folders(self, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """(folder, {file name: its content, None where it is not wanted}) of each recording."""
        files: dict[str, bytes | None] = {}
        folder = ""
        for path, content in _members(self.archive, wanted):
            if str(path.parent) != folder and files:
                yield folder, files
                files = {}
            folder = str(path.parent)
            files[path.name] = content
            del content
        if files:
            yield folder, files

    def _recording(self, folder: str, files: Mapping[str, bytes | None]) -> RawRecording:
        contents = {name: content for name, content in files.items() if content is not None}
        return RawRecording(PurePosixPath(folder).name, f"{self.archive}:{folder}", contents)

    def names(self) -> list[str]:
        """The ids of the recordings, by passing over the whole archive.

        Raises:
            BadArchive: as `recordings`.
        """
        folders = (str(path.parent) for path, _ in _members(self.archive, lambda path: False))
        return list(dict.fromkeys(PurePosixPath(folder).name for folder in folders))


class BadArchive(ValueError):  # noqa: N818  a verdict on the data
    """An archive that ends too early, or is none."""


Source = FolderSource | ArchiveSource


def _members(archive: str, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes | None]]:
    """(path, content or None where it is not wanted) of the files of recordings in an archive."""
    try:
        with open_archive(archive) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and (path.name == ANNOTATION_FILE or path.name.endswith(".mp4")):
                    yield path, _content(tar, member) if wanted(path) else None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadArchive(f"{archive}: {error or 'ends too early'}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def open_archive(archive: str) -> IO[bytes]:
    """The bytes of an archive, on a disk or on the Hub, to be read once."""
    return hub.open_file(archive) if archive.startswith(hub.PREFIX) else open(archive, "rb")


def is_archive(path: PurePath) -> bool:
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))


def find_archives(root: str) -> list[ArchiveSource]:
    """The archives below (or at) a folder or an hf://datasets/OWNER/NAME[/PATH] address, by name.

    Raises:
        ValueError: when the Hub does not have such an address.
    """
    if root.startswith(hub.PREFIX):
        sizes = hub.list_files(root)
    elif Path(root).is_file():
        sizes = {root: Path(root).stat().st_size}
    else:
        sizes = {str(path): path.stat().st_size for path in Path(root).rglob("*") if path.is_file()}
    archives = [ArchiveSource(name, size) for name, size in sizes.items() if is_archive(PurePath(name))]
    return sorted(archives, key=lambda archive: archive.archive)


def find_recordings(root: Path) -> list[Path]:
    """All recording folders below (or at) `root`, by name: those with an annotation or an MP4 file.

    Raises:
        ValueError: when `root` is no folder and no archive.
    """
    if root.is_file() and is_archive(root):
        return []
    if not root.is_dir():
        raise ValueError(
            f"{root}: no such folder; expected raw recordings (folders with {ANNOTATION_FILE}) or a .tar.gz of them"
        )
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if any(name == ANNOTATION_FILE or name.endswith(".mp4") for name in files):
            found.append(Path(folder))
            subfolders.clear()
    return sorted(found, key=lambda path: (path.name, str(path)))


def wanted_files(folder: Path) -> list[str]:
    """The files of a recording that are converted: the original video only where there is no small one."""
    names = [name for name in WANTED_FILES if (folder / name).is_file()]
    if VIDEO_FILE not in names and (folder / ORIGINAL_VIDEO_FILE).is_file():
        names.append(ORIGINAL_VIDEO_FILE)
    return names


def num_bytes(folder: Path) -> int:
    """Size of the files of a recording that are converted."""
    return sum((folder / name).stat().st_size for name in wanted_files(folder))


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
