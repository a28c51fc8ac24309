"""The mask as one matrix, and what the attention computes of it: the reference of tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2p.model.attention import AttentionPattern, block_mask, query_groups
from p2p.model.mask import TokenLayout, visible


def dense_mask(layout: TokenLayout, num_timesteps: int, history: int, num_sinks: int = 0) -> Tensor:
    """Bool [L, num_sinks + L], L = num_timesteps * S; row = query, column = key, sinks first."""
    index = torch.arange(num_timesteps * layout.tokens_per_timestep)
    step, kind = layout.step(index), layout.kind(index)
    mask = visible(step[:, None], kind[:, None], step[None, :], kind[None, :], history)
    return torch.cat([torch.ones(len(index), num_sinks, dtype=torch.bool), mask], dim=1)


@dataclass(frozen=True)
class AttentionCount:
    """Query-key pairs of one layer and head: all of them, those computed, those that the mask shows."""

    total: int
    computed: int
    visible: int


def count_pairs(pattern: AttentionPattern, device_type: str = "cpu") -> AttentionCount:
    """What the attention computes and skips; for "cuda" at the granularity of flex_attention's blocks."""
    num_queries = pattern.num_timesteps * pattern.tokens_per_query_step
    num_keys = pattern.num_sinks + pattern.num_timesteps * pattern.layout.tokens_per_timestep
    masks = [group.mask for group in query_groups(pattern, "cpu")]
    if device_type == "cuda":
        mask = block_mask(pattern, "cpu")
        blocks = int(mask.kv_num_blocks.sum())
        if mask.full_kv_num_blocks is not None:
            blocks += int(mask.full_kv_num_blocks.sum())
        computed = blocks * mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1]
    else:
        computed = sum(mask.numel() for mask in masks)
    return AttentionCount(num_queries * num_keys, computed, visible=sum(int(mask.sum()) for mask in masks))
