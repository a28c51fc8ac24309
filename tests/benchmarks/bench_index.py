"""The public dataset by simulation: what its index costs a process. `python tests/benchmarks/bench_index.py`

An index of 109,000 recordings in 34,000 shards (600 M frames) is made up, without the shards. A process of its own
opens it and finds the chunks of its next batch, as a run that is resumed in mid-epoch would; fetching and decoding them
come on top.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.format import RecordingEntry, encode_index, shard_entry

ROOT = Path(__file__).parent.parent.parent
NUM_RECORDINGS, NUM_SHARDS, NUM_FRAMES = 109_000, 34_000, 600_000_000
SEGMENT_FRAMES = 500  # keyframes every 250


def make_index() -> bytes:
    rng = np.random.default_rng(0)
    lengths = rng.gamma(4, size=NUM_RECORDINGS)
    frames = np.maximum(2, lengths * (NUM_FRAMES / lengths.sum())).astype(int).tolist()
    recordings, first = [], 0
    for number, count in enumerate(frames):
        segments = (SEGMENT_FRAMES,) * (count // SEGMENT_FRAMES) + (count % SEGMENT_FRAMES,) * (
            count % SEGMENT_FRAMES > 0
        )
        recording = f"0198{number:08x}-7000-8000-{rng.integers(1 << 48):012x}"
        runs = ((100, 400),) * (number % 10 == 0 and count > 400)
        system = sum(end - begin for begin, end in runs)
        recordings.append(RecordingEntry(recording, "doom", count, first, segments, runs, count - system - 1, system))
        first += len(segments)
    samples = np.diff(np.linspace(0, first, NUM_SHARDS + 1).astype(int)).tolist()
    shards = [
        shard_entry(
            count,
            {"basename": f"shard.{number:05}.000.mds", "bytes": 64 << 20, "hashes": {"xxh3_64": f"{number:016x}"}},
            None,
            None,
        )
        for number, count in enumerate(samples)
    ]
    return encode_index(shards, recordings)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: str) -> None:
    from p2p.data import GameplayDataset

    warm = resident()
    begin, cpu = time.perf_counter(), time.process_time()
    dataset = GameplayDataset(local=folder, phase="random", shuffle=True, batch_size=80)
    opened, cpu = time.perf_counter() - begin, time.process_time() - cpu
    gc.collect()
    kept = resident() - warm
    begin = time.perf_counter()
    order = dataset.order(3)
    chunks = [order.find(80 * 10_000 + place) for place in range(80)]
    found = time.perf_counter() - begin
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(f"opening an index    {opened:>9.2f} s ({cpu:.2f} of CPU): {NUM_RECORDINGS:,} recordings")
    print(f"  memory            {kept / 1e6:>9,.0f} MB more in the process, {(peak - warm) / 1e6:,.0f} MB at its peak")
    print(f"  a resumed epoch   {found:>9.2f} s to the places of its first {len(chunks)} chunks")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="p2p-bench-") as folder:
        index = make_index()
        (Path(folder) / "index.json").write_bytes(index)
        print(f"index.json          {len(index) / 1e6:>9.1f} MB")
        command = [sys.executable, __file__, folder]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


if __name__ == "__main__":
    measure(sys.argv[1]) if sys.argv[1:] else main()
