"""Ends the programs that a process started when that process ends, however it ends: exit, exception, SIGTERM, SIGKILL.

A game engine outlives a killed parent and may ignore SIGTERM, and it starts threads and children of its own. So every
program that must not stay behind is started with a mark in its environment, which its children inherit, and one small
helper (`python -m p2p.processes.reaper MARK`, in a session of its own) waits for the end of a pipe that only the
marking process holds open. When the pipe ends, whatever carries the mark gets SIGKILL, and what it left outside is
removed.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from p2p.processes.scratch import sweep

MARK_VARIABLE = "P2P_STARTED_BY"

_mark: str | None = None
_owner_pid = 0


def mark_children() -> str:
    """Mark everything this process starts from now on, and start the helper that ends it; returns the mark.

    Further calls change nothing. A process forked from this one gets a mark and a helper of its own when it calls.
    """
    global _mark, _owner_pid
    if _mark is not None and _owner_pid == os.getpid():
        return _mark
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    # The helper itself must not carry this mark, nor die with the process group on Ctrl-C.
    helper = subprocess.Popen(
        [sys.executable, "-m", "p2p.processes.reaper", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, MARK_VARIABLE: "", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )
    _keep_open.append(helper)
    os.environ[MARK_VARIABLE] = mark
    _mark, _owner_pid = mark, os.getpid()
    return mark


_keep_open: list["subprocess.Popen[bytes]"] = []  # its stdin is the pipe whose end the helper waits for


def marked_processes(mark: str) -> list[int]:
    """Ids of the running processes (zombies excluded) that were started with `mark` in their environment."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile, or belongs to somebody else
                continue
    return found


def end_marked(mark: str, timeout_s: float = 10.0) -> None:
    """SIGKILL whatever carries `mark`, until nothing does or `timeout_s` have passed."""
    deadline = time.monotonic() + timeout_s
    while (pids := marked_processes(mark)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def main() -> int:
    """Wait until the process that holds our standard input is gone, then end what it started and left."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while sys.stdin.buffer.read(1):
        pass
    end_marked(sys.argv[1])
    sweep()
    return 0


if __name__ == "__main__":
    sys.exit(main())
