"""Runs on data with damaged packets, or without a label: counted, repeated by a resumed run, and refused in numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.making import annotation, video_bytes, write_recording
from tests.data.test_hostile_segments import rewrite_shard
from tests.data.test_replaced_chunks import damaged
from tests.train.zygote import Zygote

Metrics = dict[int, dict[str, Any]]


@pytest.fixture(scope="session")
def damage(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Path]:
    """damage(stream, num): a copy of a stream of one shard, of which the first `num` packets do not decode."""

    def copy(stream: Path, num: int) -> Path:
        folder = tmp_path_factory.mktemp("damaged") / "stream"
        shutil.copytree(stream, folder)
        rewrite_shard(folder, lambda samples: [damaged(samples[0], slice(0, num)), *samples[1:]])
        return folder

    return copy


def test_replaced_chunks_are_counted_over_processes_and_by_a_resumed_run(
    zygote: Zygote,
    small_run: Any,
    shards: Path,
    damage: Callable[[Path, int], Path],
    read_metrics: Callable[[Path], Metrics],
    tmp_path: Path,
) -> None:
    data = [f"data.train={damage(shards / 'val', 50)}", f"data.val={damage(shards / 'train', 30)}"]
    arguments = ["save_interval=1ba", *data]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = zygote.start(small_run(whole, "max_duration=4ba", *arguments), tmp_path / "log", 2)
    first.wait()
    metrics = read_metrics(whole)
    counts = [metrics[step]["replaced_chunks"] for step in range(1, 5)]
    of = [len(metrics[step].get("replaced_of", [])) for step in range(1, 5)]
    assert counts == [sum(of[: step + 1]) for step in range(4)]
    assert 0 < counts[-1] <= 8
    (name,) = {name for entry in metrics.values() for name in entry.get("replaced_of", [])}
    log = (tmp_path / "log").read_text()
    assert f"{counts[-1]} chunks did not decode and were replaced by others (recordings: {name})" in log
    assert "h264" not in log  # nothing of the decoder's own messages
    in_validation = metrics[4]["val/replaced_chunks"]
    assert 0 < in_validation <= 8
    assert f"val: {in_validation} of " in log
    for duration in ("max_duration=2ba", "max_duration=4ba"):
        zygote.start(small_run(parts, duration, *arguments), tmp_path / "log").wait()
    resumed = read_metrics(parts)
    for key in ("replaced_chunks", "chunks"):
        assert [resumed[step][key] for step in range(1, 5)] == [metrics[step][key] for step in range(1, 5)]


def test_many_replaced_chunks_stop_a_run_with_the_list_of_recordings(
    zygote: Zygote, small_run: Any, shards: Path, damage: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    data = f"data.train={damage(shards / 'val', 110)}"
    run = zygote.start(small_run(tmp_path / "run", "max_duration=200ba", data), tmp_path / "log", 2)
    assert run.end() == [2, 2]
    log = (tmp_path / "log").read_text()
    assert "chunks did not decode and were replaced by others (recordings: " in log
    assert "p2p-convert verify --decode" in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("key", "message"), [("data.train", "nothing to learn from"), ("data.val", "nothing to score")]
)
def test_data_without_one_labelled_frame_is_refused_before_training(
    zygote: Zygote, small_run: Any, tmp_path: Path, key: str, message: str
) -> None:
    from p2p_convert.cli import main

    for number in range(4):
        recording = tmp_path / "raw" / str(number)
        write_recording(recording, video_bytes(40), annotation(40, taken="nothing", seed=number))
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]) == 0
    run = zygote.start(small_run(tmp_path / "run", f"{key}={tmp_path / 'out' / 'train'}"), tmp_path / "log")
    assert run.end() == [2]
    log = (tmp_path / "log").read_text()
    assert f"p2p: error: {key} " in log
    assert message in log
