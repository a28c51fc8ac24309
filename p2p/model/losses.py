"""The loss of a policy: cross entropies and z-losses of the four heads, in training and on data that it is judged by.

A loss is kept as sums over the frames at hand and divided by the counts of everything that belongs to it, so that any
split of a batch over processes and microbatches, or of a data set over recordings, gives the same number (and in
training the same gradients). Letters: B chunks, T timesteps, A action slots, V choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.actions import HEADS, NUM_CHOICES, ActionSpace
from p2p.config import Z_WEIGHT
from p2p.model.network import ActionLogits

IGNORED = -100
Number = TypeVar("Number", bound=Any)  # a tensor or an array, of any shape


@dataclass(frozen=True)
class HeadSums:
    """Of one head, over its labelled elements: sums of the cross entropy (nats) and of logsumexp squared."""

    cross_entropy: Tensor
    z: Tensor
    num_slots: int


@dataclass(frozen=True)
class FrameCounts:
    """Frames of the whole global batch, over all processes and microbatches: labelled ones, and all of them."""

    labelled: float
    all: float


def label_mask(batch: Mapping[str, Any]) -> Tensor:
    """bool [B, T]: the frames that are learned: real frames whose action a person did."""
    mask: Tensor = batch["user_mask"] & batch["valid_mask"]
    return mask


def sum_heads(
    logits: ActionLogits, actions: Tensor, mask: Tensor, space: ActionSpace, dtype: torch.dtype = torch.float32
) -> dict[str, HeadSums]:
    """The sums of each head, computed in `dtype`.

    Args:
        logits: of each head [..., slots of the head, V].
        actions: int64 [..., A], what was done.
        mask: bool [...], see `label_mask`.
    """
    labels = actions.masked_fill(~mask.unsqueeze(-1), IGNORED)
    slots = space.head_slots
    return {head: _sum_head(getattr(logits, head).to(dtype), labels[..., slots[head]]) for head in HEADS}


def _sum_head(logits: Tensor, labels: Tensor) -> HeadSums:
    num_slots, num_choices = logits.shape[-2:]
    flat_logits, flat_labels = logits.reshape(-1, num_choices), labels.reshape(-1)
    cross_entropy = F.cross_entropy(flat_logits, flat_labels, ignore_index=IGNORED, reduction="sum")
    z = (torch.logsumexp(flat_logits, dim=-1).square() * (flat_labels != IGNORED)).sum()
    return HeadSums(cross_entropy, z, num_slots)


def total_loss(
    cross_entropy: Mapping[str, Number], z: Mapping[str, Number], z_weight: float = Z_WEIGHT
) -> tuple[Number, Number, Number]:
    """total, cross entropy and z-loss from the means of each head.

    total = cross_entropy + z_weight * z_loss; cross_entropy = sum_h CE_h / ln V_h with CE_h the mean over
    the labelled elements of head h; z_loss = sum_h Z_h with Z_h the mean over all elements, labelled or not.
    """
    normalised: Any = sum(cross_entropy[head] / math.log(NUM_CHOICES[head]) for head in HEADS)
    z_loss: Any = sum(z[head] for head in HEADS)
    return normalised + z_weight * z_loss, normalised, z_loss


def combine(sums: Mapping[str, HeadSums], counts: FrameCounts, z_weight: float = Z_WEIGHT) -> dict[str, Tensor]:
    """This part's share of the loss of the global batch: the shares of all parts add up to that loss.

    Returns:
        total, cross_entropy, z_loss (see `total_loss`), and ce_<head> in nats. Without a labelled frame in the global
        batch everything is 0, and so are the gradients.
    """
    shares = {head: part.cross_entropy / (max(counts.labelled, 1.0) * part.num_slots) for head, part in sums.items()}
    z = {head: part.z / (counts.all * part.num_slots) for head, part in sums.items()}
    total, cross_entropy, z_loss = total_loss(shares, z, z_weight)
    named = {f"ce_{head}": share for head, share in shares.items()}
    return {"total": total, "cross_entropy": cross_entropy, "z_loss": z_loss, **named}


def policy_loss(
    logits: ActionLogits, actions: Tensor, mask: Tensor, space: ActionSpace, z_weight: float = Z_WEIGHT
) -> dict[str, Tensor]:
    """The loss of one batch that is the whole global batch; arguments as in `sum_heads`, entries as in `combine`."""
    counts = FrameCounts(float(mask.sum()), float(mask.numel()))
    return combine(sum_heads(logits, actions, mask, space), counts, z_weight)
