"""How commands that record and play end: by a person, a signal, the game's death; and what is left: the recording."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from p2p.actions import Action
from p2p.cli import main
from p2p.files import owned
from p2p.processes import scratch
from p2p.processes.reaper import MARK_VARIABLE
from p2p.processes.scratch import SHARED_MEMORY, Scratch, sweep
from p2p.processes.stopping import stoppable
from p2p.recording import VIDEO_FILE, RecordingWriter, read_annotation, read_frames

PROGRAM = f"program:{sys.executable} {Path(__file__).with_name('window_program.py')}"
BASIC = "doom:basic"


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


class Command:
    """`p2p ARGUMENTS` in a process group of its own, as a shell starts it, with temporary files below `temporary`."""

    def __init__(self, temporary: Path, arguments: Sequence[object], **environment: str) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary, self.output = temporary, temporary.with_name("output")
        variables = {**os.environ, "TMPDIR": str(temporary), MARK_VARIABLE: "", **environment}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "p2p.cli", *map(str, arguments)],
                env=variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def marked(self) -> list[int]:
        """The processes that it started and that still run."""
        wanted = f"{MARK_VARIABLE}={self.process.pid}-".encode()
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def signal(self, number: int) -> None:
        """To the whole group, as a terminal's Ctrl-C."""
        os.killpg(self.process.pid, number)

    def left(self) -> list[str]:
        """Names of what it has left outside its own folders."""
        return sorted(path.name for path in self.temporary.iterdir() if path.name.startswith("p2p-"))


@contextlib.contextmanager
def command(temporary: Path, *arguments: object, **environment: str) -> Iterator[Command]:
    started = Command(temporary, arguments, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


def engine_memory(folder: Path) -> list[Path]:
    """The shared memory of the engines that a command has started."""
    notes = folder.glob("p2p-doom-*/shared-memory")
    return [SHARED_MEMORY / name for note in notes for name in note.read_text().splitlines()]


def recorded(folder: Path) -> int:
    """The number of frames of the one recording there, which is whole; nothing else is there."""
    (recording,) = folder.iterdir()
    num_frames = len(read_annotation(recording).frame_annotations)
    assert sum(1 for _ in read_frames(recording / VIDEO_FILE)) == num_frames
    return num_frames


def bytes_on_disk(folder: Path) -> int:
    """How much of the video of the recording that is being made has come to the disk."""
    return max((path.stat().st_size for path in folder.glob(".*.partial/*.mp4")), default=0)


# ------------------------------------------------------------------ a person is recorded


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)])
def test_a_person_who_stops_has_the_recording(screen: str, tmp_path: Path, signals: tuple[int, ...]) -> None:
    out = tmp_path / "raw"
    arguments = ("record", "--window", "--game", PROGRAM, "--hours", "1", "--out", out)
    with command(tmp_path / "temporary", *arguments, DISPLAY=screen) as started:
        assert wait_until(lambda: bytes_on_disk(out) > 1500), started.said
        for number in signals:
            started.signal(number)
        assert started.process.wait(60) == 0, started.said
        assert recorded(out) >= 8
        assert "Ctrl-C here ends it sooner" in started.said
        assert " recorded" in started.said.splitlines()[-1]
        assert "Traceback" not in started.said
        assert wait_until(lambda: not started.marked())
        assert started.left() == []


@pytest.mark.parametrize("game", [PROGRAM, BASIC])
def test_a_game_that_dies_ends_the_recording_with_what_was_played(screen: str, tmp_path: Path, game: str) -> None:
    out = tmp_path / "raw"
    arguments = ("record", "--window", "--game", game, "--hours", "1", "--out", out)
    with command(tmp_path / "temporary", *arguments, DISPLAY=screen) as started:
        assert wait_until(lambda: bytes_on_disk(out) > 1500), started.said
        for pid in started.marked():
            os.kill(pid, signal.SIGKILL)
        assert started.process.wait(60) == 2, started.said
        assert "the game has ended" in started.said.splitlines()[-1]
        assert f"{out}/window-" in started.said.splitlines()[-2]
        assert "Traceback" not in started.said
        assert recorded(out) >= 8


