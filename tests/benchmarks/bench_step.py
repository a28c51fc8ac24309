"""Cost of a training step. `python tests/benchmarks/bench_step.py [--device cuda] [--size 150M] [--timesteps 50 200]`

On a CPU: updates as `composer launch recipes/150M.yaml` runs them (Composer, FSDP2, one process, augmentation on),
with one chunk an update and one thread, beside the same run with a plain forward (plain_policy.py), each in processes
of its own, in turn (trainer_step.py); then the model's parts, with what share of the processor's measured matmul rate
they reach. CPU seconds. The precision is what training takes on this machine; `--precision fp32` asks for the other.
On a GPU: frames per second and model FLOPs utilisation, compiled; the optimizer and a loss, but not Composer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from plain_policy import plain_copy, plain_decoder, plain_observation, plain_transform
from trainer_step import PHASES

from p2p.config import PolicyConfig
from p2p.model.attention import AttentionPattern
from p2p.model.mask import TokenLayout
from p2p.model.policy import Policy
from p2p.train.flops import forward_flops, peak_flops
from p2p.train.precision import Precision, precision_here
from p2p.train.processor import keep_memory
from tests.masks import count_pairs

# dim, num_layers, chunks per GPU as in the recipes
SIZES = {"150M": (1024, 10, 10), "300M": (1024, 20, 8), "600M": (2048, 9, 8), "1200M": (2048, 22, 5)}
TRAIN_FACTOR = 3  # forward 1, backward 2
WARM_UP_UPDATES = 1


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


# ------------------------------------------------------------------ CPU: the trainer


def make_shards(folder: Path, num_timesteps: int, num_chunks: int) -> Path:
    """Recordings of moving noise with a person's actions, converted by p2p-convert."""
    from p2p_convert.cli import main as convert
    from tests.data.making import annotation, video_bytes, write_recording

    num_frames = num_timesteps + 1
    video = video_bytes(num_frames, size=192)
    for number in range(num_chunks):
        write_recording(folder / "raw" / f"{number:03d}", video, annotation(num_frames, seed=number))
    assert convert([str(folder / "raw"), str(folder / "shards"), "--split", "val=0"]) == 0
    return folder / "shards"


