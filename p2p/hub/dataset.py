"""The public dataset: which archives are wanted, and recordings out of them.

The dataset is a row of archives `dataset/batch_00001.tar.gz`, each with a folder per recording; a table names the
game of each recording. Nine tenths of an archive are `video.mp4`, which training never reads.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from p2p.hub.transfer import Downloads, RemoteFile

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".tar.gz"
METADATA = "data_metadata.parquet"
RAW_VIDEO = "video.mp4"
WANTED_NAMES = ("annotation.proto", "192x192.mp4")

_ARCHIVE_NUMBER = re.compile(r"batch_(\d+)")


@dataclass(frozen=True)
class Selection:
    """What of the dataset is wanted: archives `start`..`end` (both included), and of those one game's recordings."""

    start: int | None = None
    end: int | None = None
    game: str | None = None
    raw_video: bool = False
    keep_archives: bool = False

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 1:
            raise ValueError(f"--start is {self.start}; archives are numbered from 1")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"--end {self.end} is before --start {self.start}")
        if self.keep_archives and self.game is not None:
            raise ValueError(
                "--archives keeps whole archives, in which games are mixed; leave --archives or --game out"
            )

    def wants_archive(self, number: int) -> bool:
        """Whether the archive of this number lies in the range."""
        return (self.start is None or number >= self.start) and (self.end is None or number <= self.end)

    def wants_file(self, name: str) -> bool:
        """Whether a file of a recording is wanted, by its name."""
        return name in WANTED_NAMES or (self.raw_video and name == RAW_VIDEO)

    def signature(self, archive: RemoteFile, recordings: frozenset[str] | None) -> str:
        """Names what was taken out of an archive, so that the same wish is not fulfilled twice."""
        what = "all" if recordings is None else ",".join(sorted(recordings))
        return f"{archive.digest} {what} {'with' if self.raw_video else 'without'} {RAW_VIDEO}"


def archive_number(path: str) -> int | None:
    """The number in `dataset/batch_00001.tar.gz` or in a recording's file path; None when there is none."""
    match = _ARCHIVE_NUMBER.search(path)
    return int(match.group(1)) if match else None


def recordings_of_game(table: Path, game: str) -> dict[int, frozenset[str]]:
    """Archive numbers and, for each, the folder names of one game's recordings, from the dataset's table.

    Games are matched without regard to case. Raises ValueError for a game that is not in the table.
    """
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(table, columns=["id", "filepath", "env_name"]).to_pydict()
    names = [str(name or "") for name in columns["env_name"]]
    wanted = game.casefold()
    if wanted not in {name.casefold() for name in names}:
        most_common = [name for name, _ in Counter(names).most_common(5)]
        close = difflib.get_close_matches(game, set(names), n=3, cutoff=0.5) or most_common
        raise ValueError(f"{table.name} has no recording of {game!r}; nearest: {', '.join(map(repr, close))}")
    found: dict[int, set[str]] = {}
    for identifier, path, name in zip(columns["id"], columns["filepath"], names, strict=True):
        if name.casefold() != wanted:
            continue
        number = archive_number(str(path))
        if number is None:
            raise ValueError(f"{table.name}: {path!r} of recording {identifier} names no archive batch_NNNNN")
        found.setdefault(number, set()).update({str(identifier), *_folder_names(str(path))})
    return {number: frozenset(folders) for number, folders in sorted(found.items())}


def _folder_names(path: str) -> set[str]:
    """What a recording's folder may be called, judging by its path in the table."""
    parts = PurePosixPath(path).parts
    return {part for part in parts if not _ARCHIVE_NUMBER.search(part) and part not in ("dataset", *WANTED_NAMES)}


def unpack(archive: Path, scratch: Path, selection: Selection, recordings: frozenset[str] | None) -> list[Path]:
    """Write the wanted files of an archive below `scratch`, in one folder per recording; returns these folders.

    Member names are reduced to their last two parts, so nothing is ever written elsewhere.
    """
    folders = {}
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                path = PurePosixPath(member.name)
                recording = path.parent.name
                if not member.isfile() or recording in ("", "..") or not selection.wants_file(path.name):
                    continue
                if recordings is not None and recording not in recordings:
                    continue
                source = members.extractfile(member)
                assert source is not None, "a regular file has content"
                folders[recording] = scratch / recording
                folders[recording].mkdir(exist_ok=True)
                with source, (folders[recording] / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive}: not a whole .tar.gz archive ({error}); delete it and download it again"
        ) from error
    return list(folders.values())


