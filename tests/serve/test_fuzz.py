"""A short run of the fuzzer; `make fuzz` is the long one."""

from __future__ import annotations

from tests.benchmarks.fuzz_protocol import ATTACKS, fuzz_parsers, fuzz_server


def test_mutated_messages_give_messages_or_value_errors() -> None:
    outcomes = fuzz_parsers(20_000, seed=1)
    assert outcomes.total() == 20_000
    assert min(outcomes[name] for name in ("length refused", "message refused", "understood as frame")) > 100


def test_after_every_kind_of_bad_client_the_next_good_one_is_served() -> None:
    outcomes = fuzz_server(4 * len(ATTACKS), seed=2)
    assert outcomes["good client served"] == 3
