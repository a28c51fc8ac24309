"""Names of strangers reach the terminal as text: nothing in them is obeyed, in answers, errors and log lines."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from p2p import console, doctor
from p2p.cli import main as p2p
from p2p_convert.cli import main as p2p_convert
from tests.data.making import annotation, video_bytes, write_recording

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


def assert_nothing_is_obeyed(shown: str) -> None:
    assert all(line.isprintable() for line in shown.split("\n")), ascii(shown)


def test_answers_and_errors_keep_their_lines_and_lose_their_controls(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"one {EVIL}\ntwo\r three")
    assert console.fail(ValueError(f"the game {EVIL}")) == 2
    out, err = capsys.readouterr()
    assert out == "one \\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\ntwo\\r three\n"
    assert err == "p2p: error: the game \\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e\n"


def test_a_table_has_words_begin_and_numbers_end_together() -> None:
    rows = [["game", "frames", "held"], ["doom", "1,200", "w, a"], ["a longer name", "7", ""]]
    assert console.aligned(rows, left=(0, 2)).split("\n") == [
        "game           frames  held",
        "doom            1,200  w, a",
        "a longer name       7",
    ]


def test_progress_outside_a_terminal_is_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seldom = console.ProgressBar("converting", 10, "MB")
    seldom.update(4)
    assert capsys.readouterr().err == ""
    seldom.close()
    assert "converting [###########                 ] 4/10 MB" in capsys.readouterr().err
    often = console.ProgressBar("playing", 2, "episodes", line_every_s=0.0)
    often.update(1, note=EVIL)
    shown = capsys.readouterr().err
    assert "1/2 episodes" in shown
    assert " left \\x1b]0;owned" in shown
    assert_nothing_is_obeyed(shown)


def test_log_lines_and_tracebacks_are_spelt_out(caplog: pytest.LogCaptureFixture) -> None:
    formatter = console.PlainFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError(EVIL)
    except ValueError:
        with caplog.at_level(logging.INFO):
            logging.getLogger("p2p.test").info("recording %s", EVIL, exc_info=True)
    line = formatter.format(caplog.records[-1])
    assert_nothing_is_obeyed(line)
    assert line.startswith("INFO recording \\x1b]0;")
    assert "Traceback (most recent call last):\n" in line


def test_an_error_of_p2p_is_spelt_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(args: argparse.Namespace) -> int:
        raise ValueError(f"no such recording: {EVIL}")

    monkeypatch.setattr(doctor, "run", refuse)
    assert p2p(["doctor"]) == 2
    shown = capsys.readouterr().err
    assert_nothing_is_obeyed(shown)
    assert "no such recording: \\x1b]0;" in shown
    assert p2p([EVIL]) == 2
    assert_nothing_is_obeyed(capsys.readouterr().err)


def test_a_conversion_of_recordings_with_evil_names_shows_them_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_recording(raw / "good", video_bytes(40), annotation(40, game="fine"))
    write_recording(raw / "game", video_bytes(40, seed=1), annotation(40, game=f"game {EVIL}\nall games 99"))
    write_recording(raw / f"bad {EVIL}", b"no video", annotation(40))
    assert p2p_convert([str(raw), str(out), "--split", "val=0", "--max-rejected", "0.9"]) == 0
    captured = capsys.readouterr()
    assert_nothing_is_obeyed(captured.out + captured.err)
    assert "bad \\x1b]0;" in captured.out
    for command in ("stats", "inspect", "verify"):
        assert p2p_convert([command, str(out)]) == 0
        captured = capsys.readouterr()
        assert_nothing_is_obeyed(captured.out + captured.err)
        assert not any(line.startswith("all games 99") for line in captured.out.split("\n"))


def test_a_process_that_converts_logs_as_the_command_does(tmp_path: Path) -> None:
    code = (
        "import logging, sys\nfrom p2p_convert.executors import begin_worker\nbegin_worker(sys.argv[1])\n"
        "logging.getLogger('p2p_convert').warning('recording \\x1b[2J')"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert result.stderr == "recording \\x1b[2J\n"


def test_the_table_of_games_in_a_strangers_statistics_is_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_recording(tmp_path / "raw" / "a", video_bytes(40), annotation(40, game="fine"))
    assert p2p_convert([str(tmp_path / "raw"), str(tmp_path / "out"), "--split", "val=0"]) == 0
    path = tmp_path / "out" / "stats.json"
    content = json.loads(path.read_text())
    content["games"][f"g{EVIL}\nx"] = content["games"].pop("fine")
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert p2p_convert(["stats", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert_nothing_is_obeyed(shown)
    assert "g\\x1b]0;" in shown
    assert "\nx" not in shown
