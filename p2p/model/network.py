"""The network: frames, actions and a text in, logits of the next action out.

A timestep is S tokens: text, image, thinking, out, and one per action slot. The main transformer reads
all timesteps of a chunk under the mask of `mask.py`; at each out token the action decoder writes the
eight ids of the action one after another. Letters: B batch, T timesteps, S tokens per timestep,
L = T*S, D width, H heads, K head dim, A action slots, V choices.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.actions import HEADS, NUM_CHOICES
from p2p.config import PolicyConfig
from p2p.model.attention import AttentionPattern, attention_for
from p2p.model.image import build_image_tokenizer, normalise_frames
from p2p.model.layers import Layer, rotation
from p2p.model.mask import TokenLayout

DECODER_NUM_SINKS = 1


class ActionLogits(NamedTuple):
    """Logits per head, [..., slots of the head, V]."""

    keys: Tensor
    buttons: Tensor
    mouse_x: Tensor
    mouse_y: Tensor


class ActionEmbedding(nn.Module):
    """Embeds the A ids of an action; slots of one head share a table."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.slots = config.action_space.head_slots
        for head in HEADS:
            self.add_module(head, nn.Embedding(NUM_CHOICES[head], config.dim))

    def forward(self, actions: Tensor) -> Tensor:
        """int64 [..., A] -> [..., A, D]."""
        return torch.cat([self.of_slots(actions[..., slots], head) for head, slots in self.slots.items()], dim=-2)

    def of_slots(self, ids: Tensor, head: str) -> Tensor:
        """int64 [...] ids of one head -> [..., D]."""
        embedded: Tensor = self.get_submodule(head)(ids)
        return embedded


class ActionHeads(nn.Module):
    """One linear layer per head, shared by its slots."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.slots = config.action_space.head_slots
        for head in HEADS:
            self.add_module(head, nn.Linear(config.dim, NUM_CHOICES[head]))

    def forward(self, outputs: Tensor) -> ActionLogits:
        """[..., A, D] -> logits."""
        return ActionLogits(*(self.get_submodule(head)(outputs[..., self.slots[head], :]) for head in HEADS))

    def of_head(self, output: Tensor, head: str) -> Tensor:
        """Logits [..., V] of one slot of a head from its decoder output [..., D]."""
        logits: Tensor = self.get_submodule(head)(output)
        return logits


def _computes_in_bfloat16(device_type: str) -> bool:
    """Whether autocast would only take float32 pixels back to bfloat16."""
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return False
    return torch.get_autocast_dtype(device_type) == torch.bfloat16


class ActionDecoder(nn.Module):
    """Causal transformer over one timestep: y_out, then the action; output j gives slot j's logits."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.head_dim = config.dim // config.decoder_num_heads
        self.num_positions = config.num_action_slots + 1
        self.input_projection = nn.Linear(config.dim, config.dim)
        self.position = nn.Parameter(torch.empty(self.num_positions, config.dim))
        self.layers = nn.ModuleList(
            Layer(config.dim, config.decoder_num_heads, config.hidden_dim, DECODER_NUM_SINKS, config.dropout)
            for _ in range(config.decoder_num_layers)
        )

    def embed(self, y_out: Tensor, embedded_actions: Tensor) -> Tensor:
        """[N, D] and [N, n, D] -> inputs [N, 1 + n, D] of positions 0..n."""
        first = self.input_projection(y_out)
        x = torch.cat([first[:, None], embedded_actions.to(first.dtype)], dim=1)
        return x + self.position[: x.shape[1]].to(x.dtype)

    def forward(self, y_out: Tensor, embedded_actions: Tensor) -> Tensor:
        """Teacher-forced: y_out [N, D], embedded actions [N, A, D] -> outputs [N, A, D].

        The last action is nobody's input: its output would be the logits of a slot that does not exist.
        """
        x = self.embed(y_out, embedded_actions[:, :-1])
        positions = torch.arange(x.shape[1], device=x.device)
        table = rotation(positions, self.head_dim)
        mask = causal_mask(x.shape[1], x.device)
        for layer in self.layers:
            x = layer(x, table, partial(F.scaled_dot_product_attention, attn_mask=mask))
        return x


def causal_mask(length: int, device: torch.device) -> Tensor:
    """Bool [length, DECODER_NUM_SINKS + length]: the sinks and everything up to oneself."""
    mask = torch.ones(length, DECODER_NUM_SINKS + length, dtype=torch.bool, device=device)
    return mask.tril(DECODER_NUM_SINKS)


