"""Fine-tuning from the original's weights lowers the loss on what is trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from p2p.model.losses import policy_loss
from p2p.model.original import load_checkpoint
from p2p.recipe import OptimizerConfig
from p2p.train.optim import build_optimizer

NUM_STEPS = 20


def test_twenty_steps_lower_the_loss_of_the_released_kind_of_weights(shared_fixtures: Path) -> None:
    torch.manual_seed(0)
    folder = shared_fixtures / "parity_tiny"
    io = load_file(folder / "io.safetensors")
    policy = load_checkpoint(folder / "checkpoint-step=00000010.ckpt").train()
    names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    actions = torch.cat([io[f"in.{name}"] for name in names], dim=-1)
    mask = io["in.user_action_mask"] & io["in.valid_frame_mask"]
    optimizer = build_optimizer(policy.parameters(), OptimizerConfig(lr=1e-4))

    def loss() -> torch.Tensor:
        logits = policy(io["in.frames"], actions, io["in.text_embeddings"])
        return policy_loss(logits, actions, mask, policy.config.action_space)["total"]

    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    policy.eval()
    with torch.no_grad():
        assert float(loss()) < 0.9 * float(io["loss.total"])
