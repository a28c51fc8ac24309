"""The loss: the original's numbers, and no dependence on how a batch is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from p2p.actions import ActionSpace
from p2p.model.losses import FrameCounts, combine, policy_loss, sum_heads
from p2p.model.network import ActionLogits

SPACE = ActionSpace()
ORIGINAL_HEADS = {
    "keys": "key",
    "buttons": "mouse_button",
    "mouse_x": "mouse_delta_x",
    "mouse_y": "mouse_delta_y",
}


def random_batch(num_chunks: int, num_timesteps: int) -> tuple[ActionLogits, Tensor, Tensor]:
    torch.manual_seed(0)
    shape = (num_chunks, num_timesteps)
    logits = ActionLogits(*(torch.randn(*shape, n, v) for n, v in ((4, 20), (2, 4), (1, 23), (1, 17))))
    actions = torch.stack([torch.randint(v, shape) for v in SPACE.num_choices], dim=-1)
    return logits, actions, torch.rand(shape) < 0.6


@pytest.fixture
def original(shared_fixtures: Path) -> dict[str, Tensor]:
    return load_file(shared_fixtures / "parity_tiny" / "io.safetensors")


@pytest.mark.parametrize("prefix", ["", "train_nodrop."])
def test_losses_are_those_of_the_original(original: dict[str, Tensor], prefix: str) -> None:
    names = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    logits = ActionLogits(*(original[f"{prefix}logits.{name}"] for name in names))
    actions = torch.cat([original[f"in.{name}"] for name in names], dim=-1)
    mask = original["in.user_action_mask"] & original["in.valid_frame_mask"]
    losses = policy_loss(logits, actions, mask, SPACE)
    for name in ("total", "cross_entropy"):
        torch.testing.assert_close(losses[name], original[f"{prefix}loss.{name}"], rtol=1e-5, atol=0)
    for head, name in ORIGINAL_HEADS.items():
        torch.testing.assert_close(losses[f"ce_{head}"], original[f"{prefix}loss.{name}"], rtol=1e-5, atol=0)
    z_loss = sum(original[f"{prefix}zloss.{name}"] for name in ORIGINAL_HEADS.values())
    torch.testing.assert_close(losses["z_loss"], z_loss, rtol=1e-5, atol=0)


def test_z_loss_is_a_mean_over_all_frames_and_cross_entropy_over_labelled_ones() -> None:
    logits, actions, _ = random_batch(1, 4)
    all_labelled = policy_loss(logits, actions, torch.ones(1, 4, dtype=torch.bool), SPACE)
    one = torch.tensor([[True, False, False, False]])
    first = ActionLogits(*(x[:, :1] for x in logits))
    alone = policy_loss(first, actions[:, :1], torch.ones(1, 1, dtype=torch.bool), SPACE)
    masked = policy_loss(logits, actions, one, SPACE)
    torch.testing.assert_close(masked["cross_entropy"], alone["cross_entropy"])
    torch.testing.assert_close(masked["z_loss"], alone["z_loss"] / 4)
    assert masked["z_loss"] < all_labelled["z_loss"]


def test_a_batch_without_a_labelled_frame_has_loss_zero_and_zero_gradients() -> None:
    logits, actions, mask = random_batch(2, 3)
    leaves = ActionLogits(*(x.requires_grad_() for x in logits))
    losses = policy_loss(leaves, actions, torch.zeros_like(mask), SPACE)
    losses["total"].backward()
    assert float(losses["total"].detach()) == 0.0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_shares_of_parts_add_up_to_the_loss_of_the_whole() -> None:
    logits, actions, mask = random_batch(5, 7)
    whole = policy_loss(logits, actions, mask, SPACE)
    counts = FrameCounts(float(mask.sum()), float(mask.numel()))
    parts = [
        combine(sum_heads(ActionLogits(*(x[cut] for x in logits)), actions[cut], mask[cut], SPACE), counts, 1e-4)
        for cut in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_the_labelled_frames_alone_give_the_same_sums() -> None:
    """The decoder runs for labelled frames only; nothing of the loss needs the others' logits."""
    logits, actions, mask = random_batch(3, 5)
    whole = sum_heads(logits, actions, mask, SPACE)
    picked = sum_heads(ActionLogits(*(x[mask] for x in logits)), actions[mask], mask[mask], SPACE)
    for head, sums in whole.items():
        torch.testing.assert_close(picked[head].cross_entropy, sums.cross_entropy)
        torch.testing.assert_close(picked[head].z, sums.z)
