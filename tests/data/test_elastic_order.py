"""An epoch that is left off goes on in the same order with any number of processes and workers."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

from torch import distributed

from p2p.data import GameplayDataset
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.making import annotation, video_bytes

GLOBAL_BATCH = 4
Batches = list[list[tuple[str, int]]]


def epoch(stream: Path, world: int, num_workers: int, state: dict[str, Any] | None, folder: Path) -> Batches:
    """The rest of the epoch, each global batch in order of ids, as so many real processes load it."""
    folder.mkdir()
    children = []
    for rank in range(world):
        pid = os.fork()  # no exec: importing torch again would take longer than the test
        if pid == 0:
            status = 1
            try:
                _be_rank(stream, rank, world, num_workers, state, folder)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * world
    parts = [json.loads((folder / f"rank_{rank}").read_text()) for rank in range(world)]
    size = GLOBAL_BATCH // world
    return [
        sorted((recording, start) for part in parts for recording, start in part[first : first + size])
        for first in range(0, len(parts[0]), size)
    ]


def _be_rank(stream: Path, rank: int, world: int, num_workers: int, state: dict[str, Any] | None, folder: Path) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(number) for name, number in numbers.items()}, GLOO_SOCKET_IFNAME="lo")
    if world > 1:
        address = f"file://{folder / 'rendezvous'}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    dataset = make_dataset(stream, GLOBAL_BATCH // world)
    if state is not None:
        dataset.load_state_dict(state)
    samples = read_all(dataset, num_workers, GLOBAL_BATCH // world)
    (folder / f"rank_{rank}").write_text(json.dumps([(s["recording"], s["start"]) for s in samples]))


def make_dataset(stream: Path, batch_size: int) -> GameplayDataset:
    return open_dataset(stream, phase="random", shuffle=True, shuffle_seed=5, batch_size=batch_size)


def test_the_rest_of_an_epoch_is_the_same_for_any_number_of_processes_and_workers(
    make_stream: Make, tmp_path: Path
) -> None:
    stream = make_stream({f"rec_{i}": (video_bytes(60, seed=i), annotation(60)) for i in range(4)})
    undisturbed = epoch(stream, 1, 0, None, tmp_path / "undisturbed")
    assert len(undisturbed) == 6
    assert epoch(stream, 2, 2, None, tmp_path / "two") == undisturbed
    dataset = make_dataset(stream, GLOBAL_BATCH)
    _ = [sample for sample, _ in zip(iter(dataset), range(2 * GLOBAL_BATCH), strict=False)]
    state = dataset.state_dict(num_samples=2 * GLOBAL_BATCH, from_beginning=True)
    for world, num_workers in ((1, 3), (2, 1), (4, 2)):
        assert epoch(stream, world, num_workers, state, tmp_path / f"{world}_{num_workers}") == undisturbed[2:]
