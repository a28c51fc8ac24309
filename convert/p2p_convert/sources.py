"""Where raw recordings come from: folders and tar archives, read one recording at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from p2p import gate
from p2p.hub.archive import Archive, BadArchive, Readable
from p2p.manifest import MANIFEST, decode_manifest
from p2p.recording import ANNOTATION_FILE, MANIFEST_KIND, VIDEO_FILE
from p2p_convert import hub
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording
from p2p_convert.segments import MAX_MANIFEST_BYTES, ORIGINAL_VIDEO_FILE, RawRecording

WANTED_FILES = (ANNOTATION_FILE, VIDEO_FILE)
MAX_BYTES = {  # of a file in memory
    ANNOTATION_FILE: 1 << 28,
    VIDEO_FILE: 1 << 31,
    ORIGINAL_VIDEO_FILE: 1 << 32,
    MANIFEST: MAX_MANIFEST_BYTES,
}
MAX_RECORDINGS = 250_000  # of an archive, bad ones counted: each is a line of the report


@dataclass(frozen=True)
class Unusable:
    """A recording that an archive does not give, and why."""

    id: str
    where: str
    verdict: Rejected


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
            if os.path.lexists(folder / MANIFEST):  # whatever it is: only where there is none, nothing is compared
                files[MANIFEST] = folder / MANIFEST
            yield RawRecording(folder.name, name, files)


@dataclass(frozen=True)
class ArchiveSource:
    """Recordings in a tar archive, read from its beginning to its end, never unpacked.

    The files of a recording, its manifest among them, stand together in an archive, in any order. What is not wanted
    is passed over: the original video.mp4, most of the bytes, may come before the small one, so the recordings that
    have no other are read in a second pass.
    `digest` is the hash that the Hub names for it, "" for one on a disk.
    """

    archive: str
    num_bytes: int
    digest: str = ""

    def recordings(self) -> Iterator[RawRecording | Unusable]:
        """The recordings in the order of the archive, those with only an original video last; one is in memory.

        Nothing of them is to be believed before the iteration has ended.

        Raises:
            BadArchive: when the archive is damaged or too short; it may be after the last recording that this shows.
        """
        originals: set[str] = set()
        for folder, files in self.folders(lambda path: path.name in (*WANTED_FILES, MANIFEST)):
            if set(files) == {MANIFEST}:
                yield from self._lone_manifest(folder, files[MANIFEST])
            elif VIDEO_FILE not in files and ORIGINAL_VIDEO_FILE in files:
                originals.add(folder)
            else:
                yield self._recording(folder, files)
            del files  # before the next one is read
        if originals:
            wanted = (ANNOTATION_FILE, ORIGINAL_VIDEO_FILE, MANIFEST)
            for folder, files in self.folders(lambda path: path.name in wanted and str(path.parent) in originals):
                if folder in originals and set(files) != {MANIFEST}:
                    yield self._recording(folder, files)
                del files

    def folders(self, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[str, dict[str, bytes | int | None]]]:
        """(folder, {file name: its content, None where it is not wanted, its size where it is too large})."""
        files: dict[str, bytes | int | None] = {}
        folder = ""
        num_folders = 0
        for path, content in self._members(wanted):
            if str(path.parent) != folder and files:
                yield folder, files
                files = {}
                num_folders += 1
                self._check_count(num_folders)
            folder = str(path.parent)
            files[path.name if path.name in MAX_BYTES else "another video"] = content  # one entry for all of these
            del content
        if files:
            yield folder, files

    def _members(self, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes | int | None]]:
        with self._open() as file:
            checked: Readable = file
            if self.digest:
                checked = hub.Verified(file, self.archive, self.num_bytes, self.digest)
            archive = Archive(checked, gate.printable(self.archive))
            for member in archive:
                path = PurePosixPath(member.path)
                if not member.is_file or not (path.name in (ANNOTATION_FILE, MANIFEST) or path.name.endswith(".mp4")):
                    continue
                if not wanted(path):
                    yield path, None
                elif member.num_bytes > MAX_BYTES[path.name]:
                    yield path, member.num_bytes
                else:
                    yield path, archive.read()

    def _open(self) -> BinaryIO:
        """The bytes of the archive, on a disk or on the Hub, to be read once."""
        if self.archive.startswith(hub.PREFIX):
            return hub.open_file(self.archive, self.num_bytes)
        return gate.open_regular(self.archive)

    def _recording(self, folder: str, files: Mapping[str, bytes | int | None]) -> RawRecording | Unusable:
        name = PurePosixPath(folder).name
        where = self._where(folder)
        contents: dict[str, bytes | Path] = {}
        try:
            gate.plain_name(name, "the folder of a recording in an archive")
        except gate.Refused as error:
            return Unusable(gate.shown(name), where, Rejected("bad name", str(error)))
        for file, content in files.items():
            if isinstance(content, int):
                message = f"{where}/{file} has {content} bytes; at most {MAX_BYTES[file]} are read from an archive"
                return Unusable(name, where, Rejected("file too large", message))
            if content is not None:
                contents[file] = content
        return RawRecording(name, where, contents)

    def _where(self, folder: str) -> str:
        return f"{gate.printable(self.archive)}:{gate.shown(folder, quote=False)}"

    def _lone_manifest(self, folder: str, content: bytes | int | None) -> Iterator[Unusable]:
        """A verdict on a recording's manifest that stands apart from its files; none on any other file of that name."""
        where = f"{self._where(folder)}/{MANIFEST}"
        with contextlib.suppress(gate.Refused):
            if isinstance(content, bytes) and decode_manifest(content, MANIFEST_KIND, where):
                message = f"{where} does not stand beside the files of its recording; pack the archive again"
                name = gate.shown(PurePosixPath(folder).name, quote=False)
                yield Unusable(name, where, Rejected("manifest apart", message))

    def names(self) -> list[str]:
        """The ids of the recordings, by passing over the whole archive.

        Raises:
            BadArchive: as `recordings`.
        """
        found: dict[str, None] = {}
        for path, _ in self._members(lambda path: False):
            if path.name != MANIFEST and len(path.parent.name) <= gate.MAX_NAME_BYTES:  # longer ones are rejected
                found[path.parent.name] = None
                self._check_count(len(found))
        return list(found)

    def _check_count(self, num_recordings: int) -> None:
        if num_recordings > MAX_RECORDINGS:
            raise BadArchive(f"{gate.printable(self.archive)}: more than {MAX_RECORDINGS} recordings")