class Network(nn.Module):
    """The whole network; see the file's docstring."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        self.layout = TokenLayout.of(config)
        self.head_dim = config.dim // config.num_heads
        dim = config.dim
        self.image_tokenizer = build_image_tokenizer(config)
        if config.num_text_tokens:
            self.text_projection = nn.Linear(config.text_dim, dim, bias=False)
        self.no_text = nn.Parameter(torch.empty(config.num_text_tokens, dim))
        self.text_position = nn.Parameter(torch.empty(config.num_text_tokens, dim))
        self.image_position = nn.Parameter(torch.empty(config.num_image_tokens, dim))
        self.thinking = nn.Parameter(torch.empty(config.num_thinking_tokens, dim))
        self.out_token = nn.Parameter(torch.empty(1, dim))
        self.action_position = nn.Parameter(torch.empty(config.num_action_slots, dim))
        self.action_embedding = ActionEmbedding(config)
        self.layers = nn.ModuleList(
            Layer(dim, config.num_heads, config.hidden_dim, config.num_sink_tokens, config.dropout)
            for _ in range(config.num_layers)
        )
        self.decoder = ActionDecoder(config)
        self.heads = ActionHeads(config)
        self.reset_tokens()

    def reset_tokens(self) -> None:
        """Start values of everything that is no linear layer, convolution or norm."""
        for tokens in (self.no_text, self.text_position, self.image_position):
            nn.init.normal_(tokens, std=0.05)
        for tokens in (self.thinking, self.out_token, self.action_position):
            nn.init.normal_(tokens, std=0.05)
        for table in self.action_embedding.parameters():
            nn.init.normal_(table, std=0.1)
        nn.init.normal_(self.decoder.position, std=3.0)
        for name, parameter in self.named_parameters():
            if name.endswith("_sinks"):
                nn.init.normal_(parameter, std=1.0)

    # -------------------------------------------------------------- tokens

    def observation_tokens(self, frames: Tensor, text: Tensor) -> Tensor:
        """frames uint8 [N, 3, Y, X], text [N, n_text, text_dim] -> text, image, thinking, out tokens [N, n, D]."""
        weight_dtype = self.out_token.dtype
        pixels = normalise_frames(frames.contiguous(memory_format=torch.channels_last))
        if not _computes_in_bfloat16(pixels.device.type):
            pixels = pixels.to(weight_dtype)
        image = self.image_tokenizer(pixels) + self.image_position
        tokens = [image, *(t.expand(len(frames), -1, -1) for t in (self.thinking, self.out_token))]
        if self.config.num_text_tokens:
            absent = (text == 0).all(-1, keepdim=True)
            projected = self.text_projection(text.to(weight_dtype))
            tokens.insert(0, torch.where(absent, self.no_text.to(projected.dtype), projected) + self.text_position)
        return torch.cat([t.to(self.out_token.dtype) for t in tokens], dim=1)

    def action_tokens(self, actions: Tensor) -> Tensor:
        """int64 [N, A] -> [N, A, D]."""
        tokens: Tensor = self.action_embedding(actions) + self.action_position
        return tokens

    # -------------------------------------------------------------- whole chunks

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        text: Tensor,
        history_actions: Tensor | None = None,
        decode: Tensor | None = None,
    ) -> ActionLogits:
        """Teacher-forced logits of every timestep's action.

        Args:
            frames: uint8 [B, T, 3, Y, X].
            actions: int64 [B, T, A], the action that followed each frame.
            text: float [B, T, n_text, text_dim]; all zeros: no instruction.
            history_actions: what later timesteps see instead of `actions`, int64 [B, T, A].
            decode: int64 [N], places in the B * T timesteps; the decoder runs for these only. (Places and no mask: how
                many a mask shows, a GPU would have to be waited for.)

        Returns:
            keys [B, T, 4, 20], buttons [B, T, 2, 4], mouse_x [B, T, 1, 23], mouse_y [B, T, 1, 17];
            with `decode` the first two axes are one of length N.
        """
        self._check_shapes(frames, actions, text)
        y_out = self.transform(frames, actions if history_actions is None else history_actions, text)
        batch_shape = actions.shape[:2]
        y_out, actions = y_out.flatten(0, 1), actions.flatten(0, 1)
        if decode is not None:
            y_out, actions = y_out[decode], actions[decode]
        logits = self.heads(self.decoder(y_out, self.action_embedding(actions)))
        return logits if decode is not None else ActionLogits(*(x.unflatten(0, batch_shape) for x in logits))

    def transform(self, frames: Tensor, actions: Tensor, text: Tensor) -> Tensor:
        """The main transformer: outputs at the out tokens, [B, T, D]."""
        return self.transform_tokens(self.observation_tokens(frames.flatten(0, 1), text.flatten(0, 1)), actions)

    def transform_tokens(self, observed: Tensor, actions: Tensor) -> Tensor:
        """As `transform`, from `observation_tokens` [B*T, n, D] and the actions [B, T, A] that followed."""
        shape = actions.shape[:2]
        x = torch.cat([observed, self.action_tokens(actions.flatten(0, 1)).to(observed.dtype)], dim=1)
        x = x.unflatten(0, shape).flatten(1, 2)  # [B, T, S, D] -> [B, L, D]
        table = rotation(torch.arange(x.shape[1], device=x.device), self.head_dim)
        s, out = self.layout.tokens_per_timestep, self.layout.out
        for i, (layer, history) in enumerate(zip(self.layers, self.config.histories, strict=True)):
            last = i == len(self.layers) - 1  # of the last layer only the out tokens are read
            pattern = AttentionPattern(self.layout, shape[1], history, self.config.num_sink_tokens, only_out=last)
            x = layer(x, table, attention_for(pattern, x.device), rows=slice(out, None, s) if last else None)
        return x

    def _check_shapes(self, frames: Tensor, actions: Tensor, text: Tensor) -> None:
        config = self.config
        num_chunks, num_timesteps = frames.shape[:2]
        expected = {
            "frames": (frames, (num_chunks, num_timesteps, 3, config.frame_height, config.frame_width)),
            "actions": (actions, (num_chunks, num_timesteps, config.num_action_slots)),
            "text": (text, (num_chunks, num_timesteps, config.num_text_tokens, config.text_dim)),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; this policy expects {shape}")
