"""Marks, percentiles and the picture of latencies."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_serve.app import AppOptions
from p2p_serve.latency import STAGES, LatencyLog, Marks, colour_of


def marks(**ends_ms: float) -> Marks:
    result = Marks(0.0)
    for stage, end_ms in ends_ms.items():
        result.end(stage, end_ms / 1000)
    return result


def test_stages_are_differences_and_an_unmarked_one_took_no_time() -> None:
    row = marks(receive=1, decode=3, model=10, send=10.5).durations_ms()
    assert dict(zip((*STAGES, "total"), [round(value, 6) for value in row], strict=True)) == {
        "receive": 1,
        "decode": 2,
        "queue": 0,
        "resize": 0,
        "model": 7,
        "sampling": 0,
        "send": 0.5,
        "total": 10.5,
    }


def test_percentiles_and_counts() -> None:
    log = LatencyLog()
    for number in range(1, 101):
        log.add(marks(send=float(number)))
    log.num_dropped = 3
    total = log.statistics()[-1]
    assert (total.name, total.max) == ("total", 100)
    assert total.p50 == pytest.approx(50.5)
    assert total.p99 == pytest.approx(99.01, abs=0.01)
    assert log.summary() == "answered 100 · dropped 3 · green 50.0%, amber 10.0%, red 40.0%"


def test_memory_stays_flat_and_the_maximum_is_never_forgotten() -> None:
    log = LatencyLog(capacity=10)
    for number in range(100, 0, -1):
        log.add(marks(send=float(number)))
    assert log.rows.shape == (10, len(STAGES) + 1)
    assert log.rows[:, -1].tolist() == pytest.approx(list(range(10, 0, -1)))
    assert log.statistics()[-1].max == 100
    assert log.num_answered == 100


def test_a_session_without_an_answer_has_a_report_too(tmp_path: Path) -> None:
    log = LatencyLog()
    assert "answered 0" in log.report()
    log.write_png(tmp_path / "latency.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "colour"), [(50.0, "green"), (50.1, "amber"), (60.0, "amber"), (60.1, "red")])
def test_colours(value: float, colour: str) -> None:
    assert colour_of(value) == colour
    log = LatencyLog()
    log.add(marks(send=value))
    assert log.report().splitlines()[-2].split() == [colour] * 4


def test_the_picture_is_a_png_under_its_final_name_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = LatencyLog()
    for number in range(80):
        log.add(marks(receive=1.0, model=20.0 + number, send=21.0 + number))
    log.write_png(tmp_path / "latency.png")
    assert [path.name for path in tmp_path.iterdir()] == ["latency.png"]
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_the_stages_of_the_picture_add_up_to_the_total() -> None:
    log = LatencyLog()
    for number in range(1, 201):  # a stage that is slow when another is quick
        model = 10.0 + 30.0 * (number % 2)
        log.add(marks(receive=40.0 - model, model=40.0, send=40.0 + number))
    total = log.rows[:, -1]
    (_, everything), (_, slowest) = log.parts()
    assert everything.sum() == pytest.approx(total.mean())
    assert slowest.sum() == pytest.approx(sorted(total)[-2:][0] / 2 + total.max() / 2)


@pytest.mark.parametrize("place", ["missing/latency.png", "."])
def test_a_picture_that_could_not_be_written_is_refused_before_the_play(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match=r"make it, or name another|is a folder; name the file"):
        AppOptions(None, latency_png=tmp_path / place)


def test_the_log_grows_to_its_capacity_and_no_further() -> None:
    log = LatencyLog(capacity=1000)
    for number in range(2500):
        log.add(marks(send=float(number)))
    assert log.rows.shape == (1000, len(STAGES) + 1)
    assert log.rows[:, -1].tolist() == pytest.approx(list(range(1500, 2500)))
