"""Datasets that are made and read at the same moment by different processes do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.data.making import annotation, video_bytes

READ = """
import sys
from p2p.data import GameplayDataset
sys.stdin.readline()  # all begin together
for _ in range(5):
    dataset = GameplayDataset(local=sys.argv[1], remote=sys.argv[2], num_timesteps=4, phase=0)
    samples = [sample["start"] for sample in dataset]
    assert samples == [0, 4, 8], samples
print("read")
"""


def test_processes_that_make_one_copy_at_the_same_moment_all_read_it(
    make_stream: Callable[..., Path], tmp_path: Path
) -> None:
    stream = make_stream({"one": (video_bytes(12), annotation(12))})
    command = [sys.executable, "-c", READ, str(tmp_path / "copy"), str(stream)]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    results = [run.communicate(timeout=120) for run in runs]
    assert [out for out, _ in results] == ["read\n"] * 4, "\n".join(error[-500:] for _, error in results)
