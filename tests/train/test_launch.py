"""`p2p train RECIPE` as it is typed, and what it says about mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p.cli import main as p2p
from p2p.config import PolicyConfig
from p2p.console import USER_ERROR
from p2p.model import load_policy, save_policy
from p2p.model.policy import Policy
from p2p.train.run import main
from tests.tiny import tiny_config

Metrics = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def typed_run(
    repository: Path, small_run: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Three updates by `p2p train -n 2`, the weights averaged; the run folder, and what was printed."""
    folder = tmp_path_factory.mktemp("typed") / "run"
    command = [
        sys.executable,
        "-m",
        "p2p",
        "train",
        "-n",
        "2",
        *small_run(folder, "max_duration=3ba", "ema_half_life=2", "data.augment=true"),
    ]
    environment = {**os.environ, "WANDB_API_KEY": ""}
    return folder, subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900, env=environment)


def test_two_processes_train_as_typed_and_leave_a_policy(
    typed_run: Any, read_metrics: Callable[[Path], Metrics]
) -> None:
    folder, result = typed_run
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"0\.\d M parameters · .* threads · float32 · \d recordings, .* chunks of 16 steps an", result.stderr
    )
    assert "step 3/3  loss" in result.stderr
    assert "frames/s  ETA 0:00:00" in result.stderr
    checkpoint = folder / "checkpoints" / "step-00000003"
    files = {".metadata", "config.yaml", "__0_0.distcp", "__1_0.distcp"}
    assert {path.name for path in checkpoint.iterdir()} == {*files, "manifest.json"}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert set(manifest["files"]) == files
    assert {name: manifest["facts"][name] for name in ("step", "processes", "finite")} == {
        "step": 3,
        "processes": 2,
        "finite": True,
    }
    entry = read_metrics(folder)[3]
    expected = {"loss", "cross_entropy", "z_loss", "lr", "grad_norm", "frames_per_s", "tokens_per_s", "wait_s"}
    assert expected | {"perplexity_keys", "val/loss", "val/perplexity", "val/perplexity_mouse_y"} <= set(entry)
    assert entry["val/loss"] < 10
    assert load_policy(folder / "policy").config.dim == 32


def test_a_run_is_exported_with_its_average_or_its_own_weights(typed_run: Any, tmp_path: Path) -> None:
    folder, _ = typed_run
    checkpoint = folder / "checkpoints" / "step-00000003"
    assert p2p(["export", str(folder), "--out", str(tmp_path / "average")]) == 0
    assert p2p(["export", str(checkpoint), "--out", str(tmp_path / "weights"), "--raw"]) == 0
    average, weights = (load_policy(tmp_path / name).state_dict() for name in ("average", "weights"))
    trained = load_policy(folder / "policy").state_dict()
    for name, tensor in trained.items():
        assert torch.equal(average[name], tensor)
    assert not torch.equal(average["heads.keys.weight"], weights["heads.keys.weight"])


def test_a_policy_goes_out_in_the_originals_layout_and_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(
        dim=64,
        num_layers=1,
        num_heads=4,
        num_timesteps=4,
        attention_history=4,
    )
    save_policy(Policy(config), tmp_path / "policy")
    assert p2p(["export", str(tmp_path / "policy"), "--out", str(tmp_path / "original"), "--original"]) == 0
    (checkpoint,) = (tmp_path / "original").glob("*.ckpt")
    assert p2p(["import", str(checkpoint), "--out", str(tmp_path / "back")]) == 0
    back = load_policy(tmp_path / "back").state_dict()
    for name, tensor in load_policy(tmp_path / "policy").state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_a_folder_without_a_checkpoint_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert p2p(["export", str(tmp_path), "--out", str(tmp_path / "policy")]) == USER_ERROR
    assert "no complete checkpoint; expected a run folder" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_duratoin=2ba"], "unknown key 'max_duratoin'; did you mean 'max_duration'?"),
        (["data.train=absent"], "data.train is 'absent': no such folder"),
        (["data.train=tests"], "data.train is 'tests': it has no index.json"),
        (["data.train=null"], "data.train is not set"),
        (["data.val={hard: absent}"], "data.val.hard is 'absent': no such folder"),
        (["init_from=absent"], "absent is no policy folder: config.yaml is missing"),
        (["image_weights=absent.pth"], "image_weights is 'absent.pth', but they are for policy.image_encoder"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_status(
    repository: Path,
    small_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(repository)
    assert main(small_run(tmp_path / "run", "max_duration=1ba", *overrides)) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("p2p: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_start_weights_of_another_shape_are_refused_and_named(
    repository: Path,
    small_run: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(dim=64, num_timesteps=16)
    save_policy(Policy(config), tmp_path / "other")
    monkeypatch.chdir(repository)
    assert main(small_run(tmp_path / "run", "max_duration=1ba", f"init_from={tmp_path / 'other'}")) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith(f"p2p: error: init_from {tmp_path / 'other'}: the weights do not fit the configuration")
    assert "has shape" in error
