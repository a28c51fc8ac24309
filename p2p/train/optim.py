"""The optimizer, and the learning rate as a plain function of the update's number."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from p2p.recipe import OptimizerConfig, ScheduleConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with the same weight decay on every parameter, in its fused form.

    Fused is switched on afterwards: the constructor refuses it for the meta parameters of processes that
    get their weights later. On the CPU it spares a dispatch per parameter and operation.
    """
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    for group in optimizer.param_groups:
        group["fused"] = True
    return optimizer


def lr_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """What the learning rate of update `step` (from 0) of `num_steps` is multiplied with.

    Warm-up rises linearly to 1 at update `warmup`; from there linear and cosine reach `final` at the end.
    """
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.shape == "constant":
        return 1.0
    progress = min((step - config.warmup) / max(num_steps - config.warmup, 1), 1.0)
    remaining = 1 - progress if config.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final + (1 - config.final) * remaining
