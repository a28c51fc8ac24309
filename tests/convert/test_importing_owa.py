"""OWAMcap: a recording written by the format's own library, and bad ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.convert.test_importing import convert, counts, rejection, rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mcap") is None and not os.environ.get("CI"), reason="mcap is not installed: make test"
)
SAMPLE = Path(__file__).parent / "owa_sample"  # tests/benchmarks/make_owa_sample.py
SCREEN = ("ScreenCaptured", {"media_ref": {"uri": "play.mkv", "pts_ns": 0}})


def test_a_recording_of_the_formats_own_library_is_read(tmp_path: Path) -> None:
    made = rows(convert(SAMPLE, tmp_path / "out"))
    assert len(made) == 30  # 90 frames, 60 a second
    assert [number for number, (keys, _, _) in enumerate(made) if keys] == list(range(2, 11))  # frames 6 to 30
    assert all(keys <= {"w"} for keys, _, _ in made)
    assert [number for number, (_, buttons, _) in enumerate(made) if buttons] == [5, 6]
    assert [motion for _, _, motion in made] == [(6, -3)] * 15 + [(0, 0)] * 15
    odd = counts(tmp_path / "out")
    assert odd["owa: without a place in the action space: wheel"] == 1
    assert (
        odd["owa: without a place in the action space: key LeftControl"] == 21
    )  # until the keyboard's state says otherwise


def test_without_raw_motion_the_cursors_is_taken(tmp_path: Path) -> None:
    messages = [SCREEN]
    for number in range(10):
        where = {"x": 100 + 4 * number, "y": 50}
        messages.append(("MouseEvent", {"event_type": "move", **where}))
    messages.append(("MouseEvent", {"event_type": "click", "button": "right", "pressed": True, "x": 0, "y": 0}))
    messages.append(("MouseEvent", {"event_type": "scroll", "dx": 0, "dy": 1, "x": 0, "y": 0}))
    made = rows(convert(write(tmp_path / "raw", messages), tmp_path / "out"))
    assert sum(x for _, _, (x, _) in made) == 36
    assert {"1"} in [buttons for _, buttons, _ in made]


def write(folder: Path, messages: list[tuple[str, Any]], **options: Any) -> Path:
    """A recording with these messages, 50 ms apart from each other, and the sample's video."""
    from mcap.writer import Writer

    folder.mkdir()
    shutil.copy(SAMPLE / "play.mkv", folder)
    with open(folder / "play.mcap", "wb") as file:
        writer = Writer(file, **options)
        writer.start(profile="owa")
        channels: dict[str, int] = {}
        for number, (kind, message) in enumerate(messages):
            if kind not in channels:
                schema = writer.register_schema(f"desktop/{kind}", "jsonschema", b"{}")
                channels[kind] = writer.register_channel(kind, "json", schema)
            data = message if isinstance(message, bytes) else json.dumps(message).encode()
            writer.add_message(channels[kind], number * 50_000_000, data, number * 50_000_000)
        writer.finish()
    return folder


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("KeyboardEvent", {"event_type": "press", "vk": -1}, "message 1 (KeyboardEvent): vk is -1"),
        ("KeyboardEvent", {"event_type": "hit", "vk": 65}, "event_type is 'hit'; expected press or release"),
        ("KeyboardState", {"buttons": [0] * 300}, "buttons is a list of 300"),
        ("RawMouseEvent", {"last_x": 1e300, "last_y": 0}, "last_x is 1e+300"),
        ("RawMouseEvent", {"last_x": 0, "last_y": 0, "button_flags": 1 << 40}, "button_flags is"),
        ("MouseEvent", {"event_type": "move", "x": "left", "y": 0}, "x is 'left'"),
        (
            "ScreenCaptured",
            {"media_ref": {"uri": "../../etc/passwd", "pts_ns": 0}},
            "its picture lies in '../../etc/passwd'",
        ),
        ("ScreenCaptured", {"media_ref": {"uri": "data:image/png;base64,AAAA"}}, "its picture lies in 'data:image/png"),
        ("ScreenCaptured", {"media_ref": {"uri": "play.mkv", "pts_ns": -5}}, "media_ref.pts_ns is -5"),
        ("KeyboardEvent", b"{", "message 1 (KeyboardEvent): not a JSON text"),
        ("KeyboardEvent", b"[" * 100_000, "message 1 (KeyboardEvent): not a JSON text"),
    ],
)
def test_a_bad_message_is_named(tmp_path: Path, kind: str, message: Any, words: str) -> None:
    raw = write(tmp_path / "raw", [SCREEN, (kind, message)])
    found = rejection(raw, tmp_path / "out")
    assert "play.mcap" in found
    assert words in found


def test_a_recording_without_a_screen_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [("KeyboardEvent", {"event_type": "press", "vk": 65})])
    assert "no message of the screen" in rejection(raw, tmp_path / "out")


def test_every_place_at_which_a_file_may_be_cut_off_is_refused_in_words(tmp_path: Path) -> None:
    whole = (write(tmp_path / "whole", [SCREEN] * 20) / "play.mcap").read_bytes()
    for number, size in enumerate([0, 7, 8, 30, len(whole) // 2, len(whole) - 40, len(whole) - 1]):
        raw = tmp_path / f"raw-{number}"
        shutil.copytree(SAMPLE, raw)
        (raw / "play.mcap").write_bytes(whole[:size])
        assert "no MCAP file, or damaged" in rejection(raw, tmp_path / f"out-{number}")


def test_a_chunk_that_claims_to_unpack_to_more_than_it_may_is_refused(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", [("KeyboardEvent", b" " * (80 << 20))], chunk_size=1 << 30)
    assert (raw / "play.mcap").stat().st_size < 1 << 20
    assert "a chunk of" in rejection(raw, tmp_path / "out")
