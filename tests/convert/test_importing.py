"""Others' recordings: VPT, plain tables, OWAMcap and LeRobot into shards, and what is said of bad ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from p2p.actions import BUTTON_NAMES, KEY_NAMES
from p2p.data.video import SegmentDecoder
from p2p.format import UNKNOWN, USER, Segment
from p2p_convert.cli import main
from p2p_convert.foreign import IMPORTERS
from p2p_convert.foreign.keys import button_name, key_name
from tests.convert.test_convert import stored_segments
from tests.data.making import pictures, tree_digest, video_bytes


def convert(raw: Path, out: Path, *options: str) -> list[Segment]:
    assert main([str(raw), str(out), "--split", "val=0", *options]) == 0
    return stored_segments(out / "train")


def rejection(raw: Path, out: Path, *options: str) -> str:
    """What is said of the only recording, which is rejected."""
    assert main([str(raw), str(out), "--split", "val=0", *options]) == 2
    (verdict,) = map(json.loads, (out / "rejected.jsonl").read_text().splitlines())
    return str(verdict["message"])


def rows(segments: list[Segment]) -> list[tuple[set[str], set[str], tuple[int, int]]]:
    """(keys, buttons, motion) of each step."""
    found = []
    for segment in segments:
        for keys, buttons, motion in zip(segment.keys, segment.buttons, segment.mouse_px, strict=True):
            held = {KEY_NAMES[i] for i in keys if i}, {BUTTON_NAMES[i] for i in buttons if i}
            found.append((*held, (int(motion[0]), int(motion[1]))))
    return found


def counts(out: Path) -> dict[str, int]:
    return dict(json.loads((out / "stats.json").read_text())["counts"])


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("key.keyboard.w", "w"),
        ("key.keyboard.left.shift", "LeftShift"),
        ("key.keyboard.space", "Space"),
        ("key.keyboard.4", "4"),
        ("KeyW", "w"),
        ("Digit3", "3"),
        ("ArrowLeft", "LeftArrow"),
        ("Key.up", "UpArrow"),
        ("Key.shift_r", "RightShift"),
        (" ", "Space"),
        ("VK_SPACE", "Space"),
        ("W", "w"),
        ("key.LeftShift", "LeftShift"),
        ("key.keyboard.keypad.1", "key.keyboard.keypad.1"),
        ("hyperdrive", "hyperdrive"),
    ],
)
def test_spellings_of_keys_come_into_the_vocabulary(spelling: str, name: str) -> None:
    assert key_name(spelling) == name


def test_every_name_of_ours_is_its_own_spelling() -> None:
    assert [key_name(name) for name in KEY_NAMES[1:]] == list(KEY_NAMES[1:])
    assert [button_name(name) for name in ("left", "mouse_right", "Button.middle", "0", "x1")] == [
        "0",
        "1",
        "2",
        "0",
        "x1",
    ]


# ------------------------------------------------------------------ VPT


def vpt_line(**changes: Any) -> dict[str, Any]:
    """A line as the contractors' recorder wrote it."""
    mouse = {"x": 640.0, "y": 360.0, "dx": 0.0, "dy": 0.0, "scaledX": 0.0, "scaledY": 0.0, "dwheel": 0.0}
    line: dict[str, Any] = {
        "mouse": {**mouse, "buttons": [], "newButtons": []},
        "keyboard": {"keys": [], "newKeys": [], "chars": ""},
        "isGuiOpen": False,
        "isGuiInventory": False,
        "hotbar": 0,
        "yaw": -90.0,
        "pitch": 0.0,
        "xpos": 1.5,
        "tick": 0,
        "milli": 1649797221000,
        "inventory": [],
        "serverTick": 6,
        "stats": {"minecraft.custom:minecraft.jump": 1},
    }
    for name, value in changes.items():
        if name in ("keys", "newKeys"):
            line["keyboard"][name] = value
        elif name in ("buttons", "newButtons", "dx", "dy"):
            line["mouse"][name] = value
        else:
            line[name] = value
    return line


