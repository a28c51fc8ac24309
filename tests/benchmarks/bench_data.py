"""Conversion and loading against their floors, side by side. `python tests/benchmarks/bench_data.py [--frames N]`

Figures are CPU seconds of one process (so other programs on the machine disturb little), but for the line of
two workers against one, which is wall time and wants an idle machine and 8 GB of disk. The recordings are made on
the spot: moving textures at 192x192, encoded with x264, with the annotations that a recorder writes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.proto.video_annotation_pb2 import VideoAnnotation
from p2p.recording import parse_annotation
from p2p_convert.plan import Options
from p2p_convert.run import convert
from tests.data.making import annotation, video_bytes, write_recording

T = 200
LONG = 5505  # frames of a recording of the public dataset, on the mean
COPIED = Options(val_fraction=0, decode="none")


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="p2p-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def cpu_seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """The least CPU time of a few calls."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def events_annotation(num_frames: int) -> VideoAnnotation:
    """An annotation as Recap writes them: with raw input events and times beside the actions."""
    made = annotation(num_frames)
    for index, frame in enumerate(made.frame_annotations):
        frame.frame_time = 50_000_000 * index
        for part in range(3):
            event = frame.input_events.add(time=frame.frame_time + part)
            event.mouse_delta_event.x, event.mouse_delta_event.y = part, -part
    return made


def make_raw(root: Path, num_recordings: int, num_frames: int, gop: int, crf: str = "17") -> Path:
    video = video_bytes(num_frames, gop=gop, size=192, preset="veryfast", crf=crf)
    made = events_annotation(num_frames)
    for number in range(num_recordings):
        write_recording(root / f"rec_{number:04}", video, made)
    return root


def floor(raw: Path) -> None:
    """The least that a conversion must do: parse the annotations, demux the videos, hash the bytes."""
    for recording in sorted(raw.iterdir()):
        content = (recording / "annotation.proto").read_bytes()
        parse_annotation(content, str(recording))
        hashlib.sha256(content).digest()
        video = (recording / "192x192.mp4").read_bytes()
        hashlib.sha256(video).digest()
        with av.open(str(recording / "192x192.mp4")) as container:
            for packet in container.demux(video=0):
                bytes(packet)


def bench_conversion(raw: Path, num_frames: int, root: Path) -> None:
    outs = iter(range(1000))

    def run(decode: str) -> None:
        convert([raw], root / f"out{next(outs)}", Options(val_fraction=0, decode=decode))

    least, ours = cpu_seconds(lambda: floor(raw)), cpu_seconds(lambda: run("none"))
    print(f"conversion          {num_frames / ours:>9,.0f} frames per CPU second (--decode none)")
    print(f"  its floor         {num_frames / least:>9,.0f} (parse, demux, hash)     ratio {least / ours:.2f}")
    for decode in ("sampled", "all"):
        seconds = cpu_seconds(lambda decode=decode: run(decode), 1)
        rate = f"{num_frames / seconds:>9,.0f} frames per CPU second"
        print(f"  --decode {decode:8}{rate}, {seconds / ours:.1f} x the time")
    source = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
    stored = sum(path.stat().st_size for path in (root / "out0").rglob("*.mds"))
    print(f"bytes stored        {stored / source:>9.3f} of the source's {source / num_frames:,.0f} per frame")


def bench_two_workers(num_recordings: int, num_frames: int, root: Path) -> None:
    """Wall time of a job of many seconds, so that starting the processes counts for little."""
    raw = link_recordings(make_raw(root / "first", 1, num_frames, 250), root / "many", num_recordings)
    wall = []
    for workers in (1, 2):
        begin = time.monotonic()
        convert([raw], root / f"by{workers}", COPIED, workers)
        wall.append(time.monotonic() - begin)
        shutil.rmtree(root / f"by{workers}")
    print(
        f"2 workers against 1 {wall[0] / wall[1]:>9.2f} x ({num_recordings * num_frames:,} frames in {wall[0]:.1f} s "
        f"and {wall[1]:.1f} s of wall time)"
    )


def bench_scale(root: Path) -> None:
    """CPU time per frame of converting and of planning an epoch, from 10 to 2,000 recordings."""
    for num_recordings in (10, 100, 2000):
        raw = make_raw(root / f"many{num_recordings}", num_recordings, 60, 30)
        out = root / f"scale{num_recordings}"
        seconds = cpu_seconds(lambda raw=raw, out=out: convert([raw], out, COPIED), 1)
        opened = cpu_seconds(lambda out=out: open_dataset(out / "train", shuffle=True), 1)
        print(
            f"{num_recordings:>6,} recordings  {1e6 * seconds / num_recordings / 60:>9.1f} us per frame to convert, "
            f"{1e6 * opened / num_recordings / 60:.2f} to open"
        )


def open_dataset(stream: Path, **options: object):  # type: ignore[no-untyped-def]
    from p2p.data import GameplayDataset

    return GameplayDataset(local=str(stream), num_timesteps=T, **options)


def sequential_decode(raw: Path) -> int:
    """Every frame of the videos as PyAV gives it: rgb24 by one shared reformatter, one thread."""
    reformatter, count = VideoReformatter(), 0
    for recording in sorted(raw.iterdir()):
        with av.open(str(recording / "192x192.mp4")) as container:
            container.streams.video[0].thread_count = 1
            for frame in container.decode(video=0):
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                count += 1
    return count


