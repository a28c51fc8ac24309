"""Which chunks a recording gives, against the definition written out row by row."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p.data.chunks import epoch_generator, epoch_starts, kept_starts, last_phase

recordings = st.tuples(st.integers(0, 60), st.integers(1, 12), st.data())


def plain_starts(n: int, T: int, phase: int, system: list[bool]) -> list[int]:
    starts, s = [], phase
    while s + T + 1 <= n:
        if not all(system[s : s + T]):
            starts.append(s)
        s += T
    if s < n - 1:
        starts.append(s)
    return starts


def runs_of(system: list[bool]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.array([False, *system, False], np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def draw_system(data: st.DataObject, n: int) -> list[bool]:
    kind = data.draw(st.sampled_from(["none", "all", "long runs", "any"]))
    if kind in ("none", "all"):
        return [kind == "all"] * n
    if kind == "any":
        return data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    lengths = data.draw(st.lists(st.integers(1, 25), min_size=n, max_size=n))
    return [i % 2 == 1 for i, length in enumerate(lengths) for _ in range(length)][:n]


@settings(max_examples=300, deadline=None)
@given(recordings)
def test_kept_starts_equal_the_definition(drawn: tuple[int, int, st.DataObject]) -> None:
    n, T, data = drawn
    system = draw_system(data, n)
    phase = data.draw(st.integers(0, last_phase(n, T)))
    assert kept_starts(n, T, runs_of(system), phase).tolist() == plain_starts(n, T, phase, system)


@settings(max_examples=300, deadline=None)
@given(recordings)
def test_an_epoch_has_as_many_chunks_at_every_phase(drawn: tuple[int, int, st.DataObject]) -> None:
    n, T, data = drawn
    system = draw_system(data, n)
    phase = data.draw(st.integers(0, last_phase(n, T)))
    starts = epoch_starts(n, T, runs_of(system), phase, np.random.default_rng(0)).tolist()
    assert len(starts) == len(plain_starts(n, T, 0, system))
    assert starts == sorted(starts)
    usual = plain_starts(n, T, phase, system)
    if len(usual) <= len(starts):
        assert set(usual) <= set(starts)
    else:
        assert set(starts) <= set(usual)
    for start in starts:
        assert 0 <= start < n - 1
        assert start + T + 1 > n or not all(system[start : start + T])


def test_phases_are_uniform_and_every_step_is_a_target_over_epochs() -> None:
    n, T = 57, 10
    phases, seen = np.zeros(T, int), np.zeros(n - 1, int)
    for epoch in range(600):
        generator = epoch_generator(1, epoch, "recording")
        phase = int(generator.integers(0, last_phase(n, T), endpoint=True))
        phases[phase] += 1
        for start in epoch_starts(n, T, [], phase, generator):
            seen[start : start + T] += 1
    assert phases.min() > 30
    assert phases.max() < 100
    assert seen.min() > 100


def test_the_draw_hangs_on_seed_epoch_and_recording() -> None:
    draws = {
        (seed, epoch, name): epoch_generator(seed, epoch, name).integers(1 << 60)
        for seed in (0, 1)
        for epoch in (0, 1)
        for name in ("a", "b")
    }
    assert len(set(draws.values())) == 8
    assert epoch_generator(1, 1, "b").integers(1 << 60) == draws[1, 1, "b"]