def write_vpt(
    folder: Path, lines: list[dict[str, Any]] | str, name: str = "cheeky-cornflower-0123", **video: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.mp4").write_bytes(video_bytes(video.pop("num_frames", len(lines)), **{"size": 96, **video}))
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text)
    return folder


def test_a_line_is_what_follows_its_frame(tmp_path: Path) -> None:
    lines = [vpt_line(tick=tick) for tick in range(40)]
    lines[3] = vpt_line(keys=["key.keyboard.w", "key.keyboard.left.control"], dx=7.6, dy=-3.0)
    lines[4] = vpt_line(buttons=[0, 1], newButtons=[0, 1])
    segments = convert(write_vpt(tmp_path / "vpt", lines), tmp_path / "out")
    made = rows(segments)
    assert made[3] == ({"w"}, set(), (8, -3))
    assert made[4] == (set(), {"0", "1"}, (0, 0))
    assert [made[k] for k in (0, 2, 5)] == [(set(), set(), (0, 0))] * 3
    assert len(made) == 40
    assert segments[0].recording == "cheeky-cornflower-0123"
    assert (segments[0].video.height, segments[0].video.width) == (192, 192)
    assert [segments[0].taken[k] for k in (0, 38, 39)] == [USER, USER, UNKNOWN]
    assert counts(tmp_path / "out")["vpt: without a place in the action space: key LeftControl"] == 1


def test_the_frames_are_those_of_the_video(tmp_path: Path) -> None:
    segments = convert(write_vpt(tmp_path / "vpt", [vpt_line()] * 30, qp="0"), tmp_path / "out")
    (segment,) = segments
    shown = [frame.to_ndarray(format="rgb24") for frame in SegmentDecoder().frames(segment, 0, 30)]
    for number, picture in enumerate(pictures(30, size=96)):
        off = [float(np.abs(frame[::2, ::2].astype(int) - picture).mean()) for frame in shown]
        assert int(np.argmin(off)) == number


def test_an_attack_button_that_nobody_pressed_is_left_out_until_somebody_does(tmp_path: Path) -> None:
    stuck = [vpt_line(buttons=[0]) for _ in range(20)]
    stuck[0] = vpt_line(buttons=[0], newButtons=[0])
    stuck[12] = vpt_line(buttons=[0], newButtons=[0])
    made = rows(convert(write_vpt(tmp_path / "vpt", stuck), tmp_path / "out"))
    assert [buttons for _, buttons, _ in made[:19]] == [set()] * 12 + [{"0"}] * 7
    assert counts(tmp_path / "out")["vpt: frames with an attack button that nobody pressed, left out"] == 12


def test_a_turned_wheel_is_the_key_of_the_slot(tmp_path: Path) -> None:
    lines = [vpt_line(hotbar=2)] * 5 + [vpt_line(hotbar=0)] * 5 + [vpt_line(hotbar=7)] * 5
    made = rows(convert(write_vpt(tmp_path / "vpt", lines), tmp_path / "out"))
    assert [keys for keys, _, _ in made[:14]] == [set()] * 5 + [{"1"}] + [set()] * 8
    assert counts(tmp_path / "out")["vpt: without a place in the action space: key 8"] == 1


