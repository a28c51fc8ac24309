"""Opening what a user names as a policy, for the commands of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from p2p.model import ActionLogits, Policy, load_policy


def open_policy(path: Path, device: str | None = None) -> Policy:
    """The policy in a folder, or in an original .ckpt beside its model_config.yaml, in evaluation mode.

    Raises:
        ValueError: when it is neither, or the device does not exist.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: no CUDA device here; write --device cpu")
    if path.suffix == ".ckpt":
        from p2p.model.original import load_checkpoint

        return load_checkpoint(path).to(device).eval()
    return load_policy(path, device=device).eval()


def on_device(policy: Policy) -> Callable[..., ActionLogits]:
    """The policy as a function of CPU tensors whose logits are on the CPU."""

    def forward(*tensors: Any) -> ActionLogits:
        logits = policy(*(tensor.to(policy.out_token.device) for tensor in tensors))
        return ActionLogits(*(head.cpu() for head in logits))

    return forward
