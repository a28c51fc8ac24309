"""The same command once more: what is missing is made again, what has changed is noticed, what only moved is not."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_convert.cli import main
from p2p_convert.plan import Options
from p2p_convert.run import convert
from tests.convert.test_archives import tar_of
from tests.data.making import annotation, tree_digest, video_bytes, write_recording

OPTIONS = Options(val_fraction=0)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    video = video_bytes(12)
    for number in range(20):  # two tasks
        write_recording(tmp_path / "raw" / f"rec_{number:02}", video, annotation(12, seed=number))
    write_recording(tmp_path / "raw" / "without_video", None, annotation(12))
    return tmp_path / "raw"


@pytest.fixture
def out(raw: Path, tmp_path: Path) -> Path:
    convert([raw], tmp_path / "out", OPTIONS)
    return tmp_path / "out"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def damage_report(path: Path) -> None:
    report = json.loads(path.read_bytes())
    report["streams"]["train"]["recordings"][0].pop("game")
    path.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("train/shard.00001.000.mds", Path.unlink),
        ("train/shard.00001.000.mds", cut),
        (".convert/task-00001.json", cut),
        (".convert/task-00001.json", damage_report),
        (".convert/task-00001.json", lambda path: path.write_bytes(b"")),
        (".convert/task-00001.json", lambda path: path.write_bytes(b"[" * 100_000)),
        ("train/index.json", Path.unlink),
    ],
)
def test_what_is_gone_or_cut_off_is_made_again_and_nothing_else(
    raw: Path, out: Path, file: str, harm: Callable[[Path], object]
) -> None:
    before = tree_digest(out)
    untouched = (out / "train" / "shard.00000.000.mds").stat().st_mtime_ns
    harm(out / file)
    convert([raw], out, OPTIONS)
    assert tree_digest(out) == before
    assert (out / "train" / "shard.00000.000.mds").stat().st_mtime_ns == untouched


def test_a_shard_that_vanishes_while_converting_fails_the_run(raw: Path, tmp_path: Path) -> None:
    def lose(*_: object) -> None:
        (tmp_path / "lossy" / "train" / "shard.00000.000.mds").unlink(missing_ok=True)

    with pytest.raises(ValueError, match=r"train/shard\.00000\.000\.mds: gone or cut off.*run the same command again"):
        convert([raw], tmp_path / "lossy", OPTIONS, progress=lose)
    assert not (tmp_path / "lossy" / "train" / "index.json").exists()
    convert([raw], tmp_path / "lossy", OPTIONS)


@pytest.mark.parametrize("name", ["annotation.proto", "192x192.mp4"])
def test_a_source_that_was_changed_without_another_size_is_named(
    raw: Path, out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree_digest(out)
    path = raw / "rec_07" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rec_07/{name} has changed since it was converted"):
        convert([raw], out, OPTIONS)
    assert tree_digest(out) == before


def test_recordings_that_were_moved_copied_or_touched_are_the_same(raw: Path, out: Path, tmp_path: Path) -> None:
    shards = {path: path.stat().st_mtime_ns for path in out.rglob("*.mds")}
    shutil.copytree(raw, tmp_path / "elsewhere" / "copy", copy_function=shutil.copy)  # with new times
    shutil.rmtree(raw)
    convert([tmp_path / "elsewhere" / "copy"], out, OPTIONS)
    os.utime(tmp_path / "elsewhere" / "copy" / "rec_03" / "192x192.mp4")
    convert([tmp_path / "elsewhere" / "copy"], out, OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mds")} == shards


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_that_was_changed_without_another_size_is_named_and_a_copy_is_the_same(
    tmp_path: Path, name: str
) -> None:
    def content(seed: int) -> bytes:
        tar = tar_of(("a", "b"), seed)
        return gzip.compress(tar, 0, mtime=0) if name.endswith("gz") else tar

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(content(1))
    out = tmp_path / "out"
    convert([tmp_path / "raw"], out, OPTIONS)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / name).write_bytes(content(1))
    convert([tmp_path / "moved"], out, OPTIONS)
    (tmp_path / "moved" / name).write_bytes(content(2))
    with pytest.raises(ValueError, match=f"{name} has changed since it was converted"):
        convert([tmp_path / "moved"], out, OPTIONS)


def test_a_damaged_archive_is_tried_again_and_counts_once_it_is_mended(tmp_path: Path) -> None:
    good = gzip.compress(tar_of(("a", "b")), mtime=0)
    bad = bytearray(good)
    bad[-5] ^= 1
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "other.tar.gz").write_bytes(gzip.compress(tar_of(("c",))))
    (tmp_path / "raw" / "a.tar.gz").write_bytes(bad)
    for content, expected in ((bad, {"train": 1}), (bad, {"train": 1}), (good, {"train": 3})):
        (tmp_path / "raw" / "a.tar.gz").write_bytes(content)
        summary = convert([tmp_path / "raw"], tmp_path / "out", Options(val_fraction=0), max_rejected=0.9)
        assert summary.recordings == expected


def test_a_report_without_stamps_of_an_older_version_is_believed(raw: Path, out: Path) -> None:
    for path in out.glob(".convert/task-*.json"):
        report = json.loads(path.read_bytes())
        del report["sources"]
        path.write_text(json.dumps(report))
    before = tree_digest(out)
    convert([raw], out, OPTIONS)
    assert tree_digest(out) == before


def test_a_plan_that_is_damaged_is_named(raw: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(out / ".convert" / "plan.json")
    assert main([str(raw), str(out), "--split", "val=0"]) == 2
    assert f"{out}/.convert/plan.json: not a JSON text" in capsys.readouterr().err


def test_files_that_a_killed_conversion_had_begun_are_removed_and_others_are_not(raw: Path, out: Path) -> None:
    (out / "train" / ".shard.00000.000.mds.0123456789abcdef.partial").write_bytes(b"x")
    (out / "train" / ".mine.partial").write_bytes(b"x")
    convert([raw], out, OPTIONS)
    assert [path.name for path in (out / "train").glob(".*")] == [".mine.partial"]


def test_what_a_killed_worker_of_this_conversion_had_begun_is_removed_at_its_end(raw: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "out" / "train" / ".shard.00000.000.mds.0123456789abcdef.partial"
    convert([raw], tmp_path / "out", OPTIONS, progress=lambda _task, _report: leftover.write_bytes(b"x") and None)
    assert (tmp_path / "out" / "train" / "index.json").exists()
    assert not leftover.exists()


def test_in_a_folder_that_held_no_conversion_nothing_is_removed(raw: Path, tmp_path: Path) -> None:
    anothers = tmp_path / "new" / ".policy.0123456789abcdef.partial"
    anothers.parent.mkdir()
    anothers.write_bytes(b"being written by another program")
    convert([raw], anothers.parent, OPTIONS)
    assert anothers.exists()
