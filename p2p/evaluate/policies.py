"""What the commands of this folder do with a policy that a user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2p.checkpoints.weights import read_run
from p2p.model import ActionLogits, Policy, load_policy
from p2p.model.opening import choose_device
from p2p.model.weights import build_policy


def open_policy(path: Path, device: str | None = None) -> Policy:
    """`load_policy` on `device`, by default a GPU where there is one."""
    return load_policy(path, device or "auto")


def open_run(path: Path, device: str | None = None) -> Policy:
    """The policy in a training checkpoint, in evaluation mode; its averaged weights where it has them.

    Raises:
        ValueError: when it is damaged, or its weights are not finite or do not fit its configuration.
    """
    chosen = choose_device(device or "auto")
    config, tensors, _ = read_run(path)
    return build_policy(config, tensors, str(path)).to(chosen)


def on_device(policy: Policy) -> Callable[..., ActionLogits]:
    """The policy as a function of CPU tensors whose logits are on the CPU."""

    def forward(*tensors: Any) -> ActionLogits:
        logits = policy(*(tensor.to(policy.out_token.device) for tensor in tensors))
        return ActionLogits(*(head.cpu() for head in logits))

    return forward
