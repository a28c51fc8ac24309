"""The training forward written down without any saving, to compare the model's with.

Every token goes through every layer, attention is dense under one mask, the decoder runs nine tokens for
every timestep, convolutions are the library's own in their default memory layout. Same numbers.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model.image import DepthwiseConv, normalise_frames
from p2p.model.layers import Layer, rotation
from p2p.model.network import ActionLogits, causal_mask
from p2p.model.policy import Policy
from tests.masks import dense_mask


def plain_copy(policy: Policy) -> Policy:
    """The same weights with the library's convolutions, in their default memory layout."""
    policy = copy.deepcopy(policy)
    use_library_convolutions(policy)
    policy.image_tokenizer.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return policy


def use_library_convolutions(policy: Policy) -> None:
    """In place: the library's depthwise convolutions, activations that overwrite their input."""
    for module in policy.image_tokenizer.modules():
        if isinstance(module, DepthwiseConv):
            module.__class__ = nn.Conv2d
        if isinstance(module, nn.SiLU):
            module.inplace = True


def plain_forward(policy: Policy, frames: Tensor, actions: Tensor, text: Tensor) -> ActionLogits:
    """As `Policy.forward`."""
    num_chunks, num_timesteps = frames.shape[:2]
    observed = plain_observation(policy, frames.flatten(0, 1), text.flatten(0, 1))
    y_out = plain_transform(policy, observed, actions).flatten(0, 1)
    outputs = plain_decoder(policy, y_out, policy.action_embedding(actions.flatten(0, 1)))
    return ActionLogits(*(t.unflatten(0, (num_chunks, num_timesteps)) for t in policy.heads(outputs)))


def plain_transform(policy: Policy, observed: Tensor, actions: Tensor) -> Tensor:
    """As `Policy.transform_tokens`."""
    num_chunks, num_timesteps = actions.shape[:2]
    x = torch.cat([observed, policy.action_tokens(actions.flatten(0, 1))], dim=1)
    x = x.unflatten(0, (num_chunks, num_timesteps)).flatten(1, 2)
    table = rotation(torch.arange(x.shape[1]), policy.head_dim)
    for layer, history in zip(policy.layers, policy.config.histories, strict=True):
        mask = dense_mask(policy.layout, num_timesteps, history, policy.config.num_sink_tokens)
        x = layer(x, table, partial(F.scaled_dot_product_attention, attn_mask=mask))
    return x[:, policy.layout.out :: policy.layout.tokens_per_timestep]


def plain_observation(policy: Policy, frames: Tensor, text: Tensor) -> Tensor:
    """As `Policy.observation_tokens`, with the colours first in memory."""
    image = policy.image_tokenizer(normalise_frames(frames).to(policy.out_token.dtype)) + policy.image_position
    absent = (text == 0).all(-1, keepdim=True)
    projected = torch.where(absent, policy.no_text, policy.text_projection(text)) + policy.text_position
    rest = (t.expand(len(frames), -1, -1) for t in (policy.thinking, policy.out_token))
    return torch.cat([projected.float(), image.float(), *rest], dim=1)


def plain_decoder(policy: Policy, y_out: Tensor, embedded: Tensor) -> Tensor:
    """As `ActionDecoder.forward`, with the ninth token."""
    decoder = policy.decoder
    x = decoder.embed(y_out, embedded)
    table = rotation(torch.arange(x.shape[1]), decoder.head_dim)
    mask = causal_mask(x.shape[1], x.device)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        x = layer(x, table, partial(F.scaled_dot_product_attention, attn_mask=mask))
    return x[:, :-1]
