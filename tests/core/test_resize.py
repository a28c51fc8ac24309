"""The resize that training and serving share: bit for bit the reference's, and quick enough for a live frame."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from p2p.data.resize import resize
from p2p.recording import read_frames

SIZES = ["1920x1080", "1280x720", "640x480", "800x1200", "192x192"]
LIMIT_MS = 3.0


@pytest.mark.parametrize("name", SIZES)
def test_resize_is_bit_exact(shared_fixtures: Path, name: str) -> None:
    folder = shared_fixtures / "resize_case"
    (source,) = read_frames(folder / f"src_{name}.png")
    with np.load(folder / "expected.npz") as expected:
        np.testing.assert_array_equal(resize(source, 192, 192), expected[f"{name}.rust_interpolation_hamming"])


def test_a_frame_of_the_right_size_is_returned_as_it_is() -> None:
    frame = np.zeros((192, 192, 3), dtype=np.uint8)
    assert resize(frame, 192, 192) is frame


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2), (191, 193), (2000, 7)])
@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_a_plain_colour_stays_what_it_is(shape: tuple[int, int], value: int) -> None:
    frame = np.full((*shape, 3), value, dtype=np.uint8)
    assert (resize(frame, 192, 192) == value).all()


@pytest.mark.parametrize("shape", [(1, 11_000_000), (11_000_000, 1), (3, 3_000_000), (3300, 3300)])
def test_a_frame_of_any_proportions_takes_little_memory(shape: tuple[int, int]) -> None:
    frame = np.zeros((*shape, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        assert resize(frame, 192, 192).shape == (192, 192, 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_rows_and_columns_are_not_mixed_up() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    wide, tall = resize(frame, 300, 100), resize(frame.swapaxes(0, 1).copy(), 100, 300)
    np.testing.assert_array_equal(wide, tall.swapaxes(0, 1))


def test_a_full_hd_frame_is_quick() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    durations = []
    for _ in range(40):
        begin = time.thread_time()
        resize(frame, 192, 192)
        durations.append((time.thread_time() - begin) * 1000)
    assert min(durations) < LIMIT_MS


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((0, 5, 3), dtype=np.uint8),
        np.zeros((5, 5), dtype=np.uint8),
        np.zeros((5, 5, 3), dtype=np.float32),
    ],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot resize a frame of type"):
        resize(frame, 192, 192)
