"""The public dataset: which archives are wanted, and recordings out of them.

The dataset is a row of archives `dataset/batch_00001.tar.gz`, each with a folder per recording; a table names the
game of each recording. Nine tenths of an archive are `video.mp4`, which training never reads.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from p2p import gate
from p2p.files import publish
from p2p.hub.archive import Archive, BadArchive
from p2p.hub.choice import Search, archive_number, recordings_of_game, span
from p2p.hub.transfer import STAGING, Downloads, RemoteFile
from p2p.manifest import MANIFEST

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIX = ".tar.gz"
METADATA = "data_metadata.parquet"
RAW_VIDEO = "video.mp4"
WANTED_NAMES = ("annotation.proto", "192x192.mp4")  # a folder with one of these is a recording


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
        """Whether a file of a recording is wanted, by its name; a manifest is where there is one."""
        return name in (*WANTED_NAMES, MANIFEST) or (self.raw_video and name == RAW_VIDEO)

    def signature(self, archive: RemoteFile, recordings: frozenset[str] | None) -> str:
        """Names what was taken out of an archive, so that the same wish is not fulfilled twice."""
        what = "all" if recordings is None else hashlib.sha256(",".join(sorted(recordings)).encode()).hexdigest()
        return f"{archive.digest} {what} {'with' if self.raw_video else 'without'} {RAW_VIDEO}"


def unpack(
    archive: Path, scratch: Path, selection: Selection, recordings: frozenset[str] | None
) -> tuple[list[Path], set[str]]:
    """Write the wanted files of an archive below `scratch`, in one folder per recording.

    Returns these folders, and the names of all recordings in the archive. Member names are reduced to their last two
    parts, each a plain name, and nothing but files is written, so nothing is ever written elsewhere. Members without
    such a name are passed over with a warning.

    Raises:
        ValueError: when the archive is damaged; what was written of it is not to be used.
    """
    folders: dict[str, Path] = {}
    seen: set[str] = set()
    try:
        with gate.open_regular(archive) as file:
            members = Archive(file, str(archive))
            for member in members:
                path = PurePosixPath(member.path)
                recording = path.parent.name
                if not member.is_file or not selection.wants_file(path.name):
                    continue
                try:
                    gate.plain_name(recording, str(archive))
                except gate.Refused as error:
                    logger.warning("%s; that recording is passed over", error)
                    continue
                if path.name != MANIFEST:
                    seen.add(recording)
                if recordings is not None and recording not in recordings:
                    continue
                folders[recording] = scratch / recording
                folders[recording].mkdir(exist_ok=True)
                with (folders[recording] / path.name).open("wb") as target:
                    target.writelines(members.pieces())
    except BadArchive as error:
        raise ValueError(f"{error}: not a whole .tar.gz archive; delete it and download it again") from error
    return [folder for recording, folder in folders.items() if recording in seen], seen


def _move_recording(source: Path, target: Path) -> None:
    """Move a recording's folder under its final name; into a folder that is there already, file by file."""
    if not target.exists():
        publish(source, target)
        return
    for path in source.iterdir():
        publish(path, target / path.name)


def _take_archive(
    downloads: Downloads, archive: RemoteFile, selection: Selection, recordings: frozenset[str] | None = None
) -> tuple[int, list[str]]:
    """Download one archive, unpack what is wanted of it, and delete it.

    Returns the number of recordings taken, and the first and the last name of all that it holds.
    """
    name = gate.plain_name(PurePosixPath(archive.path).name.removesuffix(ARCHIVE_SUFFIX), archive.path)
    if name == STAGING:
        raise ValueError(f"{archive.path}: its recordings would lie where downloads are kept")
    target = downloads.output / name
    signature, holds = selection.signature(archive, recordings), f"{archive.path} holds"
    if target.is_dir() and downloads.is_done(archive.path, signature):
        logger.info("%s is there already", target)
        return sum(1 for _ in target.iterdir()), downloads.remembered(holds).split("/")
    staged = downloads.fetch_to_staging(archive)
    scratch = downloads.scratch("unpack")
    folders, seen = unpack(staged, scratch, selection, recordings)
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        _move_recording(folder, target / folder.name)
    first_and_last = span(seen)
    downloads.mark_done(holds, "/".join(first_and_last))
    downloads.mark_done(archive.path, signature)
    staged.unlink()
    shutil.rmtree(scratch)
    logger.info("%s: %d recordings", target, len(folders))
    return len(folders), first_and_last


