"""A short run of what `make fuzz` runs for minutes: every reader takes its good inputs and refuses what is broken."""

from __future__ import annotations

import random

import pytest

from tests.benchmarks.fuzz_readers import one_of
from tests.benchmarks.fuzz_targets import TARGETS, mutate_bytes


@pytest.mark.parametrize("reader", sorted(TARGETS))
def test_a_reader_takes_good_inputs_and_ends_with_a_value_or_a_clear_error_on_others(reader: str) -> None:
    target, rng = TARGETS[reader], random.Random(0)
    seeds = target.seeds()
    assert one_of(target, seeds[0])
    mutate = target.mutator or mutate_bytes
    outcomes = [one_of(target, mutate(seeds[number % len(seeds)], rng)) for number in range(150)]
    assert not all(outcomes), "no mutation was refused: the reader checks nothing"
