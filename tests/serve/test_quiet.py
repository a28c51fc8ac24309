"""A flood of lines stays a few lines."""

from __future__ import annotations

import logging

import pytest

from p2p_serve.quiet import QuietLog


def test_a_burst_passes_then_a_few_a_second_and_what_was_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    say = QuietLog(logging.getLogger("test"), clock=lambda: now[0])
    for number in range(1000):
        say.info("line %d", number)
    assert [record.getMessage() for record in caplog.records] == [f"line {number}" for number in range(100)]
    now[0] += 1.0
    for number in range(1000, 1010):
        say.warning("line %d", number)
    messages = [record.getMessage() for record in caplog.records[100:]]
    assert messages == ["line 1000 (900 lines before this one were left out)", "line 1001"]
