"""Shards as a LeRobot dataset (version 3), for that ecosystem's viewers.

Packets are carried over: each recording becomes an episode with an MP4 file of its own, whose frames are those of the
shards bit by bit. The action of a row is the one that followed its frame, as a vector of what was held and moved; the
feature `taken` says whether a person (1), the system (2) or nobody known (0) did it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import BUTTON_NAMES, FRAME_RATE_HZ, KEY_NAMES
from p2p.files import new_folder
from p2p.format import Segment
from p2p_convert.elementary import CannotBeCarried, write_mp4
from p2p_convert.foreign.lerobot import DATA_PATH, INFO, TAKEN, VIDEO_PATH
from p2p_convert.reading import read_index, read_segments, stream_names
from p2p_convert.storage import Store, open_store

if TYPE_CHECKING:
    import pyarrow.parquet

CAMERA = "observation.images.screen"
NAMES = (
    *(f"key.{name}" for name in KEY_NAMES[1:]),
    *(f"button.{name}" for name in BUTTON_NAMES[1:]),
    "mouse.dx",
    "mouse.dy",
)
_NUM_KEYS, _NUM_HELD = len(KEY_NAMES) - 1, len(KEY_NAMES) + len(BUTTON_NAMES) - 2
_CHUNK = 1000  # files of a folder
_ROWS_OF_A_FILE = 500_000
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_TASKS = "meta/tasks.parquet"
_STATS = "meta/stats.json"
_INDEX = "__index_level_0__"
# LeRobot reads its table of tasks as a data frame of pandas, the tasks' names being the index.
_DATA_FRAME = {
    "index_columns": [_INDEX],
    "column_indexes": [],
    "columns": [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, field, kind, numpy_kind in (
            ("task_index", "task_index", "int64", "int64"),
            (None, _INDEX, "unicode", "object"),
        )
    ],
    "pandas_version": "2.2.0",
}


def export(shards: str, out: Path) -> tuple[int, int, Counter[str]]:
    """Write the dataset; returns its episodes and frames, and why recordings were left out.

    Raises:
        ValueError: when OUT exists, or the shards are damaged, or no recording could be exported.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; name a new folder")
    store = open_store(shards)
    with new_folder(out) as folder:
        dataset = _Dataset(folder)
        for stream in stream_names(store):
            games = {entry.id: entry.game for entry in read_index(store, stream)[1]}
            for recording in _recordings(store, stream):
                dataset.add(recording, games.get(recording[0].recording, ""))
        if not dataset.episodes:
            raise ValueError(f"{shards}: no recording in it could be exported ({dict(dataset.skipped)})")
        dataset.finish()
    return len(dataset.episodes), dataset.num_frames, dataset.skipped


def _recordings(store: Store, stream: str) -> Iterator[list[Segment]]:
    """The segments of each recording, which lie one after another."""
    together: list[Segment] = []
    for entry in read_index(store, stream)[0]:
        for segment in read_segments(store, stream, entry):
            if together and segment.recording != together[0].recording:
                yield together
                together = []
            together.append(segment)
    if together:
        yield together


