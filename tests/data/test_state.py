"""Where a loader is in its data: the same for every kind of loader, kept in checkpoints, refused where it is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from p2p.data import GameplayDataset, collate
from tests.data.conftest import Make, open_dataset, read_all
from tests.data.making import annotation, video_bytes

OLD = {"epoch": 2, "sample_in_epoch": 8, "num_canonical_nodes": 1, "shuffle_seed": 5, "initial_physical_nodes": 1}


@pytest.fixture
def stream(make_stream: Make) -> Path:
    return make_stream({f"rec_{i}": (video_bytes(60, seed=i), annotation(60)) for i in range(4)})


def training(stream: Path) -> GameplayDataset:
    return open_dataset(stream, phase="random", shuffle=True, shuffle_seed=5, batch_size=2)


def test_epochs_count_on_whatever_loads_them(stream: Path) -> None:
    """By one process, by workers that are made anew, by more of them, and by workers that stay."""
    dataset, expected = training(stream), training(stream)
    epochs = [[(s["recording"], s["start"]) for s in expected] for _ in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    for number, num_workers in enumerate((0, 1, 2)):
        found = [(s["recording"], s["start"]) for s in read_all(dataset, num_workers, batch_size=2)]
        assert found == epochs[number]
        assert dataset.state_dict(4, True)["epoch"] == number
    staying = DataLoader(dataset, batch_size=2, num_workers=3, collate_fn=collate, persistent_workers=True, timeout=60)
    for number in (3, 4):
        found = [pair for batch in staying for pair in zip(batch["recording"], batch["start"].tolist(), strict=True)]
        assert found == epochs[number]
    dataset.load_state_dict({**dataset.state_dict(0, True), "epoch": 2, "sample_in_epoch": 6})
    found = [pair for batch in staying for pair in zip(batch["recording"], batch["start"].tolist(), strict=True)]
    assert found == epochs[2][6:]
    del staying


def test_a_state_says_how_far_the_epoch_is(stream: Path) -> None:
    dataset = training(stream)
    assert dataset.state_dict(0, True)["epoch"] == -1
    next(iter(dataset))
    assert {**dataset.state_dict(6, True), "shuffle_seed": 0} == {
        "epoch": 0,
        "sample_in_epoch": 6,
        "num_canonical_nodes": 0,
        "shuffle_seed": 0,
        "initial_physical_nodes": 2,
    }
    dataset.load_state_dict(dataset.state_dict(6, True))
    assert dataset.state_dict(4, False)["sample_in_epoch"] == 10
    assert len(list(dataset)) == 24 - 6
    assert dataset.state_dict(4, False)["sample_in_epoch"] == 10
    assert len(list(dataset)) == 24
    assert dataset.state_dict(4, False)["epoch"] == 1
    assert dataset.state_dict(4, False)["sample_in_epoch"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "that of an older version.*begin the next epoch"),
        ({"num_canonical_nodes": 0, "initial_physical_nodes": 8}, "an order of 8 chunks an update, and here 1 process"),
        ({"epoch": "2"}, "epoch of the loader's state is '2'"),
        ({"sample_in_epoch": -1, "num_canonical_nodes": 0, "initial_physical_nodes": 2}, "sample_in_epoch of the"),
    ],
)
def test_a_position_in_another_order_is_refused_in_words(stream: Path, change: dict[str, Any], message: str) -> None:
    state = {**OLD, **change, **({"sample_in_epoch": 0} if "epoch" in change else {})}
    with pytest.raises(ValueError, match=message):
        training(stream).load_state_dict(state)


def test_the_next_epoch_can_follow_one_of_an_older_version(stream: Path) -> None:
    dataset, expected = training(stream), training(stream)
    dataset.load_state_dict({**OLD, "epoch": 3, "sample_in_epoch": 0})
    expected.load_state_dict({**expected.state_dict(0, True), "epoch": 3})
    assert [(s["recording"], s["start"]) for s in dataset] == [(s["recording"], s["start"]) for s in expected]


def test_streaming_opens_the_folder_and_gives_the_columns(stream: Path) -> None:
    from streaming import StreamingDataset

    from p2p.format import COLUMNS

    dataset = StreamingDataset(local=str(stream), batch_size=1)
    assert [sample["recording"] for sample in (dataset[i] for i in range(4))] == [f"rec_{i}" for i in range(4)]
    assert dataset[0].keys() == COLUMNS.keys()
    assert dataset[0]["num_frames"] == 60


def test_a_dataset_leaves_nothing_in_shared_memory_or_beside_its_shards(stream: Path) -> None:
    def left() -> set[str]:
        """Files of this process in shared memory that have a name, and files of the stream."""
        links = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
        return {name for name in links if name.startswith("/dev/shm/") and Path(name).exists()} | set(
            map(str, stream.iterdir())
        )

    before = left()
    read_all(training(stream), num_workers=2)
    assert left() == before
