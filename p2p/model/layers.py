"""The parts that the main transformer and the action decoder share: norm, rotation, attention, layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model.attention import Attend

Rotation = tuple[Tensor, Tensor]  # cosine and sine, each float32 [L, K/2]
Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

NORM_EPS = 1e-5
ROPE_BASE = 10000.0


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis in float32, cast back, times a scale (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + NORM_EPS)
        return normed.to(x.dtype) * self.scale


def rope_theta(head_dim: int, device: torch.device | str | None = None) -> Tensor:
    """Angle per position of each pair, float32 [K/2] (Su et al. 2021)."""
    exponents = torch.arange(0, head_dim, 2, device=device).float() / head_dim
    return 1.0 / (ROPE_BASE**exponents)


def rotation(positions: Tensor, head_dim: int) -> Rotation:
    """Cosines and sines, float32 [len(positions), K/2].

    float64 positions keep their precision (for sessions of any length); all others take the product in
    float32, as the released models were trained.
    """
    theta = rope_theta(head_dim, positions.device)
    product_type = torch.float64 if positions.dtype == torch.float64 else torch.float32
    angles = positions.to(product_type)[:, None] * theta.to(product_type)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """Rotate interleaved pairs (0,1), (2,3), ... of x [..., L, H, K] in float32; cast back."""
    cos, sin = (t[:, None, :] for t in table)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention with norms on queries and keys, rotation, and learned sinks."""

    def __init__(self, dim: int, num_heads: int, num_sinks: int, dropout: float):
        super().__init__()
        self.num_heads, self.num_sinks, self.dropout = num_heads, num_sinks, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm = RMSNorm(dim), RMSNorm(dim)
        if num_sinks:
            self.k_sinks = nn.Parameter(torch.empty(1, num_heads, num_sinks, dim // num_heads))
            self.v_sinks = nn.Parameter(torch.empty(1, num_heads, num_sinks, dim // num_heads))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def project(self, x: Tensor, table: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, L, D] -> q, k, v [B, H, L, K]; q and k normed and rotated."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self._finish_qk(q, self.q_norm, table), self._finish_qk(k, self.k_norm, table), self._values(v)

    def project_apart(
        self, x_q: Tensor, table_q: Rotation, x_kv: Tensor, table_kv: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, with queries of other rows than keys and values."""
        weight_q, weight_kv = self.qkv.weight.split([x_q.shape[-1], 2 * x_q.shape[-1]])
        k, v = F.linear(x_kv, weight_kv).chunk(2, dim=-1)
        q = self._finish_qk(F.linear(x_q, weight_q), self.q_norm, table_q)
        return q, self._finish_qk(k, self.k_norm, table_kv), self._values(v)

    def _finish_qk(self, x: Tensor, norm: nn.Module, table: Rotation) -> Tensor:
        return rotate(self._heads(norm(x)), table).to(x.dtype).transpose(1, 2)

    def _values(self, v: Tensor) -> Tensor:
        return self._heads(v).transpose(1, 2)

    def with_sinks(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Prepend the sinks: [B, H, num_sinks + L, K]."""
        if not self.num_sinks:
            return k, v
        k_sinks, v_sinks = (s.to(k.dtype).expand(len(k), -1, -1, -1) for s in (self.k_sinks, self.v_sinks))
        return torch.cat([k_sinks, k], dim=2), torch.cat([v_sinks, v], dim=2)

    def output(self, attended: Tensor) -> Tensor:
        """[B, H, L, K] -> [B, L, D]; the one dropout of the model stands here."""
        return F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)


class FeedForward(nn.Module):
    """W2(silu(gate) * up) with [gate; up] = W13 x (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.w13 = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        y: Tensor = self.w2(F.silu(gate) * up)
        return y


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, num_sinks: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(dim, num_heads, num_sinks, dropout)
        self.ffn = FeedForward(dim, hidden_dim)
        self.attention_norm, self.ffn_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(
        self, x: Tensor, table: Rotation, attend: Attend, rows: slice | None = None, keep: Keep | None = None
    ) -> Tensor:
        """x [B, L, D] -> [B, L, D], or only the outputs of `rows` of L.

        `attend(q, k, v)` gets heads-first tensors and decides what is visible; with `rows` the keys and
        values are still those of all tokens, everything else is computed for these rows alone. `keep(k, v)` adds
        them to a cache and gives what it holds, the sinks first (`KeyValues.put`); without it the past is empty.
        """
        normed = self.attention_norm(x)
        if rows is None:
            q, k, v = self.attention.project(normed, table)
        else:
            table_rows = (table[0][rows], table[1][rows])
            q, k, v = self.attention.project_apart(normed[:, rows], table_rows, normed, table)
            x = x[:, rows]
        k, v = self.attention.with_sinks(k, v) if keep is None else keep(k, v)
        x = x + self.attention.output(attend(q, k, v))
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class KeyValues:
    """The cache of one layer: keys and values [B, H, rows, K], the sinks first; allocated once, written in place."""

    def __init__(self, layer: nn.Module, batch_size: int, num_rows: int):
        assert isinstance(layer, Layer)  # a ModuleList does not say so
        attention, weight = layer.attention, layer.attention.qkv.weight
        shape = (batch_size, attention.num_heads, num_rows, weight.shape[1] // attention.num_heads)
        self.keys, self.values = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        if attention.num_sinks:
            with torch.no_grad():
                self.keys[:, :, : attention.num_sinks] = attention.k_sinks
                self.values[:, :, : attention.num_sinks] = attention.v_sinks

    def put(self, rows: Tensor, num_read: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, H, n, K] into the rows int64 [n]; returns the first `num_read` rows of all."""
        self.keys.index_copy_(2, rows, k)
        self.values.index_copy_(2, rows, v)
        return self.keys[:, :, :num_read], self.values[:, :, :num_read]
