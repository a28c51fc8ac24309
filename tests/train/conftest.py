"""Shards to train on, and a quick way to start training runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.zygote import Zygote

# Seven updates an epoch on 450 frames; no dropout, so that any number of processes gives the same losses.
SMALL_RUN = [
    "global_batch=4",
    "policy.dim=32",
    "policy.num_timesteps=16",
    "policy.attention_history=8",
    "policy.dropout=0",
    "schedule={shape: constant, warmup: 3}",
    "data.num_workers=1",
    "data.corruption={}",
    "eval.max_batches=1",
]


@pytest.fixture(scope="session")
def shards(shared_fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted recordings: val/ holds 28 chunks of 16 steps, train/ 16."""
    from p2p_convert.cli import main

    out = tmp_path_factory.mktemp("shards")
    assert main([str(shared_fixtures / "data_case" / "dataset"), str(out), "--split", "val=0.3"]) == 0
    return out


@pytest.fixture(scope="session")
def small_run(shards: Path) -> Callable[..., list[str]]:
    """Arguments of a run of the small recipe in a folder: small_run(folder, *overrides)."""

    def arguments(folder: Path, *overrides: str) -> list[str]:
        data = [f"data.train={shards / 'val'}", f"data.val={shards / 'train'}"]
        return ["recipes/doom-tiny.yaml", *data, f"run_folder={folder}", *SMALL_RUN, *overrides]

    return arguments


@pytest.fixture(scope="session")
def zygote(repository: Path) -> Iterator[Zygote]:
    zygote = Zygote(repository)
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], dict[int, dict[str, Any]]]:
    """metrics.jsonl by step; a step that stands in it twice is an error. A torn last line is left out."""

    def read(folder: Path) -> dict[int, dict[str, Any]]:
        path = folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        entries = [json.loads(line) for line in lines]
        assert len({entry["step"] for entry in entries}) == len(entries), f"{path}: a step stands there twice"
        return {entry["step"]: entry for entry in entries}

    return read
