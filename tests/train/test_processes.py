"""How the processes of a run end, with processes that load nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RANK = """
import os, pathlib, signal, sys
rank, folder = os.environ["RANK"], sys.argv[1]
def stop(number, frame):
    if rank == "0":
        print("p2p: interrupted: nothing was saved", file=sys.stderr)
    sys.exit(128 + number)
def note(number, frame):
    pathlib.Path(folder, "asked" + rank).touch()
signal.signal(signal.SIGTERM, note if "stubborn" in sys.argv else stop)
print("a word of process", rank)
told = pathlib.Path(folder, rank + ".partial")
told.write_text(" ".join([str(os.getpid()), os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]]))
told.rename(told.with_suffix(""))
if rank in sys.argv[2:]:
    sys.exit("p2p: error: of process " + rank)
if "well" in sys.argv:
    sys.exit(0)
while True:
    signal.pause()
"""
TYPED = """
import os, signal, sys
from p2p.train.processes import run_processes
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
sys.exit(run_processes([sys.executable, "-c", *sys.argv[1:]], 2, os.environ))
"""
TIMEOUT_S = 60.0


class Typed:
    """`run_processes` in a process of its own, with two processes; they leave a file each when they run."""

    def __init__(self, repository: Path, folder: Path, *arguments: str) -> None:
        self._folder, self._log = folder, folder / "log"
        command = [sys.executable, "-c", TYPED, RANK, str(folder), *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=repository, stdout=log, stderr=log, start_new_session=True)

    def press_ctrl_c(self) -> None:
        """As a terminal does it: to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, *names: str) -> None:
        """Until the processes have left these files."""
        deadline = time.monotonic() + TIMEOUT_S
        while not all((self._folder / name).exists() for name in names):
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def end(self) -> tuple[int, list[str]]:
        return self.process.wait(TIMEOUT_S), self._log.read_text().splitlines()

    def told(self, rank: int) -> list[str]:
        """Process id, WORLD_SIZE and LOCAL_RANK of a process."""
        return (self._folder / str(rank)).read_text().split()


@pytest.fixture
def typed(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Typed]]:
    started: list[Typed] = []

    def start(*arguments: str) -> Typed:
        started.append(Typed(repository, tmp_path, *arguments))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait(TIMEOUT_S)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_every_process_in_one_line_with_its_own_status(
    typed: Callable[..., Typed], number: int, status: int
) -> None:
    run = typed()
    run.wait_for("0", "1")
    os.killpg(run.process.pid, number)
    assert run.end() == (status, ["a word of process 0", "p2p: interrupted: nothing was saved"])
    assert not any(Path(f"/proc/{run.told(rank)[0]}").exists() for rank in (0, 1))


def test_a_second_ctrl_c_ends_what_does_not_end_by_itself(typed: Callable[..., Typed]) -> None:
    run = typed("stubborn")
    run.wait_for("0", "1")
    run.press_ctrl_c()
    run.wait_for("asked0", "asked1")
    run.press_ctrl_c()
    assert run.end() == (130, ["a word of process 0"])
    assert not any(Path(f"/proc/{run.told(rank)[0]}").exists() for rank in (0, 1))


def test_all_that_end_well_end_with_0_and_only_the_first_is_heard(typed: Callable[..., Typed]) -> None:
    run = typed("well")
    assert run.end() == (0, ["a word of process 0"])
    assert [run.told(rank)[1:] for rank in (0, 1)] == [["2", "0"], ["2", "1"]]


def test_a_failure_of_one_ends_the_others_and_what_it_said_is_shown(typed: Callable[..., Typed]) -> None:
    status, lines = typed("1").end()
    assert status == 1
    assert set(lines) == {
        "a word of process 0",
        "p2p: interrupted: nothing was saved",
        "process 1 of 2 failed:",
        "a word of process 1",
        "p2p: error: of process 1",
    }


def test_what_fails_in_all_of_them_is_said_once(typed: Callable[..., Typed]) -> None:
    status, lines = typed("0", "1").end()
    assert status == 1
    assert sorted(lines) == ["a word of process 0", "p2p: error: of process 0"]
