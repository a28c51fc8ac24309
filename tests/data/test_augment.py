"""Augmentation: one draw per chunk, repeatable, and each step what it claims to be."""

from __future__ import annotations

import pytest
import torch

from p2p.data.augment import (
    Draw,
    augment,
    augment_chunk,
    draw,
    gaussian_kernel,
    motion_kernel,
    move,
    sharpen,
    turn_hue,
)

NOTHING = Draw(0.0, None, None, None, None, None, None, None)


def random_frames(num_chunks: int, num_timesteps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (num_chunks, num_timesteps, 3, 8, 8), generator=generator).float()
    return coarse.repeat_interleave(8, -1).repeat_interleave(8, -2).to(torch.uint8)


def test_all_frames_of_a_chunk_get_the_same_and_chunks_differ() -> None:
    frames = random_frames(1, 1).expand(6, 3, -1, -1, -1)
    torch.manual_seed(0)
    result = augment(frames)
    assert result.shape == frames.shape
    assert result.dtype == torch.uint8
    for chunk in result:
        assert torch.equal(chunk[0], chunk[1])
        assert torch.equal(chunk[0], chunk[2])
    assert len({tuple(chunk.flatten().tolist()) for chunk in result}) == 6


def test_the_same_seed_gives_the_same_frames() -> None:
    frames = random_frames(8, 2)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augment(frames))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_steps_happen_as_often_as_stated_and_within_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [draw(generator) for _ in range(4000)]
    shares = {"translation": 0.25, "jitter": 0.25, "planck": 0.25, "iso": 0.1, "gaussian": 0.1, "motion": 0.1}
    shares["sharpness"] = 0.15
    for name, share in shares.items():
        happened = sum(getattr(d, name) is not None for d in draws) / len(draws)
        assert happened == pytest.approx(share, abs=0.025), name
    assert all(-3 <= d.rotation_deg <= 3 for d in draws)
    assert {d.planck for d in draws} == {None, 0, 1, 2, 3}
    assert {d.gaussian[0] for d in draws if d.gaussian} == {3, 5, 7}
    assert all(0.5 <= d.sharpness <= 1.5 for d in draws if d.sharpness is not None)
    assert all(0 <= value <= 0.2 for d in draws if d.jitter for value in d.jitter)
    assert all(d.gaussian is None or d.motion is None for d in draws)


def test_the_empty_draw_changes_nothing() -> None:
    frames = random_frames(1, 2)[0]
    assert torch.equal(augment_chunk(frames, NOTHING), frames)


def test_rotation_and_translation_go_where_they_should() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20, 30] = 1.0  # right of the centre
    assert move(image, 0.0, 0.1)[0, 0].argmax() == 20 * 40 + 34
    quarter = move(image, 90.0, 0.0)[0, 0]
    row, column = divmod(int(quarter.argmax()), 40)
    assert abs(column - 20) <= 1
    assert abs(abs(row - 20) - 10) <= 1


def test_turning_the_hue_by_a_third_swaps_colours_and_leaves_grey() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(turn_hue(red, torch.tensor(1 / 3)).flatten(), torch.tensor([0.0, 1.0, 0.0]))
    grey = torch.full((1, 3, 1, 1), 0.4)
    torch.testing.assert_close(turn_hue(grey, torch.tensor(0.17)), grey)


def test_kernels_keep_the_brightness_and_sharpness_1_keeps_the_image() -> None:
    for size in (3, 5, 7):
        assert float(gaussian_kernel(size, 1.3).sum()) == pytest.approx(1)
        for angle in (0.0, 45.0, 90.0, 137.0):
            kernel = motion_kernel(size, angle)
            assert float(kernel.sum()) == pytest.approx(1)
            assert float(kernel[size // 2, size // 2]) > 0
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(sharpen(image, 1.0), image)
    assert float(sharpen(image, 0.5).std()) < float(image.std()) < float(sharpen(image, 1.5).std())


def test_bright_values_are_clamped_and_do_not_wrap() -> None:
    white = torch.full((2, 3, 16, 16), 250, dtype=torch.uint8)
    bright = augment_chunk(white, Draw(0.0, None, (0.2, 0.0, 0.0, 0.0), None, None, None, None, None))
    assert int(bright.min()) == 255