def _plan(downloads: Downloads, files: Sequence[RemoteFile], selection: Selection) -> dict[int, RemoteFile]:
    """The archives in the wanted range, by number."""
    numbered = {number: file for file in files if (number := _number_of_archive(file)) is not None}
    wanted = {number: numbered[number] for number in sorted(numbered) if selection.wants_archive(number)}
    if not wanted:
        existing = f"{min(numbered):05d} to {max(numbered):05d}" if numbered else "none"
        raise ValueError(f"no archive of {downloads.repository.repo_id} is in that range; its archives: {existing}")
    return wanted


def _number_of_archive(file: RemoteFile) -> int | None:
    return archive_number(file.path) if file.path.endswith(ARCHIVE_SUFFIX) else None


def download_archives(downloads: Downloads, selection: Selection) -> int:
    """Download the selected archives one after another; returns the number of recordings (or of archives kept)."""
    files = downloads.repository.files()
    plan = _plan(downloads, files, selection)
    if selection.game is not None:
        return _download_game(downloads, files, plan, selection)
    logger.info("%d archives, %.1f GB to transfer", len(plan), sum(file.size for file in plan.values()) / 1e9)
    if selection.keep_archives:
        for file in plan.values():
            downloads.fetch(file)
        return len(plan)
    return sum(_take_archive(downloads, file, selection)[0] for file in plan.values())


def _download_game(
    downloads: Downloads, files: Sequence[RemoteFile], plan: dict[int, RemoteFile], selection: Selection
) -> int:
    """The recordings of one game, out of the archives that the table leads to; returns how many were taken.

    Raises:
        ValueError: when there is no table, or none of the recordings was where it should be.
    """
    assert selection.game is not None
    table = next((file for file in files if PurePosixPath(file.path).name == METADATA), None)
    if table is None:
        raise ValueError(
            f"{downloads.repository.repo_id} has no {METADATA}, which names the games; use --start and --end"
        )
    game = recordings_of_game(downloads.fetch(table, METADATA), selection.game)
    numbers = sorted({number for file in files if (number := _number_of_archive(file)) is not None})
    search = Search(game, numbers, frozenset(plan))
    guesses = search.guesses()
    if not guesses:
        where = Search(game, numbers, frozenset(numbers)).guesses() or [0]
        raise ValueError(
            f"--start and --end leave out the archives of {selection.game!r}: about {where[0]:05d} to {where[-1]:05d}"
        )
    size_gb = sum(plan[number].size for number in guesses) / 1e9
    logger.info("%d recordings, in about %d archives, %.1f GB to transfer", len(game.wanted), len(guesses), size_gb)
    count, names = 0, search.names
    while (number := search.next()) is not None:
        taken, ends = _take_archive(downloads, plan[number], selection, names)
        count += taken
        target = downloads.output / PurePosixPath(plan[number].path).name.removesuffix(ARCHIVE_SUFFIX)
        search.looked_at(number, [*ends, *(folder.name for folder in target.iterdir())])
    problem = search.explain_missing()
    if problem and not count:
        raise ValueError(problem)
    if problem:
        logger.warning("%s", problem)
    return count


def download_toy(downloads: Downloads, selection: Selection) -> int:
    """Download the small example set, whose recordings are loose files or archives; returns how many there are."""
    files = downloads.repository.files()
    loose = [file for file in files if selection.wants_file(PurePosixPath(file.path).name)]
    paths = [PurePosixPath(file.path) for file in loose]
    archives = [file for file in files if file.path.endswith(ARCHIVE_SUFFIX)]
    if all(path.name == MANIFEST for path in paths) and not archives:
        raise ValueError(f"{downloads.repository.repo_id} holds no recording ({', '.join(WANTED_NAMES)})")
    for file in loose:
        downloads.fetch(file)
    num_loose = len({path.parent for path in paths if path.name != MANIFEST})
    return num_loose + sum(_take_archive(downloads, archive, selection)[0] for archive in archives)
