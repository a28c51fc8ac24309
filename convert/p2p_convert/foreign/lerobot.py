"""LeRobot datasets, version 3, whose actions are a keyboard's and a mouse's.

Such a dataset is tables (`meta/`, `data/`) and videos of many episodes each. Its actions are vectors; what a component
is, its name says ("key.w", "button.left", "mouse.dx"), for LeRobot has no names of its own for keys. A feature `taken`,
as our own export writes it, says of each row whether somebody played (1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p import gate
from p2p.actions import Action
from p2p.parquet import Bounds, open_parquet
from p2p_convert.budget import MAX_FRAMES, Budget
from p2p_convert.errors import Rejected
from p2p_convert.foreign import ForeignRecording, Imported, require
from p2p_convert.foreign.keys import BUTTONS, KEYS, MOST_MOTION_PX, Vocabulary, annotate, button_name, key_name
from p2p_convert.foreign.video import Clip

INFO = "meta/info.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
TAKEN = "taken"
_EPISODES = "meta/episodes"
_MAX_INFO_BYTES = 16 << 20
_EPISODE_BOUNDS = Bounds(file_bytes=1 << 30, unpacked_bytes=1 << 31, rows=1_000_000)
_DATA_BOUNDS = Bounds(file_bytes=1 << 30, unpacked_bytes=1 << 31, rows=100_000_000)  # a file holds many episodes
_MAX_COMPONENTS = 4096
_MAX_FILES = 1_000_000
_BY = 1  # taken: a person's
_HELD = 0.5
# Not "delta_x", "x" or "mouse.x": those are positions, and motions of robots.
_MOTION = re.compile(r"^(d|mouse(d|delta|move|rel))([xy])$|^mouse([xy])(delta|rel)$")
_BUTTON = re.compile(r"^(mouse|button|btn)[._]?(button[._]?)?|[._]?(button|mb)$", re.IGNORECASE)


def find(root: Path, camera: str = "") -> list[ForeignRecording]:
    """The episodes of a dataset, in order.

    Raises:
        ValueError: when it is of another version, has no such video, or its tables are damaged.
    """
    require("pyarrow")
    key = _camera(_info(root), camera, root)
    found = []
    for path in sorted((root / _EPISODES).glob("chunk-*/file-*.parquet")):
        found += [_episode(root, key, where, row) for where, row in _episode_rows(path, key)]
        if len(found) > _EPISODE_BOUNDS.rows:
            raise ValueError(f"{path}: more than {_EPISODE_BOUNDS.rows} episodes")
    return found


def read(recording: ForeignRecording, budget: Budget) -> Imported:
    """Raises: Rejected or Refused, naming the file and the row."""
    paths = recording.paths
    components = _components(_info(paths["info"].parent.parent), paths["info"])
    vocabulary = Vocabulary("lerobot")
    parts, taken = _rows(paths["data"], recording.part, components, budget)
    actions = _actions(components, parts, taken, vocabulary, paths["data"])
    return Imported(Clip(paths["video"], *recording.span), annotate(actions), vocabulary.counts)


# ------------------------------------------------------------------ what the dataset says of itself


def _info(root: Path) -> dict[str, Any]:
    path = root / INFO
    info = gate.mapping(gate.parse_json(gate.read_regular(path, _MAX_INFO_BYTES), str(path)), str(path))
    version = info.get("codebase_version")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise ValueError(f"{path}: codebase_version is {gate.shown(version)}; expected v3, to which lerobot converts")
    for name, path_pattern in (("data_path", DATA_PATH), ("video_path", VIDEO_PATH)):
        if info.get(name) != path_pattern:
            raise ValueError(f"{path}: {name} is {gate.shown(info.get(name))}; expected {path_pattern}")
    return info


def _features(info: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    features = gate.mapping(info.get("features"), f"{path}: features")
    return {name: gate.mapping(feature, f"{path}: features.{gate.shown(name)}") for name, feature in features.items()}


def _camera(info: dict[str, Any], wanted: str, root: Path) -> str:
    """The feature whose video is taken."""
    keys = [name for name, feature in _features(info, root / INFO).items() if feature.get("dtype") == "video"]
    if wanted in keys or len(keys) == 1:
        return gate.plain_name(wanted or keys[0], f"{root / INFO}: a video")
    names = ", ".join(map(gate.shown, keys[:10])) or "none (pictures that are no video are not read)"
    raise ValueError(f"{root}: name one of its videos with --from lerobot:NAME; it has {names}")


def _episode_rows(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    columns = ["episode_index", "data/chunk_index", "data/file_index", *(f"videos/{key}/{part}" for part in _PLACE)]
    with open_parquet(path, _EPISODE_BOUNDS) as parquet:
        missing = [name for name in columns if name not in parquet.names]
        if missing:
            raise gate.Refused(
                f"{path}: has no column {gate.shown(missing[0])}; expected a LeRobot dataset of version 3"
            )
        for number, row in enumerate(parquet.rows(columns)):
            yield f"{path}, row {number}", row


_PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _episode(root: Path, key: str, where: str, row: dict[str, Any]) -> ForeignRecording:
    def number(name: str) -> int:
        return gate.whole_number(row[name], f"{where}: {name}", 0, _MAX_FILES)

    index = number("episode_index")
    begin, end = (gate.number(row[f"videos/{key}/{name}"], f"{where}: {name}", 0, 1e7) for name in _PLACE[2:])
    data = DATA_PATH.format(chunk_index=number("data/chunk_index"), file_index=number("data/file_index"))
    places = {name: number(f"videos/{key}/{name}") for name in _PLACE[:2]}
    files = {"data": data, "video": VIDEO_PATH.format(video_key=key, **places), "info": INFO}
    for name in files.values():
        if not (root / name).is_file():
            raise ValueError(f"{where}: episode {index} lies in {name}, which is not there")
    paths = tuple((name, str(root / file)) for name, file in files.items())
    return ForeignRecording(f"{root.resolve().name}-{index:06d}", "lerobot", paths, part=index, span=(begin, end))


# ------------------------------------------------------------------ actions


@dataclass(frozen=True)
class _Feature:
    """A column of actions: for each component ("key", name), ("button", name), ("motion", x or y) or ("", name)."""

    name: str
    kinds: tuple[tuple[str, str], ...]


def _components(info: dict[str, Any], path: Path) -> list[_Feature]:
    found = []
    for name, feature in _features(info, path).items():
        if name != "action" and not name.startswith("action."):
            continue
        where = f"{path}: features.{gate.shown(name, quote=False)}.names"
        names = feature.get("names")
        if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
            names = next(iter(names.values()))
        listed = [gate.text(each, where, 200) for each in gate.sequence(names, where, _MAX_COMPONENTS)]
        found.append(_Feature(name, tuple(map(kind_of, listed))))
    if not any(kind for feature in found for kind, _ in feature.kinds):
        raise Rejected("no keyboard or mouse", f"{path}: none of the actions is called as a key, a button or a motion")
    return found


def kind_of(name: str) -> tuple[str, str]:
    """("key", "w"), ("button", "0"), ("motion", "x"), or ("", the name) where there is no place for it."""
    moved = _MOTION.match(re.sub(r"[._\- ]", "", name.lower()))
    if moved:
        return "motion", moved[3] or moved[4]
    bare = _BUTTON.sub("", name)
    button = button_name({"l": "left", "r": "right", "m": "middle"}.get(bare.lower(), bare))
    if bare != name and button in BUTTONS:
        return "button", button
    key = key_name(name)
    return ("key", key) if key in KEYS else ("", name)


def _rows(
    path: Path, episode: int, features: list[_Feature], budget: Budget
) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Of each feature float64 [n, N], and bool [n]: whether a person's action is known."""
    parts: list[list[Any]] = [[] for _ in features]
    taken: list[bool] = []
    with open_parquet(path, _DATA_BOUNDS) as parquet:
        has_taken = TAKEN in parquet.names
        columns = ["frame_index", *(feature.name for feature in features), *([TAKEN] if has_taken else [])]
        missing = [name for name in ["episode_index", *columns] if name not in parquet.names]
        if missing:
            raise gate.Refused(f"{path}: has no column {gate.shown(missing[0])}")
        for row in parquet.rows(columns, ("episode_index", episode)):
            where = f"{path}, episode {episode}, frame {len(taken)}"
            if row["frame_index"] != len(taken):
                raise gate.Refused(f"{where}: frame_index is {gate.shown(row['frame_index'])}; expected {len(taken)}")
            if len(taken) >= MAX_FRAMES:
                raise Rejected("too long", f"{where}: more than {MAX_FRAMES} frames, that is 24 hours")
            for part, feature in zip(parts, features, strict=True):
                part.append(_vector(row[feature.name], len(feature.kinds), f"{where}: {feature.name}"))
            taken.append(not has_taken or row[TAKEN] in (_BY, [_BY]))
            if len(taken) % 1024 == 0:
                budget.check(len(taken))
    if not taken:
        raise gate.Refused(f"{path}: holds no row of episode {episode}")
    arrays = [np.array(part, np.float64) for part in parts]
    for feature, values in zip(features, arrays, strict=True):
        gate.finite(values, f"{path}, episode {episode}: {feature.name}")
    return arrays, np.array(taken)


