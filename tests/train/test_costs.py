"""What the four recipes cost, by count: parameters, FLOPs, shards, memory; and the command that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from p2p.cli import main as p2p
from p2p.config import PolicyConfig
from p2p.model.mask import TokenLayout, visible
from p2p.recipe import load_recipe
from p2p.train.flops import forward_flops, memory_per_gpu, meta_policy, parameters_by_part, peak_flops, visible_pairs
from tests.train.zygote import Zygote

PROGRAM = Path(__file__).parent / "programs" / "shard_on_meta.py"
SIZES = {"150M": 183_209_888, "300M": 309_243_808, "600M": 644_251_552, "1200M": 1_298_882_464}
LAYERS = {"150M": 10, "300M": 20, "600M": 9, "1200M": 22}


@pytest.fixture(scope="module")
def sharded(zygote: Zygote, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("meta")
    recipes = [str(repository / "recipes" / f"{name}.yaml") for name in SIZES]
    zygote.start([str(folder / "out.json"), *recipes], folder / "log", program=PROGRAM).wait()
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return result


@pytest.mark.parametrize("name", SIZES)
def test_eight_gpus_hold_an_eighth_of_each_recipe_gathered_layer_by_layer(sharded: Any, name: str) -> None:
    result = sharded[name]
    assert result["parameters"] == SIZES[name]
    layers = {f"policy.layers.{i}" for i in range(LAYERS[name])} | {f"policy.decoder.layers.{i}" for i in range(3)}
    assert set(result["units"]) == layers | {"policy.image_tokenizer", "policy"}
    assert result["placements"] == ["(Shard(dim=0),)"]
    assert SIZES[name] / 8 <= result["local"] < SIZES[name] / 8 * 1.01


@pytest.mark.parametrize("name", SIZES)
def test_states_and_activations_fit_a_gpu_of_80_gb(repository: Path, name: str) -> None:
    recipe = load_recipe(repository / "recipes" / f"{name}.yaml")
    memory = memory_per_gpu(recipe, 8)
    assert memory.states == pytest.approx(16 * SIZES[name] / 8)
    assert memory.total < 60e9
    less = memory_per_gpu(load_recipe(repository / "recipes" / f"{name}.yaml", ["microbatch=1"]), 8)
    recomputed = memory_per_gpu(
        load_recipe(repository / "recipes" / f"{name}.yaml", ["parallel.activation_checkpointing=true"]), 8
    )
    assert less.activations == pytest.approx(memory.activations / (recipe.microbatch or 1))
    assert recomputed.activations < 0.8 * memory.activations  # the image encoder's stay


@pytest.mark.parametrize(
    ("history", "sinks"), [(0, 0), (2, 0), (5, 3)], ids=["no history", "short history", "history and sinks"]
)
def test_visible_pairs_are_those_of_the_mask(history: int, sinks: int) -> None:
    config = PolicyConfig(
        dim=32,
        num_layers=1,
        num_heads=2,
        num_timesteps=5,
        attention_history=history,
        num_sink_tokens=sinks,
        num_thinking_tokens=2,
    )
    layout = TokenLayout.of(config)
    tokens = torch.arange(config.num_timesteps * config.tokens_per_timestep)
    step, kind = layout.step(tokens), layout.kind(tokens)
    seen = visible(step[:, None], kind[:, None], step, kind, history)
    assert visible_pairs(config, history) == int(seen.sum()) + len(tokens) * sinks


@pytest.mark.parametrize(("name", "utilisation", "frames_per_s"), [("150M", 0.057, 3970), ("1200M", 0.098, 990)])
def test_flops_per_frame_agree_with_the_originals_utilisation(
    repository: Path, name: str, utilisation: float, frames_per_s: float
) -> None:
    config = load_recipe(repository / "recipes" / f"{name}.yaml").policy
    peak = peak_flops("NVIDIA H100 80GB HBM3")
    assert peak == 989e12
    assert 3 * sum(forward_flops(config).values()) * frames_per_s / peak == pytest.approx(utilisation, rel=0.04)


def test_the_command_prints_counts_and_hours(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(repository / "recipes" / "1200M.yaml")
    assert p2p(["flops", recipe, "--frames", "5e8", "--mfu", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "1200M: 1,298,882,464 parameters" in out
    assert "transformer            1,107,836,928" in out
    assert "500,000,000 frames (as given) = 6,944 hours of play, 6,000,000,000 tokens, 62,500 updates" in out
    assert "4.2 hours at 40% of 8 x 989 TFLOP/s" in out
    assert "to feed 8 GPUs with 32,838 frames/s:" in out
    given = ["--loader-rate", "1000", "--frame-bytes", "2000", "--dataset-frames", "3.3e6"]
    assert p2p(["flops", recipe, "--mfu", "0.4", *given]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-6:]]
    # 4.1 cores each want 5 workers, and 6 is the next number that divides the lanes
    numbers = [next(float(word.replace(",", "")) for word in row if word[0].isdigit()) for row in rows]
    batch = 40 / 8 * 200 * 3 * 192 * 192  # chunks of a process, steps, bytes of a frame
    assert numbers == [32.8, 6, 66, 7, round(8 * 6 * 2 * batch / 1e9), round(32838 / 8 * 3 * 192 * 192 / 1e6)]
    assert p2p(["flops", recipe, "--loader-rate", "0"]) == 2
    assert "--loader-rate 0.0" in capsys.readouterr().err
    assert p2p(["flops", recipe, "--gpu", "abacus"]) == 2
    assert "--gpu 'abacus' is not known; choose one of" in capsys.readouterr().err


def test_parts_add_up_for_a_policy_without_text(repository: Path) -> None:
    config = load_recipe(repository / "recipes" / "doom-tiny.yaml", ["policy.num_text_tokens=0"]).policy
    parts = parameters_by_part(meta_policy(config))
    assert parts["text projection"] == 0
    assert sum(parts.values()) == sum(p.numel() for p in meta_policy(config).parameters())