def test_what_is_done_in_a_menu_is_not_known(tmp_path: Path) -> None:
    lines = [vpt_line(keys=["key.keyboard.w"])] * 4 + [vpt_line(isGuiOpen=True, dx=50.0)] * 4 + [vpt_line()] * 4
    (segment,) = convert(write_vpt(tmp_path / "vpt", lines), tmp_path / "out")
    assert segment.taken.tolist() == [USER] * 4 + [UNKNOWN] * 4 + [USER] * 3 + [UNKNOWN]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"mouse": {"buttons": [], "newButtons": []', "line 3: not a JSON text"),
        (json.dumps(vpt_line(dx=float("nan"))), "line 3: holds NaN"),
        (json.dumps(vpt_line(dx=1e30)), "line 3: mouse.dx is 1e+30; expected a number in"),
        (json.dumps(vpt_line(keys=["w"] * 300)), "line 3: keyboard.keys is a list of 300"),
        (json.dumps(vpt_line(keys=[7])), "line 3: keyboard.keys is 7; expected text"),
        (json.dumps(vpt_line(buttons=["left"])), "line 3: mouse.buttons is 'left'"),
        (json.dumps(vpt_line(hotbar=9)), "line 3: hotbar is 9"),
        (json.dumps(vpt_line(mouse=[])), "line 3: mouse is []; expected an object"),
        ("[1, 2]", "line 3 is [1, 2]; expected an object"),
        ("\x1b[2J", "line 3: not a JSON text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"{each}\n" for each in [json.dumps(vpt_line())] * 2 + [line] + [json.dumps(vpt_line())])
    raw = write_vpt(tmp_path / "vpt", text, num_frames=4)
    message = rejection(raw, tmp_path / "out")
    assert f"cheeky-cornflower-0123.jsonl, {words}" in message
    assert "\x1b" not in capsys.readouterr().err


def test_a_conversion_of_others_recordings_goes_on_and_is_repeatable(tmp_path: Path) -> None:
    for number in range(3):
        write_vpt(tmp_path / "vpt", [vpt_line()] * 20, f"play-{number}", seed=number)
    convert(tmp_path / "vpt", tmp_path / "one")
    before = tree_digest(tmp_path / "one")
    convert(tmp_path / "vpt", tmp_path / "one")
    assert tree_digest(tmp_path / "one") == before
    convert(tmp_path / "vpt", tmp_path / "two", "--workers", "2")
    assert tree_digest(tmp_path / "two", ["stats.json"]) == tree_digest(tmp_path / "one", ["stats.json"])
    write_vpt(tmp_path / "vpt", [vpt_line()] * 21, "play-1")
    assert main([str(tmp_path / "vpt"), str(tmp_path / "one"), "--split", "val=0"]) == 2


def test_the_game_is_minecraft_unless_one_is_named(tmp_path: Path) -> None:
    raw = write_vpt(tmp_path / "vpt", [vpt_line()] * 20)
    convert(raw, tmp_path / "one")
    convert(raw, tmp_path / "two", "--game", "Other Game")
    games = [list(json.loads((tmp_path / out / "stats.json").read_text())["games"]) for out in ("one", "two")]
    assert games == [["minecraft"], ["other-game"]]


# ------------------------------------------------------------------ tables

TABLE = {
    "frame": list(range(30)),
    "keys": ["w LeftShift", *[""] * 29],
    "buttons": ["", "left", *[""] * 28],
    "dx": [0, 0, 5, *[0] * 27],
    "dy": [0, 0, -2, *[0] * 27],
}
EXPECTED = [({"w", "LeftShift"}, set(), (0, 0)), (set(), {"0"}, (0, 0)), (set(), set(), (5, -2))]


def write_csv(folder: Path, table: dict[str, list[Any]] | str, rate: int = 20, num_frames: int = 30) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "play.mp4").write_bytes(video_bytes(num_frames, rate=rate))
    with open(folder / "play.csv", "w", newline="") as file:
        if isinstance(table, str):
            file.write(table)
        else:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))
    return folder


def test_a_csv_and_a_parquet_table_give_the_same(tmp_path: Path) -> None:
    raw = write_csv(tmp_path / "csv", TABLE)
    made = rows(convert(raw, tmp_path / "one"))
    assert made[:3] == EXPECTED
    (raw / "play.csv").unlink()
    pyarrow.parquet.write_table(pyarrow.table(TABLE), raw / "play.parquet")
    assert rows(convert(raw, tmp_path / "two")) == made