def _vector(value: Any, length: int, where: str) -> list[float]:
    vector = value if isinstance(value, list) else [value]
    if len(vector) != length or not all(isinstance(each, (int, float)) for each in vector):
        raise gate.Refused(f"{where} is {gate.shown(value)}; expected {length} numbers")
    return vector


def _actions(
    features: list[_Feature],
    parts: list[NDArray[np.float64]],
    taken: NDArray[np.bool_],
    vocabulary: Vocabulary,
    path: Path,
) -> list[Action | None]:
    kinds = [kind for feature in features for kind in feature.kinds]
    values = np.concatenate(parts, axis=1)
    keys = [(column, name) for column, (kind, name) in enumerate(kinds) if kind == "key"]
    buttons = [(column, name) for column, (kind, name) in enumerate(kinds) if kind == "button"]
    for column, (kind, name) in enumerate(kinds):
        if not kind:
            vocabulary.without_place(f"action {name}", int(np.count_nonzero(np.abs(values[:, column]) > _HELD)))
    motions = np.stack(
        [values[:, [c for c, kind in enumerate(kinds) if kind == ("motion", axis)]].sum(1) for axis in "xy"], 1
    )
    if np.abs(motions).max(initial=0) > MOST_MOTION_PX:
        raise gate.Refused(f"{path}: the mouse moves by {np.abs(motions).max():g} pixels; at most {MOST_MOTION_PX}")
    held = values > _HELD
    pixels = np.rint(motions).astype(np.int64).tolist()
    return [
        Action(tuple(n for c, n in keys if row[c]), tuple(n for c, n in buttons if row[c]), x, y) if known else None
        for row, (x, y), known in zip(held.tolist(), pixels, taken.tolist(), strict=True)
    ]
