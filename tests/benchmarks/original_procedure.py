"""A straightforward implementation of the original's procedure of playing, to compare the engine with.

Per frame: two full passes of twelve tokens (one to decide with stand-in actions, one to remember what was
done), the cache grown by concatenation and cut in each, nine decoder passes of one token; weights in
float32 under bfloat16 autocast where the processor has units for it (elsewhere that would be several times slower than
float32). One autocast region a frame, so each weight is cast once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.config import SamplingConfig
from p2p.model.layers import Layer, rotation
from p2p.model.network import DECODER_NUM_SINKS
from p2p.model.policy import Policy
from p2p.model.sampling import sample_from_logits
from p2p.train.precision import precision_here


class OriginalProcedure:
    """Same weights, same answers (but for bfloat16), none of the savings; seconds are those of `clock`."""

    def __init__(self, policy: Policy, sampling: SamplingConfig, clock: Callable[[], float] = time.perf_counter):
        self.policy, self.sampling, self.clock = policy, sampling, clock
        self.precision = precision_here("amp_bf16")
        self.caches: list[tuple[Tensor, Tensor] | None] = [None] * len(policy.layers)
        self.num_steps = 0
        self.answer_s = self.total_s = 0.0

    @torch.no_grad()
    def step(self, frame: Tensor, text: Tensor, uniforms: Tensor) -> Tensor:
        """frame uint8 [1, 3, Y, X], text [1, n_text, text_dim], uniforms [1, A] -> ids [1, A]."""
        started = self.clock()
        with self.precision.autocast():
            observed = self.policy.observation_tokens(frame, text)
            nothing = torch.from_numpy(self.policy.config.action_space.nothing.copy())[None]
            y_out, _ = self._pass(observed, nothing)
            ids = self._decode(y_out, uniforms)
            self.answer_s = self.clock() - started
            _, self.caches = self._pass(observed, ids)
        self.num_steps += 1
        self.total_s = self.clock() - started
        return ids

    def _pass(self, observed: Tensor, actions: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor] | None]]:
        policy, layout = self.policy, self.policy.layout
        s, window = layout.tokens_per_timestep, policy.config.num_timesteps
        x = torch.cat([observed, policy.action_tokens(actions).to(observed.dtype)], dim=1)
        first = min(self.num_steps, window - 1) * s
        table = rotation(torch.arange(first, first + s), policy.head_dim)
        index = torch.arange(s)
        kind = layout.kind(index)
        same_step = (kind[None] == 0) | ((kind[:, None] == kind[None]) & (kind[:, None] > 0))
        caches: list[tuple[Tensor, Tensor] | None] = []
        for layer, cache in zip(policy.layers, self.caches, strict=True):
            assert isinstance(layer, Layer)
            q, k, v = layer.attention.project(layer.attention_norm(x), table)
            if cache is not None:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            not_out = (torch.arange(k.shape[2] - s) % s != layout.out).expand(s, -1)
            mask = torch.cat([not_out, same_step], dim=1)
            attended = F.scaled_dot_product_attention(q, k, v.to(k.dtype), attn_mask=mask)
            x = x + layer.attention.output(attended)
            x = x + layer.ffn(layer.ffn_norm(x))
            caches.append((k[:, :, -(window - 1) * s :], v[:, :, -(window - 1) * s :]))
        return x[:, layout.out], caches

    def _decode(self, y_out: Tensor, uniforms: Tensor) -> Tensor:
        policy, decoder = self.policy, self.policy.decoder
        caches: list[tuple[Tensor, Tensor]] = []
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            caches.append((layer.attention.k_sinks, layer.attention.v_sinks))
        ids = torch.zeros(1, policy.config.num_action_slots, dtype=torch.int64)
        for position in range(decoder.num_positions):
            inputs = decoder.embed(y_out, policy.action_embedding(ids))[:, position : position + 1]
            table = rotation(torch.arange(position, position + 1), decoder.head_dim)
            x = inputs
            for i, layer in enumerate(decoder.layers):
                assert isinstance(layer, Layer)
                q, k, v = layer.attention.project(layer.attention_norm(x), table)
                k, v = (torch.cat([old, new.to(old.dtype)], dim=2) for old, new in zip(caches[i], (k, v), strict=True))
                caches[i] = (k, v)
                x = x + layer.attention.output(F.scaled_dot_product_attention(q, k, v))
                x = x + layer.ffn(layer.ffn_norm(x))
            if position < ids.shape[1]:  # the ninth output is computed and thrown away
                head = policy.config.action_space.slot_heads[position]
                logits = policy.heads.of_head(x[:, 0], head).float()
                drawn = sample_from_logits(logits, uniforms[:, position], self.sampling.temperature)
                ids[:, position] = drawn
        assert caches[0][0].shape[2] == DECODER_NUM_SINKS + decoder.num_positions
        return ids
