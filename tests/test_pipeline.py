"""All of it once, tiny: a real game recorded, converted, trained, exported, served, played, reported."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import KEY_NAMES
from p2p.agents.remote import RemoteAgent
from p2p.agents.serving import served

ARGUMENTS = ["--recordings", "3", "--updates", "6", "--episodes", "1"]


def demo(repository: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "p2p.cli", "demo", "--out", str(out), *ARGUMENTS],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.timeout(1800)
def test_a_recorded_game_becomes_a_served_policy_and_a_report(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = demo(repository, out)
    assert result.returncode == 1, result.stdout + result.stderr  # six updates are too few to play
    assert "it has not learned to play" in result.stdout, result.stdout + result.stderr

    assert len([folder for folder in (out / "raw").iterdir() if (folder / "annotation.proto").is_file()]) == 3
    assert (out / "shards" / "train" / "index.json").is_file()
    losses = [json.loads(line)["loss"] for line in (out / "training-0" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    folder = out / "seed-0"
    scores = json.loads((folder / "play.json").read_text())["summary"]
    assert [row["player"] for row in scores] == ["policy", "shuffled", "expert", "random", "blind"]
    assert scores[2]["mean"] == 2100
    assert scores[0]["mean"] >= 284  # of an untrained policy: no more can be said than that the game went on
    for name in ("report.md", "training.png", "scores.png", "keys.png", "play.mp4", "evaluation/view.html"):
        assert (folder / name).stat().st_size > 100, name

    with served(folder / "policy", seed=1) as address, closing(RemoteAgent(address)) as agent:
        for value in (0, 100, 200):
            action = agent.act(np.full((192, 192, 3), value, np.uint8), {})
            assert set(action.keys) <= set(KEY_NAMES)

    again = demo(repository, out)
    assert again.returncode == 1, again.stdout + again.stderr
    assert again.stdout.count("reused: ") == 6
