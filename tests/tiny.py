"""A policy that is small enough for every test; what a test is about, it says."""

from __future__ import annotations

from typing import Any

from p2p.config import PolicyConfig


def tiny_config(**changes: Any) -> PolicyConfig:
    """Width 32, two layers, chunks of 8 steps that all see one another, frames of 48 x 48, no dropout."""
    size = {"dim": 32, "num_layers": 2, "num_heads": 2, "decoder_num_layers": 1, "decoder_num_heads": 2}
    frames = {"frame_height": 48, "frame_width": 48, "image_encoder": "small_cnn"}
    chunk = {"num_timesteps": 8, "attention_history": 8}
    return PolicyConfig(**{**size, **frames, **chunk, "dropout": 0.0, **changes})
