"""Which chunks a recording gives: starts, phases, and the slots of an epoch (pure functions on numbers).

A recording of n frames has n - 1 steps. A chunk is T consecutive steps; with start s it holds the frames
s .. s + T - 1. Chunks start at phase, phase + T, ... while s + T + 1 <= n; what remains is a padded tail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from p2p.format.recordings import Lists

Runs = Sequence[tuple[int, int]]  # half-open ranges of rows, ascending and apart
Starts = NDArray[np.int64]


def last_phase(num_frames: int, num_timesteps: int) -> int:
    """The largest phase of a recording; training draws uniformly from 0 to it, both included."""
    return min(max(0, num_frames - num_timesteps - 1), num_timesteps - 1)


def all_starts(num_frames: int, num_timesteps: int, phase: int) -> Starts:
    """Starts of the full chunks and of the tail, in order: every multiple of T after the phase with a step left."""
    return np.arange(phase, num_frames - 1, num_timesteps, dtype=np.int64)


def is_dropped(starts: Starts, num_frames: int, num_timesteps: int, system_runs: Runs) -> NDArray[np.bool_]:
    """Which chunks hold system actions only; a padded tail has other rows and is never among them."""
    if not system_runs:
        return np.zeros(len(starts), np.bool_)
    begins, ends = np.array(system_runs, np.int64).T
    run = np.searchsorted(begins, starts, side="right") - 1
    covered = (run >= 0) & (ends[run] >= starts + num_timesteps)
    return covered & (starts + num_timesteps + 1 <= num_frames)


def kept_starts(num_frames: int, num_timesteps: int, system_runs: Runs, phase: int = 0) -> Starts:
    """Starts of the chunks that a phase gives, dropped ones left out, in order."""
    starts = all_starts(num_frames, num_timesteps, phase)
    return starts[~is_dropped(starts, num_frames, num_timesteps, system_runs)]


def count_kept(num_frames: NDArray[np.int32], num_timesteps: int, system_runs: Lists) -> NDArray[np.int64]:
    """How many `kept_starts` each of many recordings has at phase 0: int64 [n] of num_frames [n] and runs [k, 2]."""
    frames, T = num_frames.astype(np.int64), num_timesteps
    steps = np.maximum(frames - 1, 0)
    begins, ends = system_runs.values.astype(np.int64).T
    owner = np.repeat(np.arange(len(frames)), system_runs.counts)
    last = (np.minimum(ends, steps[owner]) - T) // T  # the last multiple of T whose chunk the run covers, in T
    dropped = np.maximum(last - -(-begins // T) + 1, 0)
    return -(-steps // T) - np.bincount(owner, weights=dropped, minlength=len(frames)).astype(np.int64)


def epoch_generator(seed: int, epoch: int, recording: str) -> np.random.Generator:
    """The random numbers of one recording in one epoch, whatever the process, the worker or the other recordings."""
    digest = hashlib.blake2b(recording.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest, "little")])


def epoch_starts(
    num_frames: int, num_timesteps: int, system_runs: Runs, phase: int, generator: np.random.Generator
) -> Starts:
    """Starts of a recording's slots in one epoch, in order; as many as phase 0 gives, whatever the phase.

    Trainers need epochs of one length, but another phase can give more or fewer chunks. Of more, some are left
    out at random. For the missing ones comes first the chunk that starts at 0, the frames that this phase skips,
    then full chunks from anywhere in the recording that hold more than system actions.
    """
    num_slots = len(kept_starts(num_frames, num_timesteps, system_runs))
    starts = kept_starts(num_frames, num_timesteps, system_runs, phase)
    if len(starts) > num_slots:
        return np.sort(generator.choice(starts, num_slots, replace=False))
    missing = num_slots - len(starts)
    if missing == 0:
        return starts
    anywhere = np.arange(max(1, num_frames - num_timesteps), dtype=np.int64)
    anywhere = anywhere[~is_dropped(anywhere, num_frames, num_timesteps, system_runs)]
    if not len(anywhere):  # only the tail holds more than system actions
        anywhere = kept_starts(num_frames, num_timesteps, system_runs)
    drawn = generator.choice(anywhere, missing)
    if anywhere[0] == 0 and phase > 0:
        drawn[0] = 0
    return np.sort(np.concatenate([starts, drawn]))
