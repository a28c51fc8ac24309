"""Cost of a training step. `python tests/benchmarks/bench_step.py [--device cuda] [--size 150M]`

On a CPU: CPU seconds of forward and backward (one thread, bfloat16 autocast) of the model beside a plain
implementation with the same weights, in turn, and where the saving comes from, part by part. On a GPU:
frames per second and model FLOPs utilisation, compiled as the recipes compile it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from plain_policy import plain_copy, plain_decoder, plain_forward, plain_observation

from p2p.config import PolicyConfig
from p2p.model.attention import AttentionPattern, count_pairs
from p2p.model.mask import TokenLayout
from p2p.model.policy import Policy

# dim, num_layers, chunks per GPU as in the recipes
SIZES = {"150M": (1024, 10, 10), "300M": (1024, 20, 8), "600M": (2048, 9, 8), "1200M": (2048, 22, 5)}
TRAIN_FACTOR = 3  # forward 1, backward 2


def make_policy(size: str, num_timesteps: int, device: str) -> Policy:
    dim, num_layers, _ = SIZES[size]
    torch.manual_seed(0)
    config = PolicyConfig(dim=dim, num_layers=num_layers, num_timesteps=num_timesteps, attention_history=num_timesteps)
    with torch.device(device):
        return Policy(config).train()


def make_inputs(config: PolicyConfig, num_chunks: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = (num_chunks, config.num_timesteps)
    frames = torch.randint(256, (*shape, 3, config.frame_height, config.frame_width), dtype=torch.uint8, device=device)
    actions = torch.randint(4, (*shape, config.num_action_slots), device=device)
    return frames, actions, torch.zeros(*shape, config.num_text_tokens, config.text_dim, device=device)


def cross_entropy(logits: tuple[Tensor, ...]) -> Tensor:
    """A loss over all heads; what the labels are does not matter to the time."""
    losses = [(x.float().logsumexp(-1) - x.float()[..., 0]).mean() for x in logits]
    return torch.stack(losses).sum()


# ------------------------------------------------------------------ CPU


def cpu_seconds(function: Callable[[], Tensor]) -> float:
    """CPU seconds of forward and backward."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = function()
    loss.backward()
    return time.process_time() - started


def in_turn(name: str, plain: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> None:
    """Print the medians of both, run in turn, and their ratio."""
    pairs = [(cpu_seconds(plain), cpu_seconds(ours)) for _ in range(repeats + 1)][1:]
    medians = np.median(np.array(pairs), axis=0)
    ratio = float(np.median([b / a for a, b in pairs]))
    print(f"{name:36s} plain {medians[0]:7.2f} s   model {medians[1]:7.2f} s   ratio {ratio:.2f}", flush=True)


def print_attention_counts() -> None:
    pattern = AttentionPattern(TokenLayout(1, 1, 1, 8), 200, 200, 0)
    for device in ("cpu", "cuda"):
        count = count_pairs(pattern, device)
        print(
            f"attention, T = 200, path for {device}: of {count.total:,} query-key pairs "
            f"{count.visible / count.total:.1%} are visible, {count.computed / count.total:.1%} computed"
        )


def bench_cpu(size: str, num_timesteps: int, labelled: float, repeats: int) -> None:
    torch.set_num_threads(1)
    policy = make_policy(size, num_timesteps, "cpu")
    policy.image_tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = plain_copy(policy)
    inputs = make_inputs(policy.config, 1, "cpu")
    decode = torch.rand(1, num_timesteps) < labelled
    print(f"{size}, batch 1, T = {num_timesteps}, bf16 autocast, one thread, CPU seconds of forward + backward")
    in_turn(
        "whole step, every frame labelled",
        lambda: cross_entropy(plain_forward(plain, *inputs)),
        lambda: cross_entropy(policy(*inputs)),
        repeats,
    )
    in_turn(
        f"whole step, {labelled:.0%} of frames labelled",
        lambda: cross_entropy(plain_forward(plain, *inputs)),
        lambda: cross_entropy(policy(*inputs, decode=decode)),
        repeats,
    )
    bench_parts(policy, plain, inputs, repeats)
    print_attention_counts()


def bench_parts(policy: Policy, plain: Policy, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> None:
    frames, actions, text = (t.flatten(0, 1) for t in inputs)
    in_turn(
        "  image, text and other tokens",
        lambda: plain_observation(plain, frames, text).float().square().mean(),
        lambda: policy.observation_tokens(frames, text).float().square().mean(),
        repeats,
    )
    y_out = torch.randn(len(frames), policy.config.dim)
    in_turn(
        "  action decoder (8 of 9 tokens)",
        lambda: plain_decoder(plain, y_out, plain.action_embedding(actions)).float().square().mean(),
        lambda: policy.decoder(y_out, policy.action_embedding(actions)).float().square().mean(),
        repeats,
    )


# ------------------------------------------------------------------ GPU


def bench_gpu(size: str, num_steps: int) -> None:
    from p2p.recipe import ParallelConfig
    from p2p.train.flops import forward_flops, peak_flops
    from p2p.train.parallel import parallelize

    num_chunks = SIZES[size][2]
    policy = make_policy(size, 200, "cuda")
    parallelize(policy, ParallelConfig(compile=True))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
    inputs = make_inputs(policy.config, num_chunks, "cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = cross_entropy(policy(*inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    torch.cuda.synchronize()
    frames_per_s = num_steps * num_chunks * 200 / (time.perf_counter() - started)
    flops = TRAIN_FACTOR * sum(forward_flops(policy.config).values())
    peak = peak_flops(torch.cuda.get_device_name())
    mfu = f"{frames_per_s * flops / peak:.1%}" if peak else "unknown: no peak FLOPs for this card"
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(f"{size}: {frames_per_s:,.0f} frames/s, MFU {mfu}, {memory:.0f} GiB, {num_chunks} chunks of 200", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, help="default: 150M on a CPU, all on a GPU")
    parser.add_argument("--timesteps", type=int, default=50, help="T, on a CPU")
    parser.add_argument("--labelled", type=float, default=0.8, help="share of frames with a label, on a CPU")
    parser.add_argument("--repeats", type=int, help="default: 3 on a CPU, 20 on a GPU")
    args = parser.parse_args()
    if args.device == "cpu":
        bench_cpu(args.size or "150M", args.timesteps, args.labelled, args.repeats or 3)
        return
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in [args.size] if args.size else SIZES:
        bench_gpu(size, args.repeats or 20)


if __name__ == "__main__":
    main()
