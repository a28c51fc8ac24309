"""A full disk stops a conversion with the way out; nothing half-written has a name, and it goes on with more room."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from p2p_convert.cli import main
from tests.convert.test_convert import make_archive
from tests.data.disks import small_disk
from tests.data.making import tree_digest, write_recordings


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("raw"), 40, 25)


@pytest.fixture(scope="module")
def calm(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calm")
    assert main([str(raw), str(out), "--split", "val=0"]) == 0
    return out


@pytest.mark.parametrize("workers", [1, 2])
def test_it_goes_on_when_there_is_room(
    raw: Path, calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    with small_disk(tmp_path / "disk", 512 << 10) as disk:
        out = disk.path / "out"
        arguments = [str(raw), str(out), "--split", "val=0", "--workers", str(workers)]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        # With two workers it may also be the one's small report that finds no room beside the other's shard.
        file = r"train/shard\.0000\d\.000\.mds" + (r"|\.convert/task-0000\d\.json" if workers == 2 else "")
        told = "No space left on device; make room and run the same command again to go on"
        assert re.search(rf"p2p: error: {re.escape(str(out))}/({file}): cannot be written: {told}", error), error
        finished = tree_digest(out, ("lock",))
        assert not list(out.rglob("*.partial"))
        expected = tree_digest(calm)
        assert finished.items() <= expected.items()
        assert "train/index.json" not in finished
        disk.grow(64 << 20)
        assert main(arguments) == 0
        assert tree_digest(out) == expected


def test_room_for_the_small_files_is_needed_too(
    raw: Path, calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before_the_last = [*calm.rglob("*.mds"), *(calm / ".convert").iterdir()]
    pages = sum(-(-path.stat().st_size // 4096) for path in before_the_last)
    with small_disk(tmp_path / "disk", pages * 4096) as disk:
        out = disk.path / "out"
        assert main([str(raw), str(out), "--split", "val=0"]) == 2
        assert ".json: cannot be written: No space left on device" in capsys.readouterr().err
        disk.grow(64 << 20)
        assert main([str(raw), str(out), "--split", "val=0"]) == 0
        assert tree_digest(out) == tree_digest(calm)


def test_a_full_folder_for_temporary_files_is_named(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / "batch.tar.gz", sorted(raw.iterdir()))
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
        assert main([str(archive), str(tmp_path / "out"), "--split", "val=0"]) == 2
        error = capsys.readouterr().err
        assert f"p2p: error: {disk.path}: no room for temporary files" in error
        assert "TMPDIR" in error
        assert not list((tmp_path / "out").rglob("*.mds"))
