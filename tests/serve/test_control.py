"""Instructions from a file and over a socket: whatever lies there and whoever talks, the server goes on."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from p2p.text import TableEmbedder
from p2p_serve.control import Control
from p2p_serve.text import TextSource
from tests.serve.live import wait_until


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    np.savez(tmp_path / "table.npz", left=np.ones((1, 16)), right=np.ones((1, 16)))
    return TextSource(TableEmbedder(tmp_path / "table.npz"), (1, 16))


class Watch:
    """A loop in a thread that watches a file; `beats` counts on for as long as the loop is not held up."""

    def __init__(self, source: TextSource, path: Path) -> None:
        self.beats, self._stop = 0, False
        self._control, self._path = Control(source, {}), path
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.thread.start()

    async def _run(self) -> None:
        self._control.watch_file(self._path)
        while not self._stop:
            self.beats += 1
            await asyncio.sleep(0.005)
        await self._control.stop()

    def stop(self) -> None:
        self._stop = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def watch(source: TextSource, told: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    caplog.set_level(logging.INFO)
    os.mkfifo(told)
    watch = Watch(source, told)
    yield watch
    watch.stop()


def test_a_pipe_in_the_place_of_the_text_file_holds_nothing_up(
    watch: Watch, source: TextSource, told: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wait_until(lambda: "not a regular file" in caplog.text, "it is looked at", 20)
    beats = watch.beats
    wait_until(lambda: watch.beats > beats + 50, "the loop goes on", 20)
    (tmp_path / "new").write_text("left\n" + "x" * 10**6)
    os.replace(tmp_path / "new", told)
    wait_until(lambda: source.current.text == "left", "the file that replaces it is read", 20)
    assert caplog.text.count("not a regular file") == 1


def test_a_file_that_changes_or_goes_is_followed_and_a_command_in_it_is_none(
    watch: Watch, source: TextSource, told: Path, tmp_path: Path
) -> None:
    for content, expected in (("left", "left"), ("/right\nleft\n", "right"), ("\n", ""), ("left\x0bright", "left")):
        (tmp_path / "new").write_text(content)
        os.replace(tmp_path / "new", told)
        wait_until(lambda expected=expected: source.current.text == expected, f"{content!r} is followed", 20)
    told.unlink()
    wait_until(lambda: source.current.text == "", "without a file there is no instruction", 20)


def test_a_line_without_end_is_not_read_to_its_end(
    watch: Watch, source: TextSource, told: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open(tmp_path / "new", "wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte of zeros
    begin = time.monotonic()
    os.replace(tmp_path / "new", told)
    wait_until(lambda: "text of 16384 characters" in caplog.text, "it is refused", 20)
    assert time.monotonic() - begin < 10
    assert source.current.text == ""


def test_what_is_said_over_the_socket_comes_back_without_what_a_terminal_obeys(
    source: TextSource, tmp_path: Path
) -> None:
    answers = asyncio.run(_talk(Control(source, {}), tmp_path / "told", [b"/x\x1b[31m\r\n", b"\xe2\x80\xae\n"]))
    assert answers[0].startswith(rb"error: unknown command /x\x1b[31m; there are")
    assert b"\\u202e" in answers[1]


def test_a_server_that_stops_leaves_those_who_talk_without_a_traceback(
    source: TextSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert asyncio.run(_talk(Control(source, {}), tmp_path / "told", [b"left\n"])) == [b"instruction: left\n"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def _talk(control: Control, path: Path, lines: list[bytes]) -> list[bytes]:
    """The answers to these lines over a text socket; the server stops while the connection is open."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        await control.listen(listener)
        reader, writer = await asyncio.open_unix_connection(str(path))
        answers = []
        for line in lines:
            writer.write(line)
            answers.append(await asyncio.wait_for(reader.readline(), 20))
        await control.stop()
        writer.close()
    return answers
