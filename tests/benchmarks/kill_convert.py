"""A conversion killed at random moments ends with the same bytes. `python tests/benchmarks/kill_convert.py [KILLS]`

Each round runs the same command with two workers and kills the whole process group with SIGKILL after a random
time, shorter than an undisturbed run takes; the last round is left alone. What a round had done must stay untouched.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.data.making import annotation, tree_digest, video_bytes, write_recording


def start(raw: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "p2p_convert.cli", str(raw), str(out), "--split", "val=0.1", "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def reports(out: Path) -> dict[Path, int]:
    return {path: os.stat(path).st_mtime_ns for path in out.glob(".convert/task-*.json")}


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int.from_bytes(os.urandom(4))
    rng = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="p2p-kill-"))
    try:
        video = video_bytes(200, gop=40, size=192)
        for number in range(640):
            write_recording(root / "raw" / f"rec_{number:03}", video, annotation(200, seed=number))
        begin = time.monotonic()
        assert start(root / "raw", root / "calm").wait() == 0
        whole_s = time.monotonic() - begin
        expected, killed = tree_digest(root / "calm", ("lock",)), 0
        while killed < kills:
            out = root / "out"
            done = reports(out)
            process = start(root / "raw", out)
            time.sleep(rng.uniform(0, whole_s))  # the moment is what is tried
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.wait()
            assert all(os.stat(path).st_mtime_ns == when for path, when in done.items())
            if len(reports(out)) == 40:  # start over: there is nothing left to kill
                assert start(root / "raw", out).wait() == 0
                assert tree_digest(out, ("lock",)) == expected
                shutil.rmtree(out)
        assert start(root / "raw", root / "out").wait() == 0
        assert tree_digest(root / "out", ("lock",)) == expected
        print(f"{killed} kills (seed {seed}) within {whole_s:.1f} s each: the bytes of an undisturbed run")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