def run_trainer(
    side: str, size: str, num_timesteps: int, precision: str, updates: int, shards: Path
) -> dict[str, float]:
    """Median CPU seconds of an update by phase, the first update left out."""
    script = Path(__file__).with_name("trainer_step.py")
    options = ["--size", size, "--timesteps", str(num_timesteps), "--precision", precision, "--updates", str(updates)]
    command = [sys.executable, str(script), side, "--shards", str(shards), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    updates_s = result["updates"][WARM_UP_UPDATES:]
    return {phase: float(np.median([update[phase] for update in updates_s])) for phase in PHASES}


def bench_trainer(size: str, num_timesteps: int, precision: str, rounds: int, updates: int) -> None:
    """Print the phases of both sides, run in turn, and the ratios' medians."""
    with tempfile.TemporaryDirectory(prefix="p2p-step-") as folder:
        shards = make_shards(Path(folder), num_timesteps, updates + WARM_UP_UPDATES)
        pairs = [
            [
                run_trainer(side, size, num_timesteps, precision, updates + WARM_UP_UPDATES, shards)
                for side in ("plain", "ours")
            ]
            for _ in range(rounds)
        ]
    wholes = {
        **{phase: (phase,) for phase in PHASES},
        "forward and backward": PHASES[1:3],
        "whole update": PHASES,
    }
    for name, phases in wholes.items():
        seconds = np.array([[sum(side[phase] for phase in phases) for side in pair] for pair in pairs])
        print_pair(name, *np.median(seconds, axis=0), float(np.median(seconds[:, 1] / seconds[:, 0])))


def print_pair(name: str, plain_s: float, ours_s: float, ratio: float) -> None:
    print(f"| {name} | {plain_s:.2f} s | {ours_s:.2f} s | {ratio:.2f} |", flush=True)


# ------------------------------------------------------------------ CPU: parts


def cpu_seconds(function: Callable[[], Tensor], precision: Precision) -> float:
    """CPU seconds of forward and backward."""
    started = time.process_time()
    with precision.autocast():
        loss = function()
    loss.backward()
    return time.process_time() - started


def matmul_peak(precision: Precision, size: int = 1024) -> float:
    """FLOP/s of a large matrix product on one thread in the type of the precision, the best of some."""
    dtype = torch.bfloat16 if precision.autocast_cpu else torch.float32
    a = torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(10):
        started = time.process_time()
        a @ a
        best = min(best, time.process_time() - started)
    return 2 * size**3 / best


def bench_parts(size: str, num_timesteps: int, precision: Precision, repeats: int) -> None:
    """The parts of forward and backward, the parameters contiguous as FSDP2 has them, beside the plain ones."""
    policy = make_policy(size, num_timesteps, "cpu")
    plain = plain_copy(policy)
    inputs = make_inputs(policy.config, 1, "cpu")
    frames, actions, text = (t.flatten(0, 1) for t in inputs)
    observed = torch.randn(num_timesteps, policy.layout.first_action, policy.config.dim)
    y_out = torch.randn(num_timesteps, policy.config.dim)
    flops, peak = forward_flops(policy.config), matmul_peak(precision)
    parts: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], tuple[str, ...]]] = {
        "image, text and other tokens": (
            lambda: plain_observation(plain, frames, text),
            lambda: policy.observation_tokens(frames, text),
            ("image encoder", "text projection"),
        ),
        "transformer": (
            lambda: plain_transform(plain, observed, inputs[1]),
            lambda: policy.transform_tokens(observed, inputs[1]),
            ("transformer, linear", "transformer, attention"),
        ),
        "action decoder": (
            lambda: plain_decoder(plain, y_out, plain.action_embedding(actions)),
            lambda: policy.decoder(y_out, policy.action_embedding(actions)),
            ("action decoder",),
        ),
    }
    for name, (theirs, ours, keys) in parts.items():

        def scalar(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: function().float().square().mean()

        pairs = [[cpu_seconds(scalar(f), precision) for f in (theirs, ours)] for _ in range(repeats + 1)][1:]
        seconds = np.median(np.array(pairs), axis=0)
        rate = TRAIN_FACTOR * num_timesteps * sum(flops[key] for key in keys) / seconds[1]
        ratio = float(np.median([b / a for a, b in pairs]))
        print_pair(f"part: {name}; {rate / peak:.1%} of the matmul rate", *seconds, ratio)


def print_attention_counts() -> None:
    pattern = AttentionPattern(TokenLayout(1, 1, 1, 8), 200, 200, 0)
    for device in ("cpu", "cuda"):
        count = count_pairs(pattern, device)
        print(
            f"attention, T = 200, path for {device}: of {count.total:,} query-key pairs "
            f"{count.visible / count.total:.1%} are visible, {count.computed / count.total:.1%} computed"
        )


def bench_cpu(size: str, num_timesteps: int, wanted: str, rounds: int, updates: int, only_parts: bool) -> None:
    torch.set_num_threads(1)
    keep_memory()  # as a training process does
    precision = precision_here(wanted)
    print(f"\n{size}, one chunk of {num_timesteps} timesteps an update, one thread; CPU seconds,")
    print(f"{precision.said},")
    print(f"medians of {rounds} pairs of runs of {updates} updates after the first, in turn\n")
    print("| | plain | ours | ratio |\n| --- | ---: | ---: | ---: |")
    if not only_parts:
        bench_trainer(size, num_timesteps, wanted, rounds, updates)
    bench_parts(size, num_timesteps, precision, rounds)


# ------------------------------------------------------------------ GPU


def bench_gpu(size: str, num_steps: int) -> None:
    from p2p.recipe import ParallelConfig
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
    parser.add_argument("--timesteps", type=int, nargs="+", default=[50, 200], help="T, on a CPU (default 50 200)")
    parser.add_argument("--precision", choices=("amp_bf16", "fp32"), default="amp_bf16", help="on a CPU")
    parser.add_argument("--repeats", type=int, help="pairs of runs on a CPU (3), steps on a GPU (20)")
    parser.add_argument("--only-parts", action="store_true", help="on a CPU: no trainer, which takes the most memory")
    parser.add_argument("--updates", type=int, default=2, help="of a run on a CPU, after the first (default 2)")
    args = parser.parse_args()
    if args.device == "cpu":
        for num_timesteps in args.timesteps:
            bench_cpu(
                args.size or "150M", num_timesteps, args.precision, args.repeats or 3, args.updates, args.only_parts
            )
        print_attention_counts()
        return
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in [args.size] if args.size else SIZES:
        bench_gpu(size, args.repeats or 20)


if __name__ == "__main__":
    main()
