"""A training process keeps the memory that it frees; Ctrl-C is for it and not for its loader's workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from torch.utils.data import DataLoader, Dataset

CODE = """
import json, sys
import torch
from p2p.train.processor import keep_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

kept = keep_memory() if sys.argv[1] == "keep" else None
before = resident_mb()
block = torch.ones(50_000_000)
full = resident_mb()
del block
print(json.dumps([kept, full - before, resident_mb() - before]))
"""


def run(mode: str) -> tuple[bool | None, float, float]:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, timeout=120, check=True)
    kept, taken_mb, left_mb = json.loads(done.stdout)
    return kept, taken_mb, left_mb


def test_freed_memory_stays_with_a_process_that_asked_to_keep_it() -> None:
    _, taken_mb, left_mb = run("not")
    assert taken_mb > 150 > 50 > left_mb
    kept, taken_mb, left_mb = run("keep")
    assert kept
    assert left_mb > 150


class Disposition(Dataset[bool]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> bool:
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_of_the_loader_leaves_ctrl_c_to_the_process_that_trains() -> None:
    from p2p.train.loaders import leave_interrupts

    loader = DataLoader(Disposition(), batch_size=1, num_workers=1, worker_init_fn=leave_interrupts)
    assert [bool(ignored) for ignored in loader] == [True, True]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
