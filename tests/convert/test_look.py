"""verify, inspect and stats of a conversion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from p2p.format import COLUMNS
from p2p_convert.cli import main
from p2p_convert.plan import Options
from p2p_convert.run import convert
from tests.data.making import add_text, annotation, video_bytes, write_recording


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for number, game in enumerate(["doom", "doom", "quake"]):
        made = annotation(40, game=game, seed=number)
        add_text(made, 3, 1.0, 1.0)
        write_recording(root / f"rec_{number}", video_bytes(40, seed=number), made)
    return root


@pytest.fixture(params=["", "zstd:1"])
def out(raw: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    convert([raw], tmp_path / "out", Options(val_fraction=0.3, compression=request.param))
    return tmp_path / "out"


def test_verify_proves_whole_data(out: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(out)]) == 0
    assert "whole" in capsys.readouterr().out
    assert main(["verify", str(out), "--decode"]) == 0
    assert main(["verify", str(out), "--against", str(raw)]) == 0
    assert "equal to the source" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["missing", "short", "flipped"])
def test_verify_names_a_bad_shard(out: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(iter((out / "train").glob("shard*")))
    if harm == "missing":
        shard.unlink()
    elif harm == "short":
        os.truncate(shard, 100)
    else:
        content = bytearray(shard.read_bytes())
        content[-9] ^= 1
        shard.write_bytes(content)
    assert main(["verify", str(out)]) == 2
    assert str(shard) in capsys.readouterr().err


def test_verify_sees_another_source(out: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(raw, other)
    (other / "rec_1" / "192x192.mp4").write_bytes(video_bytes(40, seed=99))
    assert main(["verify", str(out), "--against", str(other)]) == 2
    assert "decodes to other frames" in capsys.readouterr().err


def test_inspect_shows_recordings_and_every_column(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(f"rec_{number}: 40 frames in 1 segments" in shown for number in range(3))
    assert main(["inspect", str(out), "--sample", "1"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {column} " in shown for column in COLUMNS)
    assert main(["inspect", str(out), "--sample", "3"]) == 2


def test_stats_name_every_key_so_that_one_nobody_recorded_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = annotation(12)
    for frame in made.frame_annotations:
        frame.user_action.keyboard.keys[:] = ["w"]
    write_recording(tmp_path / "raw" / "rec", video_bytes(12), made)
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]) == 0
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "          11  w" in lines
    (never,) = [line for line in lines if line.startswith("never held: ")]
    assert "LeftShift" in never.split(": ")[1].split(", ")
    assert "w" not in never.split(": ")[1].split(", ")


def test_stats_per_game_as_a_table_and_pictures(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["doom", "2", "80"]
    assert lines[3].split()[:4] == ["all", "games", "3", "120"]
    assert "100.0%" in lines[1]
    for name in ("actions.png", "games.png"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["verify", "inspect", "stats"])
def test_what_is_no_conversion_is_explained(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "expected the OUT of a p2p-convert" in capsys.readouterr().err


@pytest.mark.parametrize("sample", [99, -1])
def test_a_sample_that_is_not_there_is_answered_by_how_many_there_are(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sample: int
) -> None:
    convert([raw], tmp_path / "out", Options(val_fraction=0.3))
    assert main(["inspect", str(tmp_path / "out"), "--sample", str(sample)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--sample is {sample}; " in line
    assert line.endswith("has 3 samples, numbered from 0" if sample > 0 else "numbered from 0")


def test_a_reader_that_has_seen_enough_ends_inspect_in_silence(raw: Path, tmp_path: Path) -> None:
    convert([raw], tmp_path / "out", Options(val_fraction=0.3))
    command = [sys.executable, "-m", "p2p_convert.cli", "inspect", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == ""
        assert it.wait(60) == 0
