"""The policy's loss: cross entropies and z-losses of the four heads, as means over the global batch.

A loss is kept as sums over the frames at hand and divided by the counts of the whole global batch, so
that any split of a batch over processes and microbatches gives the same number and the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.actions import HEADS, ActionSpace

IGNORED = -100


@dataclass(frozen=True)
class HeadSums:
    """Of one head, over its labelled elements: float32 sums of the cross entropy and of logsumexp squared."""

    cross_entropy: Tensor
    z: Tensor
    num_slots: int
    num_choices: int


@dataclass(frozen=True)
class FrameCounts:
    """Frames of the whole global batch, over all processes and microbatches: labelled ones, and all of them."""

    labelled: float
    all: float


def label_mask(batch: Mapping[str, Any]) -> Tensor:
    """bool [B, T]: the frames that are learned: real frames whose action a person did."""
    mask: Tensor = batch["user_mask"] & batch["valid_mask"]
    return mask


def head_slots(space: ActionSpace) -> dict[str, slice]:
    """The action slots of each head, as slices of the last dimension of actions [..., A]."""
    return {
        "keys": space.key_slots,
        "buttons": space.button_slots,
        "mouse_x": slice(space.mouse_x_slot, space.mouse_x_slot + 1),
        "mouse_y": slice(space.mouse_y_slot, space.mouse_y_slot + 1),
    }


def sum_heads(logits: Any, actions: Tensor, mask: Tensor, space: ActionSpace) -> dict[str, HeadSums]:
    """The sums of each head, computed in float32.

    Args:
        logits: an ActionLogits: fields keys, buttons, mouse_x, mouse_y, each [B, T, slots, V].
        actions: int64 [B, T, A], what was done.
        mask: bool [B, T], see `label_mask`.
    """
    labels = actions.masked_fill(~mask.unsqueeze(-1), IGNORED)
    return {head: _sum_head(getattr(logits, head), labels[..., slots]) for head, slots in head_slots(space).items()}


def _sum_head(logits: Tensor, labels: Tensor) -> HeadSums:
    num_slots, num_choices = logits.shape[-2:]
    flat_logits = logits.reshape(-1, num_choices).float()
    flat_labels = labels.reshape(-1)
    cross_entropy = F.cross_entropy(flat_logits, flat_labels, ignore_index=IGNORED, reduction="sum")
    z = (torch.logsumexp(flat_logits, dim=-1).square() * (flat_labels != IGNORED)).sum()
    return HeadSums(cross_entropy, z, num_slots, num_choices)


def combine(sums: Mapping[str, HeadSums], counts: FrameCounts, z_weight: float) -> dict[str, Tensor]:
    """This part's share of the loss of the global batch: the shares of all parts add up to that loss.

    total = cross_entropy + z_weight * z_loss; cross_entropy = sum_h CE_h / ln V_h with CE_h the mean over
    the labelled elements of head h; z_loss = sum_h Z_h with Z_h the mean over all elements, labelled or not.

    Returns:
        total, cross_entropy, z_loss, and ce_<head> in nats. Without a labelled frame in the global batch
        everything is 0, and so are the gradients.
    """
    shares: dict[str, Tensor] = {}
    cross_entropy = z_loss = sums[HEADS[0]].z.new_zeros(())
    for head, head_sums in sums.items():
        share = head_sums.cross_entropy / (max(counts.labelled, 1.0) * head_sums.num_slots)
        shares[f"ce_{head}"] = share
        cross_entropy = cross_entropy + share / math.log(head_sums.num_choices)
        z_loss = z_loss + head_sums.z / (counts.all * head_sums.num_slots)
    return {"total": cross_entropy + z_weight * z_loss, "cross_entropy": cross_entropy, "z_loss": z_loss, **shares}


def policy_loss(
    logits: Any, actions: Tensor, mask: Tensor, space: ActionSpace, z_weight: float = 1e-4
) -> dict[str, Tensor]:
    """The loss of one batch that is the whole global batch; entries as in `combine`."""
    counts = FrameCounts(float(mask.sum()), float(mask.numel()))
    return combine(sum_heads(logits, actions, mask, space), counts, z_weight)
