"""The policy on recorded frames but with its own past: what it does when nobody corrects its history.

Each chunk begins with an empty past, as a session does. Frames follow the recording whatever the policy does, so
this is no substitute for play; it shows whether presses still come when the true actions no longer give them away.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from p2p.actions import ActionSpace
from p2p.config import SamplingConfig
from p2p.evaluate import metrics
from p2p.evaluate.metrics import Ids, Predicted, Tally
from p2p.evaluate.scoring import Batch, decode_rows, motion_px
from p2p.model.cache import Stepper
from p2p.model.losses import label_mask
from p2p.model.policy import Policy


@torch.inference_mode()
def free_running_ids(
    policy: Policy, frames: torch.Tensor, text: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator
) -> torch.Tensor:
    """Actions int64 [B, T, A] of the policy for frames uint8 [B, T, 3, Y, X] and text [B, T, n_text, D]."""
    device, num_slots = policy.out_token.device, policy.config.num_action_slots
    stepper, taken = Stepper(policy, batch_size=len(frames)), []
    for step in range(frames.shape[1]):
        y_out = stepper.observe(frames[:, step].to(device), text[:, step].to(device))
        uniforms = torch.rand(len(frames), num_slots, generator=generator)
        ids, _ = decode_rows(policy, y_out, sampling, uniforms)
        stepper.act(ids.to(device))
        taken.append(ids)
    return torch.stack(taken, dim=1)


def free_running_tallies(
    policy: Policy, batches: Iterable[Batch], sampling: SamplingConfig, seed: int = 0
) -> dict[str, Tally]:
    """One tally per recording of the policy's own run over each chunk."""
    generator, space = torch.Generator().manual_seed(seed), policy.config.action_space
    parts: dict[str, list[Tally]] = {}
    for batch in batches:
        ids = free_running_ids(policy, batch["frames"], batch["text"], sampling, generator)
        masks = label_mask(batch)
        for index, recording in enumerate(batch["recording"]):
            num = int(batch["valid_mask"][index].sum())
            rows = (batch["actions"][index, :num].numpy(), masks[index, :num].numpy(), ids[index, :num].numpy())
            parts.setdefault(str(recording), []).append(_tally(*rows, space))
    return {recording: metrics.add_tallies(tallies) for recording, tallies in sorted(parts.items())}


def _tally(actions: Ids, mask: metrics.Mask, own: Ids, space: ActionSpace) -> Tally:
    predicted = Predicted(own, motion_px(own, space), metrics.previous_actions(own, space), {})
    return metrics.recording_tally(actions, np.asarray(mask), motion_px(actions, space), predicted, space)
