"""Real recordings, a real stream and a real policy, all small: what the commands are tested on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from p2p.actions import Action
from p2p.config import SamplingConfig
from p2p.model import Policy, save_policy
from p2p.recording import RecordingWriter
from tests.tiny import tiny_config

NUM_TIMESTEPS = 20
NUM_FRAMES = 95
CONFIG = tiny_config(num_timesteps=NUM_TIMESTEPS, sampling=SamplingConfig(mouse_sampling="mean"))


def record(folder: Path, name: str, seed: int, game: str = "made") -> Path:
    """A recording whose picture says what the player does: a bright left half for a, a bright right half for d."""
    rng = np.random.default_rng(seed)
    with RecordingWriter(folder / name, name, game=game) as writer:
        side = 0
        for index in range(NUM_FRAMES):
            if index % 6 == 0:
                side = int(rng.integers(0, 3))
            frame = np.full((192, 192, 3), 20, dtype=np.uint8)
            frame[:, slice(0, 96) if side == 1 else slice(96, 192)] = 20 if side == 0 else 230
            action = Action((("a",), ("d",))[side - 1] if side else (), ("0",) if side == 2 else (), 7 * side - 7, 0)
            writer.add(frame, action, None)
    return folder / name


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three recordings of one game and one of another."""
    folder = tmp_path_factory.mktemp("raw")
    for seed, (name, game) in enumerate((("a", "made"), ("b", "made"), ("c", "made"), ("z", "other"))):
        record(folder, name, seed, game)
    return folder


@pytest.fixture(scope="session")
def stream_folder(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings as a stream."""
    out = tmp_path_factory.mktemp("stream") / "stream"
    command = [sys.executable, "-m", "p2p_convert.cli", str(recordings), str(out), "--split", "val=0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "train"


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder with random weights."""
    torch.manual_seed(0)
    return save_policy(Policy(CONFIG), tmp_path_factory.mktemp("policies") / "random")