def link_recordings(raw: Path, root: Path, num_recordings: int) -> Path:
    """A folder with `num_recordings` times the first recording of `raw`."""
    root.mkdir(parents=True)
    for number in range(num_recordings):
        folder = root / f"rec_{number:04}"
        folder.mkdir()
        for path in (raw / "rec_0000").iterdir():
            os.link(path, folder / path.name)
    return root


def bench_loader(raw: Path, root: Path, name: str, num_chunks: int) -> None:
    """A worker that has its recordings open, as all but the first chunks of an epoch find it.

    Recordings are as long as the public dataset's (27 chunks), and 24 are open; with updates of 80 chunks on 8 GPUs of
    12 workers each, 20 are.
    """
    convert([link_recordings(raw, root / "raw", 32)], root / "out", COPIED)
    dataset = open_dataset(root / "out" / "train", phase="random", shuffle=True)
    samples = iter(dataset)
    opening = cpu_seconds(lambda: [next(samples) for _ in range(dataset.order(0).num_lanes)], 1)

    def load() -> None:
        for _ in range(num_chunks):
            assert next(samples)["frames"].shape[0] == T

    one = link_recordings(raw, root / "one", 1)
    loading, decoding = [], []
    for _ in range(3):  # in turn, so that what else the machine does falls on both
        loading.append(cpu_seconds(load, 1))
        decoding.append(cpu_seconds(lambda: sequential_decode(one), 1))
    ours, plain = num_chunks * T / min(loading), LONG / min(decoding)
    print(f"loader        {name:>7} {ours:>8,.0f} frames per CPU second, shuffled, random phase")
    print(f"  PyAV in sequence  {plain:>9,.0f} (decode to rgb24)          ratio {ours / plain:.2f}")
    print(f"  to open 24 recordings {opening:.1f} s, once an epoch")


class WorkerMemory:
    """Watches the memory of processes from outside; peaks in MB.

    PSS and USS as /proc/PID/smaps_rollup has them (what a fork shares with its parent counts in part in the one,
    not at all in the other). A batch that waits to be fetched is open in its worker but mapped by nobody, so neither
    counts it: `total` is PSS without shared memory plus the whole of every batch that the process holds open.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self.peaks = {pid: Counter[str]() for pid in pids}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for pid in self._pids:
                for name, value in _memory(pid).items():
                    self.peaks[pid][name] = max(self.peaks[pid][name], value)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _memory(pid: int) -> dict[str, int]:
    fields: Counter[str] = Counter()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    held = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(descriptor).startswith("/dev/shm/torch_"):
                status = descriptor.stat()
                held[status.st_ino] = status.st_blocks * 512
    return {
        "PSS": fields["Pss"],
        "USS": fields["Private_Clean"] + fields["Private_Dirty"],
        "total": fields["Pss"] - fields["Pss_Shmem"] + sum(held.values()),
    }


def _num_awaited(batches: Any) -> int:
    """How many batches the workers have been asked for and the reader has not fetched yet."""
    fetched = sum(len(task) > 1 for task in batches._task_info.values())  # out of order, kept until their turn
    return int(batches._tasks_outstanding) - fetched


def bench_memory(raw: Path, root: Path) -> None:
    """Peak memory of each worker of a real loader that is ahead of its reader as far as it may be."""
    from torch.utils.data import DataLoader

    from p2p.data import collate

    convert([raw], root / "memory", COPIED)
    dataset = open_dataset(root / "memory" / "train", phase="random", shuffle=True, batch_size=8)
    loader = DataLoader(dataset, batch_size=8, num_workers=2, prefetch_factor=2, collate_fn=collate)
    batches = iter(loader)
    watch = WorkerMemory([worker.pid for worker in batches._workers])
    for _ in range(8):
        while batches._worker_result_queue.qsize() < _num_awaited(batches):
            time.sleep(0.05)
        next(batches)
    watch.stop()
    batches._shutdown_workers()
    num_open = -(-dataset.order(0).num_lanes // 2)
    print(f"memory of a worker  (T 200, batches of 8, prefetch 2, GOP 250, random phase, {num_open} recordings open)")
    for number, peaks in enumerate(watch.peaks.values()):
        listed = ", ".join(f"{name} {peaks[name] / 1e6:,.0f} MB" for name in ("PSS", "USS", "total"))
        print(f"  worker {number}          {listed} (with the batches that wait in shared memory)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=3000, help="frames of a recording")
    parser.add_argument("--loader", action="store_true", help="measure the loader alone")
    parser.add_argument("--recordings", type=int, default=480, help="of the job for one and for two workers")
    args = parser.parse_args()
    with folder() as root:
        for gop in (30, 250):
            bench_loader(make_raw(root / f"long{gop}", 1, LONG, gop), root / f"loader{gop}", f"GOP {gop}", 120)
            if args.loader:
                continue
            raw = make_raw(root / f"gop{gop}", 24, args.frames, gop)
            if gop == 250:
                bench_conversion(raw, 24 * args.frames, root)
                bench_memory(raw, root)
                bench_two_workers(args.recordings, args.frames, root)
        if not args.loader:
            bench_scale(root)


if __name__ == "__main__":
    main()
