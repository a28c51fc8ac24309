"""verify, inspect and stats on an OUT that a stranger made: files are named in errors, nothing hangs or climbs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2p_convert.cli import main
from tests.data.making import annotation, video_bytes, write_recording

NAME = "shard.00000.000.mds"
COMMANDS = (["verify"], ["verify", "--decode"], ["inspect"], ["inspect", "--sample", "0"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_recording(tmp_path / "raw" / "one", video_bytes(21), annotation(21))
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]) == 0
    return tmp_path / "out"


def run(command: list[str], out: Path) -> int:
    return main([command[0], str(out), *command[1:]])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_shard_outside_the_folder_is_not_read(
    out: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(out / "train" / NAME, tmp_path / NAME)  # whole, with the right hash
    index = json.loads((out / "train" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = f"../../{NAME}"
    (out / "train" / "index.json").write_text(json.dumps(index))
    assert run(command, out) == 2
    assert f"{out}/train/index.json: a damaged index" in capsys.readouterr().err


@pytest.mark.parametrize("command", [COMMANDS[0], COMMANDS[3]])
def test_a_pipe_in_place_of_a_shard_is_named(out: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (out / "train" / NAME).unlink()
    os.mkfifo(out / "train" / NAME)
    assert run(command, out) == 2
    assert f"{NAME}: not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"games": [], "counts": {}}',
        '{"games": {"doom": {}}, "counts": {}}',
        '{"games": {}, "counts": 1}',
    ],
)
def test_statistics_that_are_none_are_named(out: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(out)]) == 0
    (out / "stats.json").write_text(content)
    assert main(["stats", str(out)]) == 2
    assert f"{out}/stats.json" in capsys.readouterr().err


def test_histograms_of_another_length_are_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = json.loads((out / "stats.json").read_text())
    stats["games"]["doom"]["keys"].append(1)
    (out / "stats.json").write_text(json.dumps(stats))
    assert main(["stats", str(out)]) == 2
    assert "keys is a list of 21; expected a list of at most 20" in capsys.readouterr().err


def test_verify_finds_packets_that_do_not_decode(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.data.test_hostile_segments import rewrite_shard
    from tests.data.test_replaced_chunks import damaged

    rewrite_shard(out / "train", lambda samples: [damaged(samples[0], slice(3, 6))])
    assert main(["verify", str(out)]) == 0
    assert main(["verify", str(out), "--decode"]) == 2
    assert "recording one, segment 0: frame" in capsys.readouterr().err


def test_a_recording_that_no_reader_would_take_is_rejected(tmp_path: Path) -> None:
    from tests.data.making import add_text

    for name, value in (("good", 1.0), ("wide", 1.0)):
        made = annotation(21)
        add_text(made, 1, 1.0, value)
        made.frame_annotations[1].frame_text_annotation[0].instruction = "x" * (1 if name == "good" else 1 << 17)
        write_recording(tmp_path / "raw" / name, video_bytes(21), made)
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]) == 0
    (verdict,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert verdict["recording"] == "wide"
    assert verdict["reason"] == "outside the limits of the format"
    assert main(["verify", str(tmp_path / "out")]) == 0
