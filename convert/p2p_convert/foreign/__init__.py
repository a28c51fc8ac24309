"""Recordings that other programs made: which formats there are, and how one of them becomes a raw recording.

An importer is a module of this package with `find(root)`, the recordings of its format in a folder, and
`read(recording, budget)`, one of them as a clip of video and an annotation for each of its frames. The video is
resampled to 20 frames a second, stretched and encoded anew: what is lossless for our own recordings is not for these.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from p2p import gate
from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p.recording import ANNOTATION_FILE, VIDEO_FILE
from p2p_convert.budget import Budget
from p2p_convert.errors import Rejected
from p2p_convert.foreign.video import Clip, frames, times
from p2p_convert.segments import RawRecording
from p2p_convert.transcode import Encoding, encode_anew

IMPORTERS = ("vpt", "owa", "lerobot", "table")
RAW = "raw"  # our own recordings


@dataclass(frozen=True)
class ForeignRecording:
    """Where one recording lies: its files as (name in reports, path), and which part of them it is.

    `span` is that part of the video, in seconds.

    `game` is what the format or the command says; an importer may know better.
    """

    id: str
    importer: str
    files: tuple[tuple[str, str], ...]
    game: str = ""
    part: int = 0
    span: tuple[float, float] = (0.0, math.inf)

    @property
    def where(self) -> str:
        return self.files[0][1]

    @property
    def paths(self) -> dict[str, Path]:
        return {name: Path(path) for name, path in self.files}


@dataclass(frozen=True)
class Imported:
    """A recording as its importer reads it: annotation i + 1 holds what was done after frame i of the clip."""

    clip: Clip
    annotation: VideoAnnotation
    counts: Counter[str] = field(default_factory=Counter)


def find(root: Path, wanted: str, game: str) -> list[ForeignRecording] | None:
    """The foreign recordings below `root`; None where it holds our own (or nothing that is known).

    `wanted` is "" (by what the folder holds), "raw", or an importer's name, for
    lerobot with ":VIDEO" behind it where a dataset has several.

    Raises:
        ValueError: when the folder holds nothing of the wanted format, or several formats and none is wanted.
    """
    name, _, camera = wanted.partition(":")
    if name == RAW or not root.is_dir():
        return None
    if name and name not in IMPORTERS:
        raise ValueError(f"--from {gate.shown(wanted)}: write {', '.join((RAW, *IMPORTERS))} or lerobot:VIDEO")
    name = name or _detect(root)
    if not name:
        return None
    found = _module(name).find(root, *([camera] if camera else []))
    if not found:
        raise ValueError(f"{root}: no recording of the format {name}; docs/importing.md says what is looked for")
    return [replace(each, game=game or each.game or root.resolve().name) for each in found]


def _detect(root: Path) -> str:
    """The format of a folder by the names of its files, "" for our own and for what is not known."""
    if (root / "meta" / "info.json").is_file():
        return "lerobot"
    kinds = {".jsonl": "vpt", ".mcap": "owa", ".csv": "table", ".parquet": "table"}
    names = {entry.name for entry in os.scandir(root) if not entry.name.startswith(".")}
    if ANNOTATION_FILE in names:
        return ""
    stems = {Path(name).stem for name in names if name.endswith((".mp4", ".mkv"))}
    found = {kinds[Path(n).suffix] for n in names if Path(n).suffix in kinds and Path(n).stem in stems}
    if len(found) > 1:
        raise ValueError(f"{root}: holds recordings of the formats {' and '.join(sorted(found))}; name one with --from")
    return found.pop() if found else ""


def pairs(
    root: Path, importer: str, suffixes: Sequence[str], videos: Sequence[str], game: str
) -> list[ForeignRecording]:
    """For importers: a recording for each file of `root` that has a video of the same name beside it, by name."""
    found = []
    for path in sorted(root.iterdir()):
        video = next((v for suffix in videos if (v := path.with_suffix(suffix)).is_file()), None)
        if path.suffix in suffixes and video and path.is_file() and not path.name.startswith("."):
            files = ((path.name, str(path)), (video.name, str(video)))
            found.append(ForeignRecording(path.stem, importer, files, game))
    return found


def require(module: str) -> None:
    """Raises: ValueError, when a package that a format needs is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"the module {module!r} is not installed; it comes with: pip install 'p2p-convert[import]'")


def read(recording: ForeignRecording, encoding: Encoding | None) -> RawRecording:
    """The recording in the raw form: its annotation, and its video at 20 frames a second and 192x192.

    Raises:
        Rejected: when it cannot be used; the message names the file and the place in it.
    """
    encoding = encoding or Encoding()
    budget = Budget(recording.where)
    try:
        imported: Imported = _module(recording.importer).read(recording, budget)
    except gate.Refused as error:
        raise Rejected("unusable", str(error)) from error
    imported.annotation.metadata.id = recording.id
    if not imported.annotation.metadata.env.env:
        imported.annotation.metadata.env.env = recording.game
    shown = times(imported.clip, budget)
    video, annotation = encode_anew(shown, frames(imported.clip, budget), imported.annotation, encoding, budget)
    imported.counts[f"recordings imported from {recording.importer}: resampled and encoded anew"] += 1
    sizes = {name: {"bytes": path.stat().st_size} for name, path in recording.paths.items()}
    origin: dict[str, dict[str, Any]] = {**sizes, "imported": {"from": recording.importer, "part": recording.part}}
    origin["encoded"] = {"gop": encoding.gop, "crf": encoding.crf}
    content = {ANNOTATION_FILE: annotation.SerializeToString(deterministic=True), VIDEO_FILE: video}
    return RawRecording(recording.id, recording.where, content, origin, imported.counts)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"p2p_convert.foreign.{name}")