class _Dataset:
    """A dataset that is being written into a folder."""

    def __init__(self, folder: Path) -> None:
        self.episodes: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()
        self.num_frames = 0
        self._folder = folder
        self._tasks: dict[str, int] = {}
        self._data: pyarrow.parquet.ParquetWriter | None = None
        self._file, self._rows_of_file = 0, 0
        self._size = (0, 0)
        self._sums = np.zeros((4, len(NAMES)))  # least, most, sum, sum of squares
        self._sums[0], self._sums[1] = np.inf, -np.inf

    def add(self, segments: Sequence[Segment], game: str) -> None:
        """An episode of the segments of one recording; one whose packets no MP4 file can hold is left out."""
        size = (segments[0].video.height, segments[0].video.width)
        if self.episodes and size != self._size:
            self.skipped[f"frames of another size than {self._size[1]}x{self._size[0]}"] += 1
            return
        index = len(self.episodes)
        place = {"chunk_index": index // _CHUNK, "file_index": index % _CHUNK}
        path = self._folder / VIDEO_PATH.format(video_key=CAMERA, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_mp4(path, segments)
        except CannotBeCarried as reason:
            path.unlink(missing_ok=True)
            self.skipped[str(reason)] += 1
            return
        self._size = size
        task = self._tasks.setdefault(game or "play", len(self._tasks))
        first = self.num_frames
        actions = action_vectors(segments)
        self._write_rows(index, task, actions, np.concatenate([segment.taken for segment in segments]))
        self._count(actions)
        self.num_frames += len(actions)
        video = {f"videos/{CAMERA}/{name}": number for name, number in place.items()}
        times = {"from_timestamp": 0.0, "to_timestamp": len(actions) / FRAME_RATE_HZ}
        self.episodes.append(
            {
                "episode_index": index,
                "tasks": [game or "play"],
                "length": len(actions),
                "data/chunk_index": self._file // _CHUNK,
                "data/file_index": self._file % _CHUNK,
                "dataset_from_index": first,
                "dataset_to_index": self.num_frames,
                **video,
                **{f"videos/{CAMERA}/{name}": seconds for name, seconds in times.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )

    def _write_rows(self, episode: int, task: int, actions: NDArray[np.float32], taken: NDArray[np.uint8]) -> None:
        import pyarrow

        n = len(actions)
        frames = np.arange(n)
        table = pyarrow.table(
            {
                "action": pyarrow.FixedSizeListArray.from_arrays(actions.ravel(), actions.shape[1]),
                TAKEN: taken.astype(np.int64),
                "timestamp": (frames / FRAME_RATE_HZ).astype(np.float32),
                "frame_index": frames,
                "episode_index": np.full(n, episode),
                "index": self.num_frames + frames,
                "task_index": np.full(n, task),
            }
        )
        if self._data is not None and self._rows_of_file + n > _ROWS_OF_A_FILE:
            self._data.close()
            self._data, self._rows_of_file = None, 0
            self._file += 1
        if self._data is None:
            place = {"chunk_index": self._file // _CHUNK, "file_index": self._file % _CHUNK}
            self._data = _writer(self._folder / DATA_PATH.format(**place), table.schema)
        self._data.write_table(table)
        self._rows_of_file += n

    def _count(self, actions: NDArray[np.float32]) -> None:
        self._sums[0] = np.minimum(self._sums[0], actions.min(0))
        self._sums[1] = np.maximum(self._sums[1], actions.max(0))
        self._sums[2] += actions.sum(0, dtype=np.float64)
        self._sums[3] += np.square(actions, dtype=np.float64).sum(0)

    def finish(self) -> None:
        """Write what describes the episodes."""
        import pyarrow

        if self._data is not None:
            self._data.close()
        episodes = pyarrow.Table.from_pylist(self.episodes)
        with _writer(self._folder / _EPISODES, episodes.schema) as writer:
            writer.write_table(episodes)
        columns = {"task_index": list(self._tasks.values()), _INDEX: list(self._tasks)}
        tasks = pyarrow.table(columns).replace_schema_metadata({"pandas": json.dumps(_DATA_FRAME)})
        with _writer(self._folder / _TASKS, tasks.schema) as writer:
            writer.write_table(tasks)
        mean = self._sums[2] / self.num_frames
        deviation = np.sqrt(np.maximum(self._sums[3] / self.num_frames - mean**2, 0))
        stats = {"min": self._sums[0], "max": self._sums[1], "mean": mean, "std": deviation}
        named = {name: values.tolist() for name, values in stats.items()} | {"count": [self.num_frames]}
        _write_json(self._folder / _STATS, {"action": named})
        _write_json(self._folder / INFO, self._info())

    def _info(self) -> dict[str, Any]:
        height, width = self._size
        video = {"video.height": height, "video.width": width, "video.codec": "h264"}
        video |= {"video.is_depth_map": False, "video.fps": FRAME_RATE_HZ, "video.channels": 3, "has_audio": False}
        numbers = {
            name: _feature("int64", [1]) for name in (TAKEN, "frame_index", "episode_index", "index", "task_index")
        }
        return {
            "codebase_version": "v3.0",
            "robot_type": "keyboard and mouse",
            "total_episodes": len(self.episodes),
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": FRAME_RATE_HZ,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {
                CAMERA: {**_feature("video", [height, width, 3], ["height", "width", "channels"]), "info": video},
                "action": _feature("float32", [len(NAMES)], list(NAMES)),
                "timestamp": _feature("float32", [1]),
                **numbers,
            },
        }


def action_vectors(segments: Sequence[Segment]) -> NDArray[np.float32]:
    """float32 [n, len(NAMES)]: 1 for each key and button that is held, and the motion in pixels."""
    parts = []
    for segment in segments:
        vectors = np.zeros((segment.num_frames, len(NAMES)), np.float32)
        for ids, first in ((segment.keys, 0), (segment.buttons, _NUM_KEYS)):
            rows, slots = np.nonzero(ids)
            vectors[rows, first + ids[rows, slots].astype(np.int64) - 1] = 1
        vectors[:, _NUM_HELD:] = segment.mouse_px
        parts.append(vectors)
    return np.concatenate(parts)


def _feature(kind: str, shape: list[int], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "names": names}


def _writer(path: Path, schema: Any) -> pyarrow.parquet.ParquetWriter:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    return pyarrow.parquet.ParquetWriter(path, schema)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
