"""Progress along the way of a level, over what has to be done first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p2p.levels.progress import Progress, Yardstick
from p2p.levels.route import Planner
from p2p.levels.wad import read_level
from tests.levels.test_route import CORRIDOR, DOORWAY, EXIT, EXIT_SWITCH, FACE, HALL, RED_DOOR, RED_KEY
from tests.levels.tiny_wad import tiny_wad


@pytest.fixture
def locked(tmp_path: Path) -> Yardstick:
    """A hall with the start in the west and a red key beyond it, a red door in the east, the exit behind it."""
    hall = replace(HALL, corners=[(-1000, 0), (-1000, 256), *HALL.corners[2:]])
    path = tmp_path / "tiny.wad"
    specials = {FACE: (RED_DOOR, 0), EXIT: (EXIT_SWITCH, 0)}
    path.write_bytes(tiny_wad([hall, DOORWAY, CORRIDOR], (0, 128), specials, [(-904, 128, RED_KEY)]))
    return Yardstick(Planner(read_level(path, "MAP01")))


def test_the_way_leads_over_the_key(locked: Yardstick) -> None:
    assert [leg.target.kind for leg in locked.legs] == ["take", "use"]
    assert locked.length == pytest.approx(904 - 24 + 880 + 512 - 40, abs=24)
    assert locked.way()[0] == (0, 128)


def test_progress_counts_the_way_in_its_order_and_never_falls(locked: Yardstick) -> None:
    closed = locked.planner.beginning
    progress = Progress(locked)
    assert progress.update(0, 128, closed) == pytest.approx(0, abs=0.01)
    assert progress.update(200, 128, closed) < 0.02, "near the exit as the crow flies, but without the key"
    half = progress.update(-480, 128, closed)
    assert half == pytest.approx(480 / locked.length, abs=0.02)
    assert progress.update(0, 128, closed) == half, "the largest share counts"
    with_key = replace(closed, keys=frozenset({"red"}))
    assert progress.update(-880, 128, with_key) == pytest.approx(880 / locked.length, abs=0.03)
    assert progress.update(200, 128, with_key) > 0.8
    opened = replace(with_key, ceiling=np.array([128, 124, 128]))
    assert 0.99 < progress.update(470, 128, opened) < 1, "only the engine knows that the level has ended"
    assert progress.finish() == 1


def test_a_place_outside_the_map_changes_nothing(locked: Yardstick) -> None:
    progress = Progress(locked)
    before = progress.update(-480, 128, locked.planner.beginning)
    assert progress.update(1e6, 1e6, locked.planner.beginning) == before