@dataclass(frozen=True)
class ForeignSource:
    """Recordings that other programs made, by id; read when they are converted."""

    foreign: tuple[ForeignRecording, ...]
    num_bytes: int

    def recordings(self) -> Iterator[ForeignRecording]:
        """The recordings in order, unread."""
        yield from self.foreign


Source = FolderSource | ArchiveSource | ForeignSource


def is_archive(path: PurePath) -> bool:
    return path.name.endswith((".tar.gz", ".tgz", ".tar"))


def find_archives(root: str) -> list[ArchiveSource]:
    """The archives below (or at) a folder or an hf://datasets/OWNER/NAME[/PATH] address, by name.

    Raises:
        ValueError: when the Hub does not have such an address.
    """
    if root.startswith(hub.PREFIX):
        listed = hub.list_files(root).items()
        archives = [ArchiveSource(name, file.size, file.digest) for name, file in listed if is_archive(PurePath(name))]
    else:
        found = [Path(root)] if Path(root).is_file() else _visible_files(Path(root))
        archives = [ArchiveSource(str(p), p.stat().st_size) for p in found if is_archive(p) and p.is_file()]
    return sorted(archives, key=lambda archive: archive.archive)


def _visible_files(root: Path) -> Iterator[Path]:
    """Not what is hidden: there lies what a download has not finished."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


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
    return int.from_bytes(hashlib.sha256(recording.encode(errors="surrogatepass")).digest()[:8], "big") / 2**64


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