def test_a_killed_recording_is_repaired_by_the_command(
    screen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "raw"
    arguments = ("record", "--window", "--game", BASIC, "--hours", "1", "--out", out)
    with command(tmp_path / "temporary", *arguments, DISPLAY=screen) as started:
        assert wait_until(lambda: bytes_on_disk(out) > 20_000), started.said
        memory = engine_memory(started.temporary)
        assert len(memory) == 3
        assert all(path.exists() for path in memory)
        assert main(["repair", str(out)]) == 0
        assert "0 recordings repaired" in capsys.readouterr().out  # its owner lives
        started.process.kill()
        started.process.wait()
        assert wait_until(lambda: not started.marked() and not started.left() and not any(p.exists() for p in memory))
    assert main(["repair", str(out)]) == 0
    assert "1 recordings repaired, 0 could not be" in capsys.readouterr().out
    assert recorded(out) >= 8


def test_what_cannot_be_repaired_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordingWriter(tmp_path / "r", "r") as writer:
        (unfinished,) = tmp_path.iterdir()
        shutil.copytree(unfinished, tmp_path / "left" / unfinished.name)
        writer.discard()
    left = tmp_path / "left" / unfinished.name
    (left / "journal").write_bytes((left / "journal").read_bytes() + b"\x1a\x00" * 100)
    assert main(["repair", str(tmp_path / "left")]) == 2
    assert "0 recordings repaired, 1 could not be" in capsys.readouterr().out
    assert left.exists()
    assert main(["repair", str(tmp_path / "nowhere")]) == 2


# ------------------------------------------------------------------ scripted recordings, episodes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_scripted_recording_stops_and_leaves_nothing_but_whole_recordings(tmp_path: Path, number: int) -> None:
    out = tmp_path / "raw"
    game = "doom:health_gathering"
    arguments = ("record", "--game", game, "--episodes", "50", "--workers", "2", "--out", out)
    with command(tmp_path / "temporary", *arguments) as started:
        assert wait_until(lambda: bytes_on_disk(out) > 20_000), started.said
        memory = engine_memory(started.temporary)
        assert memory
        started.signal(number)
        assert started.process.wait(60) == 130
        assert "Traceback" not in started.said
        assert not any(path.exists() for path in memory)
        assert started.left() == []
        assert wait_until(lambda: not started.marked())
    for folder in out.iterdir():
        assert folder.name in ("record.json", ".lock") or read_annotation(folder).frame_annotations


def test_a_folder_of_recordings_has_one_run_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["record", "--game", BASIC, "--episodes", "1", "--out", str(tmp_path)]
    with owned(tmp_path / ".lock", "x"):
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"another process (process {os.getpid()}) is using it" in error
    assert "choose another folder" in error
    assert os.listdir(tmp_path) == [".lock"]


def test_a_demo_s_folder_has_one_demo_at_a_time(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repository)
    with owned(tmp_path / ".lock", "x"):
        assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "let it finish, or choose another --out" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [".lock"]


def test_a_person_s_unfinished_recording_survives_a_scripted_run(tmp_path: Path) -> None:
    arguments = ["record", "--game", BASIC, "--episodes", "1", "--out", str(tmp_path / "raw")]
    assert main(arguments) == 0
    with RecordingWriter(tmp_path / "raw" / "window-1", "window-1") as writer:
        writer.discard()
    with RecordingWriter(tmp_path / "other" / "window-1", "window-1") as writer:
        writer.add(next(iter(read_frames(tmp_path / "raw" / "doom-basic-000-00000" / VIDEO_FILE))), Action(), None)
        (unfinished,) = (tmp_path / "other").iterdir()
        left = Path(shutil.copytree(unfinished, tmp_path / "raw" / unfinished.name))
    assert main([*arguments[:4], "2", *arguments[5:]]) == 0
    assert left.is_dir()


def test_a_command_that_is_asked_again_and_again_ends_once() -> None:
    ended: list[str] = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(number)
            ended.append("whole")

    with pytest.raises(KeyboardInterrupt), stoppable():
        work()
    assert ended == ["whole"]


# ------------------------------------------------------------------ what killed commands leave


def test_what_a_killed_process_left_goes_and_what_a_live_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path)
    code = """
import os, sys, signal
from pathlib import Path
from p2p.processes.scratch import Scratch
made = Scratch("doom")
made.remember(["ViZDoomSM1", "../outside"])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.glob("p2p-doom-*")
    for name in ("ViZDoomSM1", "ViZDoomSM2"):
        (tmp_path / name).touch()
    outside = tmp_path.with_name("outside")
    outside.touch()
    live = Scratch("doom")  # it also sweeps, the first time
    live.remember(["ViZDoomSM2"])
    beginning = tmp_path / "p2p-doom-beginning"  # its owner has not come to lock it
    beginning.mkdir(0o700)
    (beginning / "owner").touch()
    sweep()
    assert not left.exists()
    assert not (tmp_path / "ViZDoomSM1").exists()
    assert live.path.is_dir()
    assert (tmp_path / "ViZDoomSM2").exists()
    assert beginning.exists()
    assert outside.exists()
    live.close()
    assert not live.path.exists()
    assert not (tmp_path / "ViZDoomSM2").exists()
