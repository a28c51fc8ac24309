"""A full /dev/shm kills the loader's workers with a bus error; it is explained, and foreseen where that is possible."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2p.data.shared_memory import require_shared_memory, shared_memory_fault

LOAD = """
import sys, torch
from torch.utils.data import DataLoader
from p2p.data.shared_memory import shared_memory_fault

class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.ones(1 << 20, dtype=torch.uint8)

try:
    for batch in DataLoader(Pictures(), batch_size=4, num_workers=1):
        pass
except RuntimeError as error:
    print(shared_memory_fault(error) or error)
"""


def test_a_worker_that_finds_shared_memory_full_is_explained() -> None:
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a small /dev/shm needs the right to mount one")
    result = subprocess.run([*command, sys.executable, "-c", LOAD], capture_output=True, text=True, timeout=120)
    assert "docker run --shm-size=8g" in result.stdout, result.stderr
    assert "data.num_workers=0" in result.stdout
    assert result.stdout.count("\n") == 1


def test_other_errors_are_not_taken_for_it() -> None:
    assert shared_memory_fault(RuntimeError("CUDA error: out of memory")) == ""


def test_what_is_known_not_to_fit_is_refused_before_it_is_tried() -> None:
    require_shared_memory(1, "a byte")
    with pytest.raises(
        ValueError, match=r"/dev/shm has [\d.,]+ MiB free; one batch needs 1,099,511,627,776.0 MiB: make"
    ):
        require_shared_memory(1 << 60, "one batch")
