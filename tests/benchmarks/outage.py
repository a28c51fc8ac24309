"""Every client of object storage through an outage. `python tests/benchmarks/outage.py [--seconds 30 60 0]`

Each client works on a real S3 server through a proxy that fails 5 % of the requests. In its midst the proxy refuses
connections, or takes requests and never answers, for so many seconds (0: for good). All clients run at once, each
with a proxy of its own; one line each says how long it took after the outage began, and what came of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.object_storage import ObjectFolder
from tests.data.faulty_proxy import REFUSE, STALL, FaultyProxy
from tests.data.making import annotation, tree_digest, video_bytes, write_recording
from tests.s3 import S3Server

Begin = Callable[[], None]
ROOT = Path(__file__).parent.parent.parent
BUCKET = "outage"


def convert_recordings(folder: Path, prefix: str, begin: Begin) -> None:
    from p2p_convert.plan import Options
    from p2p_convert.run import convert

    convert([folder.parent / "raw"], f"s3://{BUCKET}/{prefix}", Options(), 2, progress=lambda *_: begin())
    objects = ObjectFolder(f"s3://{BUCKET}/{prefix}")
    for name in objects.list():
        objects.download(name, folder / "out" / name, 1 << 30)
    assert tree_digest(folder / "out") == tree_digest(folder.parent / "shards", leave_out=["lock"])


def load_shards(folder: Path, prefix: str, begin: Begin) -> None:
    from torch.utils.data import DataLoader

    from p2p.data import collate
    from tests.data.conftest import open_dataset, read_all

    dataset = open_dataset(folder, local=str(folder / "cache"), remote=f"s3://{BUCKET}/shards/train")
    begin()
    batches = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=collate)  # without a limit of its own
    loaded = {key for batch in batches for key in zip(batch["recording"], batch["start"].tolist(), strict=True)}
    local = open_dataset(folder.parent / "shards" / "train")
    assert loaded == {(s["recording"], s["start"]) for s in read_all(local)}


def move_checkpoint(folder: Path, prefix: str, begin: Begin) -> None:
    """Three parts up, listed, and down again; the outage begins with the upload."""
    objects, content = ObjectFolder(f"s3://{BUCKET}/{prefix}"), os.urandom(20 << 20)
    (folder / "up").write_bytes(content)
    objects.write("before", b"")
    begin()
    objects.upload(folder / "up", "step-00000001/shard")
    assert len(objects.list("step-")) == 1
    objects.download("step-00000001/shard", folder / "down", 1 << 30)
    assert (folder / "down").read_bytes() == content


def watch_validation(folder: Path, prefix: str, begin: Begin) -> None:
    from p2p.checkpoints.finding import bring, find_checkpoints

    store = ObjectFolder(f"s3://{BUCKET}/{prefix}")
    for name in ("model.safetensors", "config.yaml"):
        store.write(f"step-1/{name}", b"content")
    begin()
    (found,) = find_checkpoints(store)
    assert {path.name for path in bring(store, found, folder).iterdir()} == {"model.safetensors", "config.yaml"}


def train(folder: Path, prefix: str, begin: Begin) -> None:
    """`composer launch` from shards in the store; the outage begins after the second update."""
    from tests.train.conftest import SMALL_RUN

    composer = str(Path(sys.executable).with_name("composer"))
    command = [composer, "launch", "recipes/doom-tiny.yaml", *SMALL_RUN, f"run_folder={folder}", "max_duration=12ba"]
    command += [f"data.train=s3://{BUCKET}/shards/train", "data.val=null", "data.cache_limit=1200kb"]
    command += ["data.prefetch_factor=1", f"save_folder=s3://{BUCKET}/{prefix}", "save_interval=3ba"]
    metrics = folder / "metrics.jsonl"
    with open(folder / "log", "wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        while run.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 2):
            time.sleep(0.1)
        begin()
        status = run.wait()
    lines = (folder / "log").read_text().splitlines()
    errors = [line for line in lines if "error: " in line] or lines[-3:]
    if status:
        raise ValueError(f"exit status {status}: {errors[0]}")
    assert metrics.read_text().count("\n") == 12


CLIENTS = {
    "convert": convert_recordings,
    "load": load_shards,
    "checkpoint": move_checkpoint,
    "validate": watch_validation,
    "train": train,
}


DONE = {
    "convert": "the bytes of an undisturbed conversion",
    "load": "the chunks of the local shards, each once",
    "checkpoint": "came back as it was",
    "validate": "listed and fetched",
    "train": "all updates",
}


def one_client(name: str, kind: str, seconds: float, root: Path) -> None:
    """Run a client in this process and print what came of it."""
    logging.getLogger("p2p").addHandler(logging.NullHandler())
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
    proxy = FaultyProxy(os.environ["S3_ENDPOINT_URL"], failing_share=0.05)
    os.environ["S3_ENDPOINT_URL"] = proxy.address
    began: list[float] = []

    def begin() -> None:
        if not began:
            proxy.outage(seconds or 1e6, kind)
            began.append(time.monotonic())

    try:
        CLIENTS[name](folder, folder.name, begin)
        result = f"done: {DONE[name]}"
    except Exception as error:  # noqa: BLE001 (whatever it was is what came of it)
        result = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    took_s = time.monotonic() - began[0] if began else 0.0
    told = f"{kind} {seconds:.0f} s" if seconds else f"{kind} for good"
    print(f"{told:>16}  {name:<10} {took_s:>6.1f} s  {proxy.num_failed:>3} requests failed  {result}", flush=True)
    os._exit(0)  # what waits for the proxy waits for ever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 60.0, 0.0])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, kind, seconds, folder = json.loads(args.one)
        one_client(name, kind, seconds, Path(folder))
    root = Path(tempfile.mkdtemp(prefix="p2p-outage-"))
    server = S3Server(root)
    try:
        prepare(root, server)
        environment = os.environ | server.environment | {"PYTHONWARNINGS": "ignore"}
        for seconds in args.seconds:
            orders = [(name, kind, seconds, str(root)) for kind in (REFUSE, STALL) for name in args.clients]
            commands = [[sys.executable, __file__, "--one", json.dumps(order)] for order in orders]
            running = [subprocess.Popen(c, env=environment, stderr=subprocess.DEVNULL) for c in commands]
            for process in running:
                process.wait()
    finally:
        server.close()
        shutil.rmtree(root)


def prepare(root: Path, server: S3Server) -> None:
    """Recordings, and their shards in a folder and in the store."""
    from p2p_convert.plan import Options
    from p2p_convert.run import convert

    video = video_bytes(21)
    for number in range(96):
        write_recording(root / "raw" / f"rec_{number:03}", video, annotation(21, seed=number))
    convert([root / "raw"], root / "shards", Options())
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for path in (root / "shards").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, path.relative_to(root).as_posix())


if __name__ == "__main__":
    main()
