"""A run's steps on fake CUDA tensors: microbatches of two sizes and two validation sets, as Composer calls the model.

Finds what a step waits for and how often torch.compile has to compile; the policy is a narrow one, for neither depends
on its width.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from gpu_counter import GpuCounter
from torch.utils._python_dispatch import _disable_current_modes

from p2p.config import PolicyConfig
from p2p.model.policy import Policy
from p2p.recipe import ParallelConfig
from p2p.train.composer_policy import ComposerPolicy, split_batch, split_eval_batch
from p2p.train.parallel import parallelize
from p2p.train.precision import choose_precision

CONFIG = PolicyConfig(
    dim=64,
    num_layers=4,
    num_heads=2,
    num_timesteps=16,
    attention_history=16,
    frame_height=48,
    frame_width=48,
    image_encoder="small_cnn",
    decoder_num_layers=2,
    decoder_num_heads=2,
)
CHUNKS_PER_UPDATE, MICROBATCH = 5, 3
VALIDATION_SETS = {"a": (4, 4, 2), "b": (4, 3)}  # chunks of each batch


@dataclass(frozen=True)
class RunCount:
    """Of one update and one validation after the first of each."""

    waits: Counter[str]
    copies: Counter[str]
    graphs_at_first: int
    graphs_later: int
    graph_breaks: dict[str, int]
    gave_up: int  # functions that torch.compile leaves uncompiled from now on: too many shapes


def count_run(compile_layers: bool) -> RunCount:
    counter, warnings = GpuCounter(inductor_compiles=False), _Warnings()
    logging.getLogger("torch._dynamo.convert_frame").addHandler(warnings)
    with torch.device("meta"):
        policy = Policy(CONFIG)
    with counter.measured():
        policy.to_empty(device="cuda")
    parallelize(policy, ParallelConfig(compile=compile_layers), counter.compiler)
    model = ComposerPolicy(policy, precision=choose_precision("amp_bf16", has_gpu=True, has_bf16_units=False))
    model.validation_chunks = max(map(max, VALIDATION_SETS.values())) if compile_layers else 0
    with counter.measured():
        one_round(model, counter)
    first = len(counter.compiled)
    with counter.measured() as count:
        one_round(model, counter)
    return RunCount(
        count.waits, count.copies, first, len(counter.compiled) - first, counter.graph_breaks, warnings.limits
    )


class _Warnings(logging.Handler):
    """How often torch.compile said that it compiles a function no more."""

    limits = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.limits += "recompile_limit" in record.getMessage()


def one_round(model: ComposerPolicy, counter: GpuCounter) -> None:
    """One update, then a validation."""
    model.train()
    with _disable_current_modes():
        microbatches = split_batch(make_batch(CHUNKS_PER_UPDATE), MICROBATCH)
    for batch in microbatches:
        with torch.autocast("cuda", torch.bfloat16):
            batch = to_device(batch, counter)
            outputs = model(batch)
        model.loss(outputs, batch)["total"].backward()
    model.eval()
    for sizes in VALIDATION_SETS.values():
        for size in sizes:
            with _disable_current_modes():
                microbatches = split_eval_batch(make_batch(size), size)
            for batch in microbatches:
                with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                    batch = to_device(batch, counter)
                    model.sums(model.eval_forward(batch), batch)


def make_batch(num_chunks: int) -> dict[str, Any]:
    """As the loader's, on the CPU, with real numbers in it."""
    config, shape = CONFIG, (num_chunks, CONFIG.num_timesteps)
    return {
        "frames": torch.zeros(*shape, 3, config.frame_height, config.frame_width, dtype=torch.uint8),
        "actions": torch.zeros(*shape, config.num_action_slots, dtype=torch.int64),
        "text": torch.zeros(*shape, config.num_text_tokens, config.text_dim),
        "user_mask": torch.ones(shape, dtype=torch.bool),
        "valid_mask": torch.ones(shape, dtype=torch.bool),
        "recording": ["r"] * num_chunks,
        "start": torch.zeros(num_chunks, dtype=torch.int64),
    }


def to_device(batch: dict[str, Any], counter: GpuCounter) -> dict[str, Any]:
    """As Composer does it."""
    fake = counter.fake.from_tensor
    return {
        key: fake(value).to("cuda", non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
