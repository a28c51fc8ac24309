"""What a recipe's precision becomes on a machine; bfloat16 on a CPU gives the same loss within its rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2p.config import PolicyConfig
from p2p.train import precision
from p2p.train.precision import choose_precision


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "has_units", "composer", "autocast_cpu", "said"),
    [
        ("fp32", True, True, "fp32", False, "float32"),
        ("amp_bf16", True, False, "amp_bf16", False, "bfloat16"),
        ("amp_bf16", False, True, "fp32", True, "amx_bf16"),
        ("amp_bf16", False, False, "fp32", False, "no matrix units"),
    ],
)
def test_bfloat16_runs_where_the_hardware_has_it(
    wanted: str, has_gpu: bool, has_units: bool, composer: str, autocast_cpu: bool, said: str
) -> None:
    chosen = choose_precision(wanted, has_gpu, has_units)
    assert (chosen.composer, chosen.autocast_cpu) == (composer, autocast_cpu)
    assert said in chosen.said


@pytest.mark.parametrize(
    ("flags", "expected"), [("flags: sse amx_tile amx_bf16 avx2", True), ("flags: avx512_bf16", False)]
)
def test_the_processor_s_flags_tell(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(precision, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert precision.cpu_has_bf16_units() is expected


def test_a_step_in_bfloat16_has_the_float32_step_s_loss_and_float32_gradients() -> None:
    from p2p.model.policy import Policy
    from p2p.train.composer_policy import ComposerPolicy, split_batch

    torch.manual_seed(0)
    config = PolicyConfig(
        dim=32, num_layers=2, num_heads=2, decoder_num_heads=2, decoder_num_layers=1, num_timesteps=4,
        attention_history=4, image_encoder="small_cnn", frame_height=48, frame_width=48, text_dim=8, dropout=0.0,
    )  # fmt: skip
    policy = Policy(config)
    yes = torch.ones(2, 4, dtype=torch.bool)
    batch = {
        "frames": torch.randint(256, (2, 4, 3, 48, 48), dtype=torch.uint8),
        "actions": torch.zeros(2, 4, config.num_action_slots, dtype=torch.int64),
        "text": torch.zeros(2, 4, 1, 8),
        "user_mask": yes,
        "valid_mask": yes,
        "recording": ["a", "b"],
        "start": torch.zeros(2, dtype=torch.int64),
    }
    (part,) = split_batch(batch, 2)
    losses = []
    for has_units in (False, True):
        model = ComposerPolicy(policy, precision=choose_precision("amp_bf16", False, has_units))
        logits = model.forward(part)
        assert logits.keys.dtype is (torch.bfloat16 if has_units else torch.float32)
        loss = model.loss(logits, part)["total"]
        loss.backward()
        losses.append(float(loss))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {parameter.grad.dtype for parameter in policy.parameters() if parameter.grad is not None} == {torch.float32}
