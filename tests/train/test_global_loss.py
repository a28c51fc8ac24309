"""One global batch has one loss and one gradient: with one process, with two, and in microbatches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.zygote import Zygote

PROGRAM = Path(__file__).parent / "programs" / "gradients.py"


@pytest.fixture(scope="module")
def results(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By name: one process with the whole batch and with microbatches of 1; two with unequal microbatches of 3."""
    folder = tmp_path_factory.mktemp("gradients")
    one = [str(folder / "whole.pt"), "6", str(folder / "single.pt"), "1"]
    zygote.start(one, folder / "one.log", program=PROGRAM).wait()
    zygote.start([str(folder / "sharded.pt"), "2"], folder / "two.log", 2, program=PROGRAM).wait()
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
