"""What the server itself costs, and its clients one another. `python tests/benchmarks/bench_server.py`

Against real `p2p-serve` processes on the CPU, without a model worth the name: round trips of an echo server; those of
one session beside nothing, and beside a second one that sends large frames; the memory of an echo server after more and
more sessions of one frame.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from p2p.actions import FRAME_RATE_HZ
from p2p.protocol import encode_frame
from p2p_serve.loadtest import run_load

SMALL = (192, 192)
TINY = """
policy: {dim: 32, num_layers: 2, num_heads: 2, num_timesteps: 20, attention_history: 20, image_encoder: small_cnn}
"""
START_TIMEOUT_S = 120.0


@contextlib.contextmanager
def program(folder: Path, *arguments: str) -> Iterator[tuple[Path, int]]:
    """A `p2p-serve` that is warm: its socket, and its process."""
    path, log_path = folder / "s", folder / "log"
    command = [sys.executable, "-m", "p2p_serve.cli", *arguments, "--socket", str(path)]
    with log_path.open("wb") as log, subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while b"warm:" not in log_path.read_bytes():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(log_path.read_text())
                time.sleep(0.05)
            yield path, process.pid
        finally:
            process.terminate()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(path))
    return connection


def round_trips(path: Path, seconds: float) -> str:
    """Percentiles of one session at 20 frames a second."""
    with connect(path) as connection:
        result = run_load(connection, FRAME_RATE_HZ, seconds, SMALL)
    p50, p95, p99 = np.percentile(result.round_trips_ms, [50, 95, 99])
    dropped = result.num_sent - len(result.round_trips_ms)
    return f"p50 {p50:6.2f}  p95 {p95:6.2f}  p99 {p99:6.2f} ms, {dropped} of {result.num_sent} not answered"


def flood(path: Path, message: bytes, rate_hz: float, stop: threading.Event) -> None:
    """Send one message again and again until told to stop, and read no answer."""
    with contextlib.suppress(OSError), connect(path) as connection:
        while not stop.wait(1 / rate_hz):
            connection.sendall(message)


def bench_neighbours(folder: Path, seconds: float) -> None:
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY)
    options = ("--random-weights", "--recipe", str(recipe), "--device", "cpu", "--threads", "1", "--sessions", "2")
    tiny = encode_frame(np.zeros((1, 1, 3), np.uint8), 1)
    neighbours = {
        "alone": None,
        "beside 192x192": encode_frame(np.zeros((*SMALL, 3), np.uint8), 1),
        "beside 1920x1080": encode_frame(np.zeros((1080, 1920, 3), np.uint8), 1),
        "beside 3840x2160": encode_frame(np.zeros((2160, 3840, 3), np.uint8), 1),
        "beside single pixels": tiny * (2**20 // len(tiny)),
        "beside empty messages": bytes(2**20),
    }
    for name, message in neighbours.items():
        with program(folder, *options) as (path, _):
            stop = threading.Event()
            thread = threading.Thread(target=flood, args=(path, message, FRAME_RATE_HZ, stop))
            if message is not None:
                thread.start()
            print(f"tiny policy, {name:24s} {round_trips(path, seconds)}", flush=True)
            stop.set()
            if message is not None:
                thread.join()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def bench_sessions(folder: Path, num_sessions: int) -> None:
    message = encode_frame(np.zeros((*SMALL, 3), np.uint8), 1)
    with program(folder, "echo", "--keys", "w") as (path, pid):
        print(f"echo, before the first session: {resident_mb(pid):.1f} MB")
        for number in range(1, num_sessions + 1):
            with connect(path) as connection:
                connection.sendall(message)
                connection.recv(100)
            if number % max(1, num_sessions // 12) == 0:
                print(f"echo, after {number:6d} sessions: {resident_mb(pid):.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each session that is timed (%(default)s)")
    parser.add_argument("--sessions", type=int, default=3000, help="whose memory is watched (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with program(folder, "echo", "--keys", "w") as (path, _):
            print(f"echo{'':33s} {round_trips(path, args.seconds)}", flush=True)
        bench_neighbours(folder, args.seconds)
        bench_sessions(folder, args.sessions)


if __name__ == "__main__":
    main()