def test_a_video_of_sixty_frames_a_second_becomes_one_of_twenty_and_motion_adds_up(tmp_path: Path) -> None:
    table = {"keys": ["", "d", *[""] * 58], "buttons": [""] * 60, "dx": [1] * 60, "dy": [0.4] * 60}
    made = rows(convert(write_csv(tmp_path / "csv", table, rate=60, num_frames=60), tmp_path / "out"))
    assert len(made) == 20
    assert made[0] == ({"d"}, set(), (3, 0))
    assert [motion for _, _, motion in made[1:19]] == [(3, 0)] * 18


def test_times_of_the_table_count_where_they_stand(tmp_path: Path) -> None:
    table = {**TABLE, "time_s": [k / 10 for k in range(30)]}
    made = rows(convert(write_csv(tmp_path / "csv", table, rate=10), tmp_path / "out"))
    assert len(made) == 59


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys,buttons,dx\nw,,0\n", "play.csv: has no column dy"),
        ("keys,buttons,dx,dy,dx\n", "has the column 'dx' twice"),
        ("keys,buttons,dx,dy\nw,,0,0\nw,,fast,0\n", "play.csv, line 3: dx is 'fast'; expected a number"),
        ("keys,buttons,dx,dy\nw,,0,0\nw,,inf,0\n", "line 3: dx is inf; expected a number in"),
        ("keys,buttons,dx,dy\nw,,0,0\nw,,0\n", "line 3: 3 cells; the first line names 4 columns"),
        ("frame,keys,buttons,dx,dy\n0,w,,0,0\n2,w,,0,0\n", "line 3: frame is 2; expected 1"),
        ("time_s,keys,buttons,dx,dy\n1,w,,0,0\n1,w,,0,0\n", "line 3: time_s is 1; expected seconds"),
        ("time_s,keys,buttons,dx,dy\n1e300,w,,0,0\n", "line 2: time_s is 1e+300"),
        ('keys,buttons,dx,dy\n"w,,0,0\n', "play.csv, line 2: "),
    ],
)
def test_a_bad_table_names_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in rejection(write_csv(tmp_path / "csv", text), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 200 + b"PAR1"])
def test_what_is_no_parquet_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    raw = write_csv(tmp_path / "csv", TABLE)
    (raw / "play.csv").unlink()
    (raw / "play.parquet").write_bytes(content)
    assert "play.parquet" in rejection(raw, tmp_path / "out")


# ------------------------------------------------------------------ which format


def test_a_folder_with_two_formats_asks_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_csv(write_vpt(tmp_path / "raw", [vpt_line()] * 20), TABLE)
    assert main([str(raw), str(tmp_path / "out")]) == 2
    assert "of the formats table and vpt; name one with --from" in capsys.readouterr().err
    assert len(rows(convert(raw, tmp_path / "out", "--from", "table"))) == 30


def test_a_format_that_is_not_there_or_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_vpt(tmp_path / "raw", [vpt_line()] * 20)
    assert main([str(raw), str(tmp_path / "out"), "--from", "table"]) == 2
    assert "no recording of the format table" in capsys.readouterr().err
    assert main([str(raw), str(tmp_path / "out"), "--from", "vtp"]) == 2
    assert f"--from 'vtp': write raw, {', '.join(IMPORTERS)}" in capsys.readouterr().err


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    raw = write_vpt(tmp_path / "raw", [vpt_line()] * 20)
    (raw / "cheeky-cornflower-0123.jsonl").unlink()
    os.mkfifo(raw / "cheeky-cornflower-0123.jsonl")
    assert main([str(raw), str(tmp_path / "out"), "--from", "vpt"]) == 2


def test_a_playlist_called_mp4_opens_nothing_else(tmp_path: Path) -> None:
    raw = write_vpt(tmp_path / "raw", [vpt_line()] * 20)
    (raw / "cheeky-cornflower-0123.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    assert "cheeky-cornflower-0123.mp4" in rejection(raw, tmp_path / "out")
