"""The order of an epoch: every chunk once, batches of different recordings, lanes that stay with one worker."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.data.order import LANES_PER_CHUNK, Order, Walk, join_walks, make_walk


def made(counts: list[int], global_batch: int, seed: int = 0, choose: int | None = None) -> Order:
    generator = np.random.default_rng(seed)
    shards = np.arange(len(counts)) // 3
    walk = make_walk(np.array(counts), shards, choose or sum(counts), generator)
    return Order(walk, global_batch, generator)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(any),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_every_chunk_stands_once_in_an_epoch(counts: list[int], global_batch: int, seed: int) -> None:
    order = made(counts, global_batch, seed)
    found = [order.find(place)[1:] for place in range(order.num_chunks)]
    assert sorted(found) == [(number, slot) for number, count in enumerate(counts) for slot in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 150), st.integers(0, 9))
def test_as_many_chunks_as_were_asked_for_each_as_often_as_another(counts: list[int], choose: int, seed: int) -> None:
    order = made(counts, 4, seed, choose)
    times = Counter(order.find(place)[1:] for place in range(order.num_chunks))
    assert times.total() == order.num_chunks == choose
    least = choose // sum(counts)
    assert set(times.values()) <= {least, least + 1}


@pytest.mark.parametrize(("num_recordings", "global_batch"), [(30, 16), (200, 16), (2000, 80), (44, 8)])
def test_no_batch_holds_two_chunks_of_one_recording(num_recordings: int, global_batch: int) -> None:
    counts = np.random.default_rng(1).integers(20, 35, num_recordings).tolist()
    order = made(counts, global_batch)
    for begin in range(0, order.num_chunks - global_batch, global_batch):
        recordings = [order.find(place)[1] for place in range(begin, begin + global_batch)]
        assert len(set(recordings)) == global_batch


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 6, 8, 12, 24])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_worker_moves_through_its_recordings_from_front_to_back(num_workers: int, num_ranks: int) -> None:
    """But for the beginning and the turn of each lane."""
    global_batch = 8
    order = made([27] * 150, global_batch)
    latest: dict[tuple[int, int, int], tuple[int, int]] = {}
    seeks = 0
    for place in range(order.num_chunks):
        batch, row = divmod(place, global_batch)
        lane, recording, slot = order.find(place)
        key = (row * num_ranks // global_batch, batch % num_workers, lane)
        if slot and latest.get(key) != (recording, slot - 1):
            seeks += 1
        latest[key] = (recording, slot)
    assert len(latest) == order.num_lanes == LANES_PER_CHUNK * global_batch  # no lane is shared by two workers
    assert seeks <= 2 * order.num_lanes


def test_a_process_reads_a_stretch_of_the_walk_and_lanes_show_all_parts_of_recordings_at_once() -> None:
    """So that shards are used by few processes, and beginnings and ends of recordings come mixed."""
    num_ranks, global_batch, num_recordings = 4, 8, 192
    order = made([24] * num_recordings, global_batch)
    recordings = defaultdict(set)
    first_round = []
    for place in range(order.num_chunks):
        _, recording, slot = order.find(place)
        recordings[place % global_batch * num_ranks // global_batch].add(recording)
        if place < order.num_lanes:
            first_round.append(slot)
    shared = sum(map(len, recordings.values())) - num_recordings
    assert 0 <= shared < num_ranks
    assert np.quantile(first_round, [0.1, 0.5, 0.9]) == pytest.approx([2, 11.5, 21], abs=3)


def test_without_shuffle_the_order_is_that_of_the_recordings() -> None:
    walk = make_walk(np.array([3, 0, 2]), np.array([1, 0, 0]), 5, None)
    order = Order(walk, 4, None)
    assert [order.find(place) for place in range(5)] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 2, 0), (0, 2, 1)]


def test_streams_share_every_batch_by_their_sizes() -> None:
    walks = [Walk(np.arange(count), np.full(count, 10), np.zeros(count, np.int64)) for count in (30, 90)]
    order = Order(join_walks(walks, [0, 30]), 8, np.random.default_rng(0))
    for begin in range(0, order.num_chunks, 8):
        assert sum(order.find(place)[1] < 30 for place in range(begin, begin + 8)) == 2
