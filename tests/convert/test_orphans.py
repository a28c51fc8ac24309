"""A conversion that is killed leaves no worker behind that would go on writing into OUT."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.data.making import annotation, video_bytes, write_recording


def is_alive(process: psutil.Process) -> bool:
    """A zombie has ended, even if nobody asked how."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_workers_of_a_killed_conversion_end_with_it(tmp_path: Path) -> None:
    video = video_bytes(25)
    for number in range(160):
        write_recording(tmp_path / "raw" / f"rec_{number:03}", video, annotation(25, seed=number))
    command = [sys.executable, "-m", "p2p_convert.cli", str(tmp_path / "raw"), str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out" / ".convert").glob("task-*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while (left := [worker for worker in workers if is_alive(worker)]) and time.monotonic() < deadline:
        pass
    for child in left:
        child.kill()
    assert len(workers) == 2
    assert left == []
