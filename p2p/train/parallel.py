"""Parallelism, applied to the policy from outside: sharding units, activation checkpointing, compile, meta start.

The model knows nothing of this. Each transformer layer (of the decoder too) and the image tokenizer is a
unit: gathered, computed, freed on its own by FSDP2. Composer does the sharding itself (`fsdp_config`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from p2p.model.attention import Attend
from p2p.model.layers import Layer, Rotation
from p2p.model.policy import Policy
from p2p.recipe import ParallelConfig


def sharding_units(policy: Policy) -> list[nn.Module]:
    """The modules whose parameters are gathered together; what is left belongs to the policy itself."""
    return [module for module in policy.modules() if isinstance(module, Layer)] + [policy.image_tokenizer]


def compiles(config: ParallelConfig) -> bool:
    """Whether a run compiles: as its recipe says, otherwise on a GPU."""
    return torch.cuda.is_available() if config.compile is None else config.compile


def parallelize(policy: Policy, config: ParallelConfig, backend: str | Callable[..., Any] = "inductor") -> None:
    """Prepare the policy for Composer's FSDP2: recompute and compile its layers, and name the units to shard.

    Recompute goes inside compile, and both inside sharding, so that a layer's parameters are gathered
    before its compiled, recomputed forward runs.
    """
    recompute = config.activation_checkpointing
    if compiles(config):
        _compile_units(policy, recompute, backend)
    elif recompute:
        for layer in policy.modules():
            if isinstance(layer, Layer):
                _replace_forward(layer, partial(checkpoint, layer.forward, use_reentrant=False))
    units = set(sharding_units(policy))
    policy.fsdp_wrap_fn = units.__contains__  # type: ignore[assignment]


def _compile_units(policy: Policy, recompute: bool, backend: str | Callable[..., Any]) -> None:
    """Compile the layers and the image tokenizer: each kind once per shape, however many layers there are.

    `fullgraph`: what cannot be compiled as a whole, or comes in more shapes than torch compiles (8 of a kind), is an
    error; it would otherwise run uncompiled from then on, several times slower, and only a warning would say so.
    Shapes are fixed but for the decoder's, whose number of frames is that of the learned ones.
    """
    middle, last, decoder = (
        torch.compile(_layer_function(name, recompute), fullgraph=True, dynamic=dynamic, backend=backend)
        for name, dynamic in (("layer", False), ("last_layer", False), ("decoder_layer", None))
    )
    for layer in policy.layers:
        _replace_forward(layer, partial(middle if layer is not policy.layers[-1] else last, layer))
    for layer in policy.decoder.layers:
        _replace_forward(layer, partial(decoder, layer))
    tokenizer = policy.image_tokenizer
    _replace_forward(tokenizer, torch.compile(tokenizer.forward, fullgraph=True, dynamic=False, backend=backend))


def _layer_function(name: str, recompute: bool) -> Callable[..., Tensor]:
    """`Layer.forward` as a function with code of its own: torch counts shapes by code, and all layers share theirs."""

    def run(layer: Layer, x: Tensor, table: Rotation, attend: Attend, rows: slice | None = None) -> Tensor:
        if not recompute:
            return Layer.forward(layer, x, table, attend, rows)
        y: Tensor = checkpoint(lambda x: Layer.forward(layer, x, table, attend, rows), x, use_reentrant=False)
        return y

    return FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, run.__defaults__, run.__closure__)


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
