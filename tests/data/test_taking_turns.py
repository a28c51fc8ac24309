"""Datasets that are made at the same moment by different processes do not take each other's shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from p2p.data.shared_memory import taking_turns
from tests.data.making import annotation, video_bytes

MAKE_DATASETS = """
import sys
import tempfile
from p2p.data import GameplayDataset
sys.stdin.readline()  # all begin together
for _ in range(10):
    dataset = GameplayDataset(local=sys.argv[1], num_timesteps=4, phase=0)
    del dataset
print("made")
"""


def test_datasets_made_at_the_same_moment_get_names_of_their_own(make_stream: Callable[..., Path]) -> None:
    stream = make_stream({"one": (video_bytes(12), annotation(12))})
    command = [sys.executable, "-c", MAKE_DATASETS, str(stream)]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    results = [run.communicate(timeout=120) for run in runs]
    assert [out for out, _ in results] == ["made\n"] * 4, "\n".join(error[-500:] for _, error in results)


def test_a_lock_that_anybody_may_hold_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the common folder for temporary files another user's lock stopped every run."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    with FileLock(tmp_path / f"p2p-streaming-{os.getuid()}.lock"), taking_turns(timeout_s=0.1):
        assert [path.name for path in private.iterdir()] == ["p2p-streaming.lock"]
        assert tempfile.gettempdir() == str(private)  # for Streaming's own locks
    assert tempfile.gettempdir() == str(tmp_path)
