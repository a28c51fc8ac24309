"""`import p2p`: light, complete, and what docs/python.md and examples/ show runs as it stands."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import p2p
from p2p.actions import Action
from p2p.recording import RecordingWriter
from tests.tiny import tiny_config

REPOSITORY = Path(__file__).resolve().parent.parent
TOUR = (REPOSITORY / "docs" / "python.md").read_text()
NUM_FRAMES = 70


def run(*command: str, cwd: Path) -> str:
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "convert", REPOSITORY / "serve")))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the tour finds after `make demo`: a tiny policy, and a stream of three recordings."""
    import numpy as np

    folder = tmp_path_factory.mktemp("tour")
    for number in range(3):
        with RecordingWriter(folder / "raw" / f"r{number}", f"r{number}", game="made") as writer:
            for index in range(NUM_FRAMES):
                keys = ("w",) if index // 7 % 2 else ()
                writer.add(np.full((192, 192, 3), 230 if keys else 20, dtype=np.uint8), Action(keys), None)
    run("-m", "p2p_convert.cli", "raw", "runs/demo/shards", "--split", "val=0", cwd=folder)
    (folder / "runs/demo/shards/train").rename(folder / "runs/demo/shards/val")
    config = tiny_config(num_timesteps=16, attention_history=16)
    p2p.save_policy(p2p.Policy(config), folder / "runs/demo/seed-0/policy")
    return folder


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import p2p; print(*sorted(set(sys.modules) - before))"
    loaded = run("-S", "-c", code, cwd=tmp_path).split()
    assert "p2p" in loaded
    assert {"torch", "numpy", "streaming", "importlib.metadata"}.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith("p2p.")] == []


def test_every_public_name_is_there_explained_and_in_the_tour() -> None:
    for name in p2p.__all__:
        value = getattr(p2p, name)
        assert value.__name__ == name
        assert value.__doc__
        assert f"p2p.{name}" in TOUR, name
    assert set(p2p.__all__) <= set(dir(p2p))
    with pytest.raises(AttributeError, match="no attribute 'load_polcy'"):
        p2p.load_polcy  # type: ignore[attr-defined]  # noqa: B018


def test_the_tour_runs(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TOUR, re.DOTALL):
        exec(block, names)
    assert names["sample"]["frames"].shape == (16, 3, 48, 48)
    assert names["batch"]["actions"].shape == (2, 16, 8)
    assert names["logits"].keys.shape == (2, 16, 4, 20)
    assert names["policy"].out_token.grad is not None
    assert isinstance(names["action"], Action)
    assert p2p.load_policy("policy").config == names["config"]


def run_example(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")


def test_the_example_shows_what_was_done(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = demo / "runs/demo/shards/val"
    run_example("look_at_data.py", stream, 1, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{stream}: 3 chunks; chunk 1 is r1 from frame 0"
    assert [line.partition(";")[0] for line in lines[2:5]] == ["step 7: w", "step 14: nothing", "step 21: w"]


def test_the_example_trains_a_policy_that_can_be_opened(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("train_tiny.py", demo / "runs/demo/shards/val", tmp_path / "policy", 10, monkeypatch=monkeypatch)
    losses = [float(number) for number in re.findall(r"loss ([0-9.]+)", capsys.readouterr().out)]
    assert len(losses) >= 10
    assert losses[-1] < losses[0] / 2
    assert p2p.load_policy(tmp_path / "policy").config.num_timesteps == 16


def test_the_example_lets_a_policy_act(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vizdoom", reason="the extra play is not installed")
    policy = demo / "runs/demo/seed-0/policy"
    run_example("act_in_environment.py", policy, "doom:predict_position", 2, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["seed 1", "seed 2"]
    assert all(re.fullmatch(r"seed \d: return -?\d after \d+ steps", line) for line in lines[:2])
    assert all(line.endswith("% of the steps") for line in lines[2:])


def test_examples_of_the_library_are_short() -> None:
    for name in ("look_at_data.py", "act_in_environment.py", "train_tiny.py"):
        assert len((REPOSITORY / "examples" / name).read_text().splitlines()) <= 40, name
