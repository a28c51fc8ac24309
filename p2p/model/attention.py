"""Attention of the main transformer over whole chunks: one function chooses the path for the device.

On a GPU `flex_attention` skips the blocks that the mask leaves empty; elsewhere queries go through
`scaled_dot_product_attention` in groups of timesteps that meet only the keys within their reach. Both
give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.model.mask import Kind, TokenLayout, visible

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

TIMESTEPS_PER_GROUP = 16  # of the CPU path: small groups skip more, large ones pay fewer calls


@dataclass(frozen=True)
class AttentionPattern:
    """What one layer may see in a chunk of `num_timesteps`; hashable, so that masks are made once.

    With `only_out` the queries are the out tokens alone (one per timestep), the keys all tokens.
    """

    layout: TokenLayout
    num_timesteps: int
    history: int
    num_sinks: int
    only_out: bool = False

    @property
    def tokens_per_query_step(self) -> int:
        return 1 if self.only_out else self.layout.tokens_per_timestep

    def query_step_and_kind(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.only_out:
            return index, torch.full_like(index, Kind.OUT)
        return self.layout.step(index), self.layout.kind(index)


def attention_for(pattern: AttentionPattern, device: torch.device) -> Attend:
    """The function that computes a pattern on a device; masks are made here, outside compiled layers.

    The function takes q [B, H, Lq, K], Lq = T * S, or T with `pattern.only_out`, and k, v
    [B, H, num_sinks + T * S, K], sinks first; it returns [B, H, Lq, K].
    """
    if device.type == "cuda":
        return partial(_attend_flex, mask=block_mask(pattern, str(device)))
    return partial(_attend_grouped, groups=query_groups(pattern, str(device)), num_sinks=pattern.num_sinks)


@dataclass(frozen=True)
class _Group:
    """Some timesteps' queries, the keys within their reach (without sinks), and who sees whom."""

    queries: slice
    keys: slice
    mask: Tensor


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, groups: tuple[_Group, ...], num_sinks: int) -> Tensor:
    learns = torch.is_grad_enabled() and q.requires_grad and not torch.compiler.is_compiling()
    if learns and len(groups) > 1:
        attended: Tensor = _GroupedAttention.apply(q, k, v, groups, num_sinks)
        return attended
    outputs = [_attend_group(*_inputs(q, k, v, group, num_sinks), group) for group in groups]
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _inputs(q: Tensor, k: Tensor, v: Tensor, group: _Group, num_sinks: int) -> tuple[Tensor, Tensor, Tensor]:
    return q[:, :, group.queries], _with_sinks(k, group.keys, num_sinks), _with_sinks(v, group.keys, num_sinks)


def _attend_group(q: Tensor, k: Tensor, v: Tensor, group: _Group) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)


class _GroupedAttention(torch.autograd.Function):
    """The groups' attention; their gradients are added up in place.

    Autograd would make a tensor as long as the chunk out of each group's gradient, zeros but for the group, and add
    these up (`tests/benchmarks/bench_step.py` has the transformer beside dense attention).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: tuple[_Group, ...], num_sinks: int) -> Tensor:
        parts = []
        with torch.enable_grad():
            for group in groups:
                leaves = [x.detach().requires_grad_() for x in _inputs(q, k, v, group, num_sinks)]
                parts.append((group, leaves, _attend_group(leaves[0], leaves[1], leaves[2], group)))
        ctx.parts, ctx.num_sinks, ctx.shape, ctx.dtype = parts, num_sinks, k.shape, k.dtype
        return torch.cat([output.detach() for _, _, output in parts], dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        by_query = []
        keys_and_values = gradients[0].new_zeros(2, *ctx.shape, dtype=ctx.dtype)
        for group, leaves, output in ctx.parts:
            ours = gradients[0][:, :, group.queries]
            grad_q, *grads = torch.autograd.grad(output, leaves, ours.to(output.dtype))
            by_query.append(grad_q)
            for total, part in zip(keys_and_values, grads, strict=True):
                _add_with_sinks(total, part, group.keys, ctx.num_sinks)
        grad_k, grad_v = keys_and_values
        return torch.cat(by_query, dim=2), grad_k, grad_v, None, None


def _with_sinks(x: Tensor, keys: slice, num_sinks: int) -> Tensor:
    if not num_sinks or not keys.start:
        return x[:, :, keys.start : keys.stop + num_sinks]
    return torch.cat([x[:, :, :num_sinks], x[:, :, keys.start + num_sinks : keys.stop + num_sinks]], dim=2)


def _add_with_sinks(total: Tensor, part: Tensor, keys: slice, num_sinks: int) -> None:
    """Add what belongs to the keys that `_with_sinks` took."""
    if not num_sinks or not keys.start:
        total[:, :, keys.start : keys.stop + num_sinks] += part
        return
    total[:, :, :num_sinks] += part[:, :, :num_sinks]
    total[:, :, keys.start + num_sinks : keys.stop + num_sinks] += part[:, :, num_sinks:]


@lru_cache(maxsize=64)
def query_groups(pattern: AttentionPattern, device: str) -> tuple[_Group, ...]:
    """Groups of timesteps; the keys of each end where its queries end."""
    s, per_step, end = pattern.layout.tokens_per_timestep, pattern.tokens_per_query_step, pattern.num_timesteps
    groups = []
    for first in range(0, end, TIMESTEPS_PER_GROUP):
        last = min(first + TIMESTEPS_PER_GROUP, end)
        queries = slice(first * per_step, last * per_step)
        keys = slice(max(0, first - pattern.history) * s, last * s)
        groups.append(_Group(queries, keys, _mask(pattern, queries, keys).to(device)))
    return tuple(groups)


def _mask(pattern: AttentionPattern, queries: slice, keys: slice) -> Tensor:
    with torch.inference_mode(False):  # the mask is kept: it must also serve training
        q_step, q_kind = pattern.query_step_and_kind(torch.arange(queries.start, queries.stop))
        k_index = torch.arange(keys.start, keys.stop)
        k_step, k_kind = pattern.layout.step(k_index), pattern.layout.kind(k_index)
        mask = visible(q_step[:, None], q_kind[:, None], k_step[None], k_kind[None], pattern.history)
        return torch.cat([torch.ones(len(q_step), pattern.num_sinks, dtype=torch.bool), mask], dim=1)


# ------------------------------------------------------------------ GPU


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def block_mask(pattern: AttentionPattern, device: str) -> Any:
    """The `BlockMask` of a pattern, made once per device."""
    from torch.nn.attention.flex_attention import create_block_mask

    layout, sinks, history = pattern.layout, pattern.num_sinks, pattern.history

    def mask_mod(b: Tensor, h: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        q_step, q_kind = pattern.query_step_and_kind(q_index)
        k_index = torch.clamp(kv_index - sinks, min=0)
        seen = visible(q_step, q_kind, layout.step(k_index), layout.kind(k_index), history)
        return (kv_index < sinks) | seen

    num_queries = pattern.num_timesteps * pattern.tokens_per_query_step
    num_keys = sinks + pattern.num_timesteps * layout.tokens_per_timestep
    with torch.inference_mode(False):
        return create_block_mask(mask_mod, None, None, num_queries, num_keys, device=device)


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    if torch.compiler.is_compiling():
        from torch.nn.attention.flex_attention import flex_attention

        return cast(Tensor, flex_attention(q, k, v, block_mask=mask))
    return cast(Tensor, _compiled_flex()(q, k, v, block_mask=mask))
