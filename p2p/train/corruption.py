"""Damage to the history of actions in training, so that the policy cannot live by copying its last action."""

from __future__ import annotations

import torch
from torch import Tensor

from p2p.actions import ActionSpace
from p2p.recipe import CorruptionConfig


def corrupt_history(actions: Tensor, config: CorruptionConfig, space: ActionSpace) -> Tensor:
    """The past actions that the transformer gets to see instead of `actions`, int64 [B, T, A].

    A draw per timestep: keep, the action of a random timestep of the batch, or "nothing"; and a draw
    per chunk that turns all its past into "nothing". Draws come from torch's generator of the device.
    """
    num_chunks, num_timesteps, num_slots = actions.shape
    nothing = torch.as_tensor(space.nothing, dtype=actions.dtype, device=actions.device)
    draw = torch.rand(num_chunks, num_timesteps, 1, device=actions.device)
    elsewhere = torch.randint(num_chunks * num_timesteps, (num_chunks, num_timesteps), device=actions.device)
    replaced = actions.reshape(-1, num_slots)[elsewhere]
    history = torch.where(draw < config.replace, replaced, actions)
    history = torch.where(draw >= 1 - config.nothing, nothing, history)
    dropped = torch.rand(num_chunks, 1, 1, device=actions.device) < config.drop_history
    return torch.where(dropped, nothing, history)
