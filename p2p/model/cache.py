"""Playing one timestep at a time: ring caches, and the same mask as whole chunks.

Each layer keeps the keys and values of the last min(history, T-1) timesteps, plus the current one and
one more, so that the action tokens of a timestep may be computed together with the next frame. Buffers
are allocated once and written in place. Out tokens are seen by nobody else: they share one row.

Rotations are taken at absolute positions in float64, so a session never runs out of positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.model.layers import KeyValues, rotation
from p2p.model.mask import Kind, TokenLayout, visible
from p2p.model.network import Network

NEVER = -(2**40)  # the timestep of a row that nobody has written


@dataclass(frozen=True)
class RingLayout:
    """Rows of one cache: [sinks][out][slot 0][slot 1]...; a slot holds a timestep's obs and act tokens."""

    tokens: TokenLayout
    num_sinks: int
    num_slots: int

    @property
    def rows_per_slot(self) -> int:
        return self.tokens.tokens_per_timestep - 1

    @property
    def first_slot_row(self) -> int:
        return self.num_sinks + 1

    @property
    def num_rows(self) -> int:
        return self.first_slot_row + self.num_slots * self.rows_per_slot

    def row(self, step: Tensor, offset: Tensor) -> Tensor:
        """Row of the token at `offset` of timestep `step`."""
        within = torch.where(offset > self.tokens.out, offset - 1, offset)
        slot_row = self.first_slot_row + (step % self.num_slots) * self.rows_per_slot + within
        return torch.where(offset == self.tokens.out, self.num_sinks, slot_row)

    def filled_rows(self, num_steps: int) -> int:
        """Rows that can hold anything after `num_steps` timesteps."""
        return self.first_slot_row + min(num_steps, self.num_slots) * self.rows_per_slot


class Ring:
    """Which timestep and kind each row holds; shared by the layers with the same history."""

    def __init__(self, layout: RingLayout, history: int, device: torch.device):
        self.layout, self.history = layout, history
        slot_kinds = [Kind.OBS] * layout.tokens.num_obs + [Kind.ACT] * layout.tokens.num_action
        kinds = [Kind.OBS] * layout.num_sinks + [Kind.OUT] + slot_kinds * layout.num_slots
        self.row_kind = torch.tensor(kinds, device=device)
        self.row_step = torch.full((layout.num_rows,), NEVER, device=device)

    def reset(self) -> None:
        self.row_step.fill_(NEVER)

    def write(self, step: Tensor, offset: Tensor) -> Tensor:
        """Claim the rows of these tokens. What a slot still holds of an older timestep is out of reach."""
        rows = self.layout.row(step, offset)
        self.row_step.index_copy_(0, rows, step)
        return rows

    def mask(self, q_step: Tensor, q_kind: Tensor, num_rows: int) -> Tensor:
        """Bool [n, num_rows]; sinks are visible to all."""
        seen = visible(
            q_step[:, None],
            q_kind[:, None],
            self.row_step[None, :num_rows],
            self.row_kind[None, :num_rows],
            self.history,
        )
        if self.layout.num_sinks:
            seen[:, : self.layout.num_sinks] = True
        return seen


class Cache:
    """Keys and values of one batch of sessions, and how many timesteps they have begun."""

    def __init__(self, policy: Network, batch_size: int = 1):
        config = policy.config
        weight = policy.out_token
        self.num_steps = 0
        histories = [min(history, config.num_timesteps - 1) for history in config.histories]
        self.rings = {
            history: Ring(RingLayout(policy.layout, config.num_sink_tokens, history + 2), history, weight.device)
            for history in sorted(set(histories))
        }
        self.ring_of_layer = [self.rings[history] for history in histories]
        self.layers = [
            KeyValues(layer, batch_size, ring.layout.num_rows)
            for layer, ring in zip(policy.layers, self.ring_of_layer, strict=True)
        ]

    def reset(self) -> None:
        """Forget everything; the buffers stay."""
        self.num_steps = 0
        for ring in self.rings.values():
            ring.reset()


