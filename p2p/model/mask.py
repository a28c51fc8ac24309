"""Which token may see which: the token layout of a timestep and the attention mask, defined once.

Every other place (dense masks, compiled block masks, the cache of a session) asks `visible`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from p2p.config import PolicyConfig


class Kind(IntEnum):
    """Kinds of tokens, in the order in which they stand in a timestep."""

    OBS = 0  # text, image and thinking tokens: what the policy knows before it acts
    OUT = 1  # the token whose output the action decoder reads
    ACT = 2  # the action that was taken


@dataclass(frozen=True)
class TokenLayout:
    """The S tokens of one timestep, in order: text, image, thinking, out, action."""

    num_text: int
    num_image: int
    num_thinking: int
    num_action: int

    @classmethod
    def of(cls, config: PolicyConfig) -> TokenLayout:
        return cls(config.num_text_tokens, config.num_image_tokens, config.num_thinking_tokens, config.num_action_slots)

    @property
    def num_obs(self) -> int:
        return self.num_text + self.num_image + self.num_thinking

    @property
    def out(self) -> int:
        """Offset of the out token within its timestep."""
        return self.num_obs

    @property
    def first_action(self) -> int:
        """Offset of the first action token within its timestep."""
        return self.num_obs + 1

    @property
    def tokens_per_timestep(self) -> int:
        """S."""
        return self.first_action + self.num_action

    def step(self, index: Tensor) -> Tensor:
        """Timestep of flat token indices."""
        return index // self.tokens_per_timestep

    def kind(self, index: Tensor) -> Tensor:
        """`Kind` of flat token indices, as integers."""
        offset = index % self.tokens_per_timestep
        return (offset >= self.out).to(torch.int64) + (offset > self.out).to(torch.int64)


def visible(q_step: Tensor, q_kind: Tensor, k_step: Tensor, k_kind: Tensor, history: int) -> Tensor:
    """True where a query may see a key; the arguments broadcast against each other.

    A key is seen from later timesteps, up to `history` of them, unless it is an out token. Within a
    timestep obs sees obs, out sees obs and itself, act sees obs and act. Sinks, always visible, are
    left to the caller.
    """
    not_out = k_kind != Kind.OUT
    earlier = (k_step < q_step) & (q_step - k_step <= history) & not_out
    same = (k_step == q_step) & (
        (k_kind == Kind.OBS) | ((q_kind == k_kind) & (q_kind != Kind.OBS))  # out sees out, act sees act
    )
    return earlier | same
