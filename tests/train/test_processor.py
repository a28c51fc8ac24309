"""A training process keeps the memory that it frees."""

from __future__ import annotations

import json
import subprocess
import sys

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
