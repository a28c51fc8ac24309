"""Parallelism, applied to the policy from outside: sharding units, activation checkpointing, compile, meta start.

The model knows nothing of this. Each transformer layer (of the decoder too) and the image tokenizer is a
unit: gathered, computed, freed on its own by FSDP2. Composer does the sharding itself (`fsdp_config`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from p2p.model.layers import Layer
from p2p.model.policy import Policy
from p2p.recipe import ParallelConfig


def sharding_units(policy: Policy) -> list[nn.Module]:
    """The modules whose parameters are gathered together; what is left belongs to the policy itself."""
    return [module for module in policy.modules() if isinstance(module, Layer)] + [policy.image_tokenizer]


def parallelize(policy: Policy, config: ParallelConfig) -> None:
    """Prepare the policy for Composer's FSDP2: recompute and compile its layers, and name the units to shard.

    Recompute goes inside compile, and both inside sharding, so that a layer's parameters are gathered
    before its compiled, recomputed forward runs.
    """
    for layer in policy.modules():
        if isinstance(layer, Layer):
            if config.activation_checkpointing:
                _replace_forward(layer, partial(checkpoint, layer.forward, use_reentrant=False))
            if config.compile:
                _replace_forward(layer, torch.compile(layer.forward))
    units = set(sharding_units(policy))
    policy.fsdp_wrap_fn = units.__contains__  # type: ignore[assignment]


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    object.__setattr__(module, "forward", forward)


def reduction_gain(device: str) -> float:
    """What FSDP2 multiplies the mean of the processes' gradients with, found out on a single weight.

    1 as it should be, but the number of processes with torch 2.7 on gloo, which takes the average that
    FSDP2 asks for as a sum and says nothing.
    """
    weight = nn.Linear(1, 1, bias=False, device=device)
    fully_shard(weight)
    weight(torch.ones(1, 1, device=device)).sum().backward()
    gradient = weight.weight.grad
    assert isinstance(gradient, DTensor)
    return float(gradient.full_tensor())


def fsdp_config(config: ParallelConfig, num_processes: int) -> dict[str, Any]:
    """Composer's `parallelism_config`. The key must be 'fsdp': under 'fsdp2' Composer ignores it silently.

    Parameters and gradients travel in float32 (autocast does the bf16), which keeps the norms' scales and
    the learned tokens as exact as on one device. One process is sharded too, over itself, so that the
    checkpoints of any number of processes have one format; on a CPU it gathers, that is copies, its parameters
    once an update instead of twice: there is memory enough, and time is short.
    """
    from composer.utils.parallelism import FSDP2Config

    alone_on_cpu = num_processes == 1 and not torch.cuda.is_available()
    reshard = config.reshard_after_forward and not alone_on_cpu
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        return {"fsdp": FSDP2Config(reshard_after_forward=reshard, mixed_precision="FULL")}
