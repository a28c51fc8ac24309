"""Datasets that are made at the same moment by different processes do not take each other's shared memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.data.making import annotation, video_bytes

MAKE_DATASETS = """
import sys
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
