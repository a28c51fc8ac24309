"""Time the model alone, with a full cache: until the answer, and the rest of the step."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from p2p.console import aligned
from p2p.model import Policy


def time_steps(
    policy: Policy, num_steps: int, seed: int | None = None, progress: Callable[[int], None] = lambda _: None
) -> str:
    """Fill the cache, then time `num_steps` frames of noise; returns a table.

    Args:
        progress: told after each frame how many there have been; there will be `num_timesteps` more than `num_steps`.

    Raises:
        ValueError: when `num_steps` is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"--steps is {num_steps}; write 1 or more")
    config = policy.config
    session = policy.session(seed)
    shape = (config.frame_height, config.frame_width, 3)
    frames = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    times = np.zeros((num_steps, 5))
    num_before = config.num_timesteps
    for index in range(-num_before, num_steps):
        begin = time.perf_counter()
        session.act(frames[index % len(frames)])
        answered = time.perf_counter()
        session.finish_step()
        end = time.perf_counter()
        timing = session.last_timing
        if index >= 0:
            parts = (answered - begin, timing.model_s, timing.sampling_s, end - answered)
            times[index] = [*(1000 * part for part in parts), timing.num_passes]
        progress(num_before + index + 1)
    rows = [["ms", "p50", "p95", "p99", "max"]]
    names = ("until the answer", "  transformer", "  decoder", "after the answer", "decoder passes")
    for name, column in zip(names, times.T, strict=True):
        values = (*np.percentile(column, [50, 95, 99]), column.max())
        rows.append([name, *(f"{value:.2f}" for value in values)])
    return f"{aligned(rows)}\n{num_steps} frames with {num_before} before them in the cache"
