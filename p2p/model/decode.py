"""Writing an action: the decoder's eight ids one after another, or several in one pass.

Sampling is sequential: slot j needs the ids of the slots before it. But people hold keys, so the last
action is a good guess of the next: a pass over guessed ids gives the logits of all slots at once, the
prefix that the given random numbers would have drawn anyway is kept, and the next pass starts at the
first difference. The result is that of sampling one by one (Leviathan et al. 2023 do this for text).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from p2p.config import SamplingConfig
from p2p.model.layers import KeyValues, rotation
from p2p.model.network import DECODER_NUM_SINKS, Network, causal_mask
from p2p.model.sampling import sample_from_logits


@dataclass
class Decoded:
    """ids int64 [B, A]; logits [B, A, V], -inf past a slot's classes; number of decoder passes."""

    ids: Tensor
    logits: Tensor
    num_passes: int


class DecoderRunner:
    """Runs a policy's action decoder with a cache of its own; buffers are allocated once."""

    def __init__(self, policy: Network, batch_size: int = 1):
        self.policy, self.decoder = policy, policy.decoder
        config, weight = policy.config, policy.out_token
        self.num_slots = config.num_action_slots
        space = config.action_space
        self.head_of_slot, self.max_choices = space.slot_heads, max(space.num_choices)
        self.num_choices = torch.tensor(space.num_choices, device=weight.device)
        self.table = rotation(torch.arange(self.num_slots, device=weight.device), self.decoder.head_dim)
        self.mask = causal_mask(self.num_slots, weight.device)
        num_rows = DECODER_NUM_SINKS + self.num_slots
        self.rows = torch.arange(DECODER_NUM_SINKS, num_rows, device=weight.device)
        self.caches = [KeyValues(layer, batch_size, num_rows) for layer in self.decoder.layers]

    @torch.inference_mode()
    def decode(self, y_out: Tensor, uniforms: Tensor, sampling: SamplingConfig, guess: Tensor | None = None) -> Decoded:
        """Sample an action.

        Args:
            y_out: [B, D].
            uniforms: [B, A] in (0, 1).
            guess: int64 [B, A], ids to check in one pass; None samples one by one.
        """
        ids = torch.zeros_like(uniforms, dtype=torch.int64) if guess is None else guess.clone()
        logits = torch.full((*uniforms.shape, self.max_choices), -torch.inf, device=y_out.device)
        first, num_passes = 0, 0
        while first < self.num_slots:
            last = first + 1 if guess is None else self.num_slots
            drawn = self._draw(y_out, uniforms, sampling, ids, logits, first, last)
            num_passes += 1
            num_new = last - first if guess is None else _num_right(drawn, ids[:, first:last])
            ids[:, first : first + num_new] = drawn[:, :num_new]
            first += num_new
        return Decoded(ids, logits, num_passes)

    def _draw(
        self,
        y_out: Tensor,
        uniforms: Tensor,
        sampling: SamplingConfig,
        ids: Tensor,
        logits: Tensor,
        first: int,
        last: int,
    ) -> Tensor:
        """One pass over the slots first .. last-1: fills their rows of `logits`, returns the ids drawn."""
        outputs = self._pass(y_out, ids, first, last)
        for slot in range(first, last):
            slot_logits = self.policy.heads.of_head(outputs[:, slot - first], self.head_of_slot[slot])
            logits[:, slot, : slot_logits.shape[-1]] = slot_logits.float()
        return sample_from_logits(
            logits[:, first:last],
            uniforms[:, first:last],
            sampling.temperature,
            sampling.top_p,
            sampling.greedy,
            self.num_choices[first:last],
        )

    def _pass(self, y_out: Tensor, ids: Tensor, first: int, last: int) -> Tensor:
        """Outputs [B, last - first, D] at positions first .. last-1, given the ids before each."""
        x = self._inputs(y_out, ids, first, last)
        table = (self.table[0][first:last], self.table[1][first:last])
        end = DECODER_NUM_SINKS + last
        attend = partial(F.scaled_dot_product_attention, attn_mask=self.mask[first:last, :end])
        for layer, cache in zip(self.decoder.layers, self.caches, strict=True):
            x = layer(x, table, attend, keep=partial(cache.put, self.rows[first:last], end))
        return x

    def _inputs(self, y_out: Tensor, ids: Tensor, first: int, last: int) -> Tensor:
        embed = self.policy.action_embedding
        parts = [self.decoder.input_projection(y_out)[:, None]] if first == 0 else []
        for slot in range(max(first - 1, 0), last - 1):  # the input of position j is the id of slot j-1
            parts.append(embed.of_slots(ids[:, slot], self.head_of_slot[slot])[:, None])
        dtype = parts[0].dtype
        return torch.cat([p.to(dtype) for p in parts], dim=1) + self.decoder.position[first:last].to(dtype)


def _num_right(drawn: Tensor, guessed: Tensor) -> int:
    """How many slots are known after a check: the right guesses up to the first wrong one, and that one."""
    wrong = (drawn != guessed).any(0).tolist()
    return wrong.index(True) + 1 if True in wrong else len(wrong)