def cache_bytes(policy: Network) -> int:
    """Memory of one session's keys and values, which is nearly all that a session adds to its policy."""
    config = policy.config
    steps = sum(min(history, config.num_timesteps - 1) + 2 for history in config.histories)
    return 2 * steps * (config.tokens_per_timestep - 1) * config.dim * policy.out_token.element_size()


def step_index(layout: TokenLayout, step: int, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Timestep and offset, int64 [last - first] each, of the tokens `first` .. `last` - 1 of a timestep."""
    offset = torch.arange(first, last, device=device)
    return torch.full_like(offset, step), offset


def run_tokens(
    policy: Network, cache: Cache, x: Tensor, step: Tensor, offset: Tensor, has_out: bool, num_filled: int | None = None
) -> Tensor:
    """Run tokens through the main transformer, with the cache before them, and add them to it.

    Nothing here waits for the device or depends on the values of tensors, so it can be captured.

    Args:
        x: [B, n, D] embedded tokens.
        step, offset: int64 [n], the timestep of each token and its place there; at most two timesteps.
        has_out: whether the last token is an out token.
        num_filled: timesteps whose rows can hold anything; None: read all rows.

    Returns:
        [B, 1, D], the output at the out token, or [B, 0, D] without one.
    """
    layout = policy.layout
    table = rotation((step * layout.tokens_per_timestep + offset).double(), policy.head_dim)
    kind = layout.kind(offset)
    prepared = {}
    for ring in cache.rings.values():
        rows = ring.write(step, offset)
        num_rows = ring.layout.num_rows if num_filled is None else ring.layout.filled_rows(num_filled)
        prepared[ring.history] = (rows, num_rows, ring.mask(step, kind, num_rows))
    out = slice(x.shape[1] - has_out, None)  # of the last layer only the out token is read
    for i, (layer, ring) in enumerate(zip(policy.layers, cache.ring_of_layer, strict=True)):
        rows, num_rows, mask = prepared[ring.history]
        last = i == len(cache.layers) - 1
        attend = partial(F.scaled_dot_product_attention, attn_mask=mask[out] if last else mask)
        keep = partial(cache.layers[i].put, rows, num_rows)
        x = layer(x, table, attend, rows=out if last else None, keep=keep)
    return x


class Stepper:
    """Runs the main transformer one timestep after another, for a batch of B sessions in lockstep.

    `observe` gives the main transformer's output for a frame; `remember` adds the action that was taken,
    after the answer is sent or, when it was left out, together with the next frame: the result is the same.
    """

    def __init__(self, policy: Network, batch_size: int = 1):
        self.policy = policy
        self.cache = Cache(policy, batch_size)
        self._pending: Tensor | None = None  # the action of the last timestep, not yet in the cache

    def reset(self) -> None:
        self.cache.reset()
        self._pending = None

    @torch.inference_mode()
    def observe(self, frames: Tensor, text: Tensor) -> Tensor:
        """frames uint8 [B, 3, Y, X], text [B, n_text, text_dim] -> y_out [B, D]."""
        policy, cache = self.policy, self.cache
        x = policy.observation_tokens(frames, text)
        step, offset = step_index(policy.layout, cache.num_steps, 0, policy.layout.first_action, x.device)
        if self._pending is not None:
            x = torch.cat([policy.action_tokens(self._pending).to(x.dtype), x], dim=1)
            before = self._action_index()
            step, offset = torch.cat([before[0], step]), torch.cat([before[1], offset])
            self._pending = None
        cache.num_steps += 1
        return run_tokens(policy, cache, x, step, offset, True, cache.num_steps)[:, 0]

    def act(self, actions: Tensor) -> None:
        """Note the action that followed the last frame, int64 [B, A]; it enters the cache later."""
        self._pending = actions

    @torch.inference_mode()
    def remember(self) -> None:
        """Put the noted action into the cache now."""
        if self._pending is None:
            return
        tokens = self.policy.action_tokens(self._pending)
        self._pending = None
        run_tokens(self.policy, self.cache, tokens, *self._action_index(), False, self.cache.num_steps)

    def _action_index(self) -> tuple[Tensor, Tensor]:
        layout = self.policy.layout
        device = self.policy.out_token.device
        return step_index(layout, self.cache.num_steps - 1, layout.first_action, layout.tokens_per_timestep, device)
