"""One global batch has one loss and one gradient: with one process, with two, and in microbatches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).parent / "programs" / "gradients.py"


@pytest.fixture(scope="module")
def results(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gradients")
    composer = Path(sys.executable).with_name("composer")
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}

    def start(processes: int, **microbatches: int) -> subprocess.Popen[str]:
        outs = [str(part) for name, size in microbatches.items() for part in (folder / f"{name}.pt", size)]
        command = [str(composer), "-n", str(processes), str(PROGRAM), *outs]
        return subprocess.Popen(
            command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    for process in (start(1, whole=6, single=1), start(2, sharded=2)):
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
    return {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("cut", ["single", "sharded"])
def test_losses_and_gradients_do_not_depend_on_how_the_batch_is_cut(results: Any, cut: str) -> None:
    whole, other = results["whole"], results[cut]
    assert whole["losses"]["loss/train/total"] > 1
    for name, value in whole["losses"].items():
        assert other["losses"][name] == pytest.approx(value, rel=1e-5), name
    assert other["norm"] == pytest.approx(whole["norm"], rel=1e-5)
    for name, gradient in whole["gradients"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


def test_two_processes_hold_half_of_every_parameter_each(results: Any) -> None:
    sharded = results["sharded"]
    assert sharded["world"] == 2
    assert sharded["all_sharded"]
    assert sharded["placements"] == {"(Shard(dim=0),)"}
    assert sharded["local"] == pytest.approx(sharded["global"] / 2, rel=0.01)