def _move_recording(source: Path, target: Path) -> None:
    """Move a recording's folder under its final name; into a folder that is there already, file by file."""
    if not target.exists():
        os.replace(source, target)
        return
    for path in source.iterdir():
        os.replace(path, target / path.name)


def _take_archive(downloads: Downloads, archive: RemoteFile, selection: Selection, ids: frozenset[str] | None) -> int:
    """Download one archive, unpack what is wanted of it, and delete it; returns the number of recordings."""
    target = downloads.output / PurePosixPath(archive.path).name.removesuffix(ARCHIVE_SUFFIX)
    signature = selection.signature(archive, ids)
    if target.is_dir() and downloads.is_done(archive.path, signature):
        logger.info("%s is there already", target)
        return sum(1 for _ in target.iterdir())
    staged = downloads.fetch_to_staging(archive)
    scratch = downloads.scratch("unpack")
    folders = unpack(staged, scratch, selection, ids)
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        _move_recording(folder, target / folder.name)
    downloads.mark_done(archive.path, signature)
    staged.unlink()
    shutil.rmtree(scratch)
    logger.info("%s: %d recordings", target, len(folders))
    return len(folders)


def _plan(downloads: Downloads, files: Sequence[RemoteFile], selection: Selection) -> dict[str, frozenset[str] | None]:
    """The wanted archives by path, each with the recordings wanted of it (None: all)."""
    numbered = {number: file.path for file in files if (number := _number_of_archive(file)) is not None}
    wanted: dict[int, frozenset[str] | None] = {n: None for n in sorted(numbered) if selection.wants_archive(n)}
    if selection.game is not None:
        table = next((file for file in files if PurePosixPath(file.path).name == METADATA), None)
        if table is None:
            raise ValueError(
                f"{downloads.repository.repo_id} has no {METADATA}, which names the games; use --start, --end"
            )
        of_game = recordings_of_game(downloads.fetch(table, METADATA), selection.game)
        wanted = {number: of_game[number] for number in wanted if number in of_game}
    if not wanted:
        span = f"{min(numbered):05d} to {max(numbered):05d}" if numbered else "none"
        raise ValueError(f"no archive of {downloads.repository.repo_id} is in that range; its archives: {span}")
    return {numbered[number]: ids for number, ids in wanted.items()}


def _number_of_archive(file: RemoteFile) -> int | None:
    return archive_number(file.path) if file.path.endswith(ARCHIVE_SUFFIX) else None


def download_archives(downloads: Downloads, selection: Selection) -> int:
    """Download the selected archives one after another; returns the number of recordings (or of archives kept)."""
    files = downloads.repository.files()
    plan = _plan(downloads, files, selection)
    by_path = {file.path: file for file in files}
    size_gb = sum(by_path[path].size for path in plan) / 1e9
    logger.info("%d archives, %.1f GB to transfer", len(plan), size_gb)
    if selection.keep_archives:
        for path in plan:
            downloads.fetch(by_path[path])
        return len(plan)
    return sum(_take_archive(downloads, by_path[path], selection, ids) for path, ids in plan.items())


def download_toy(downloads: Downloads, selection: Selection) -> int:
    """Download the small example set, whose recordings are loose files or archives; returns how many there are."""
    files = downloads.repository.files()
    loose = [file for file in files if selection.wants_file(PurePosixPath(file.path).name)]
    archives = [file for file in files if file.path.endswith(ARCHIVE_SUFFIX)]
    if not loose and not archives:
        raise ValueError(f"{downloads.repository.repo_id} holds no recording ({', '.join(WANTED_NAMES)})")
    for file in loose:
        downloads.fetch(file)
    num_loose = len({str(PurePosixPath(file.path).parent) for file in loose})
    return num_loose + sum(_take_archive(downloads, archive, selection, None) for archive in archives)
