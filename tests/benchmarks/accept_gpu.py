"""Everything that only a GPU can confirm, in one go. `python tests/benchmarks/accept_gpu.py [--json FILE] [--small]`

Stages run one after another, each in a process of its own with a time limit, so that one that hangs or dies does not
take the others along; a table and, with `--json`, the figures come last. `--small` runs the same lines on a CPU with
tiny policies: it shows that the script works, and no figure of it says anything about a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "convert"), str(ROOT / "serve"), str(Path(__file__).parent)]

LIMITS_S = {"composer": 240}  # all others:
LIMIT_S = 120
SIZES = {"150M": (1024, 10, 5), "300M": (1024, 20, 4), "600M": (2048, 9, 4), "1200M": (2048, 22, 3)}
Figures = dict[str, Any]


class Place:
    """Where a stage runs: a GPU in full size, or a CPU in small."""

    def __init__(self, small: bool):
        import torch

        self.small = small
        self.device = torch.device("cpu" if small else "cuda")

    def config(self, size: str) -> Any:
        from p2p.config import PolicyConfig

        dim, num_layers, _ = SIZES[size]
        if not self.small:
            return PolicyConfig(dim=dim, num_layers=num_layers)
        return PolicyConfig(
            dim=dim // 32,
            num_layers=2,
            num_heads=2,
            decoder_num_layers=1,
            decoder_num_heads=2,
            num_timesteps=4,
            attention_history=4,
            image_encoder="small_cnn",
            frame_height=48,
            frame_width=48,
        )

    def policy(self, size: str) -> Any:
        import torch

        from p2p.model.policy import Policy

        torch.manual_seed(0)
        return Policy(self.config(size)).to(self.device)

    def autocast(self) -> Any:
        import torch

        return contextlib.nullcontext() if self.small else torch.autocast("cuda", torch.bfloat16)

    def ms(self, function: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
        """Milliseconds of a call, by the device's own clock on a GPU."""
        import torch

        if self.small:
            repeats, warm_up = 1, 1
        for _ in range(warm_up):
            function()
        if self.small:
            started = time.perf_counter()
            function()
            return 1000 * (time.perf_counter() - started)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            function()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / repeats


def ceilings(place: Place) -> Figures:
    """What the card reaches: a copy and a product of matrices."""
    import torch

    side = 256 if place.small else 8192
    dtype = torch.float32 if place.small else torch.bfloat16
    a, b = (torch.randn(side, side, device=place.device, dtype=dtype) for _ in range(2))
    big = torch.empty((1 << 20) if place.small else (1 << 30), dtype=torch.uint8, device=place.device)
    other = torch.empty_like(big)
    copy_ms, product_ms = place.ms(lambda: other.copy_(big)), place.ms(lambda: a @ b)
    return {"copy TB/s": 2 * big.numel() / copy_ms / 1e9, "matmul TFLOP/s": 2 * side**3 / product_ms / 1e9}


def attention(place: Place) -> Figures:
    """The device's attention, forward and backward, against the dense mask; the largest difference."""
    import torch
    import torch.nn.functional as F

    from p2p.model.attention import AttentionPattern, attention_for
    from p2p.model.mask import TokenLayout
    from tests.masks import dense_mask

    layout, worst = TokenLayout(1, 1, 1, 8), 0.0
    for steps, history, sinks in ((5, 2, 0), (37, 9, 1), (6, 6, 2) if place.small else (200, 200, 0)):
        pattern = AttentionPattern(layout, steps, history, sinks)
        length = steps * layout.tokens_per_timestep
        shapes = ((1, 2, length, 64), (1, 2, sinks + length, 64), (1, 2, sinks + length, 64))
        inputs = [torch.randn(shape, device=place.device, requires_grad=True) for shape in shapes]
        mask = dense_mask(layout, steps, history, sinks).to(place.device)
        results = []
        for attend in (
            attention_for(pattern, place.device),
            partial(F.scaled_dot_product_attention, attn_mask=mask),
        ):
            output = attend(*inputs)
            results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
        worst = max(worst, *(float((x - y).abs().max() / y.abs().max()) for x, y in zip(*results, strict=True)))
    return {"largest difference": worst, "ok": worst < 1e-2}


def parity(place: Place) -> Figures:
    """Loss and gradients of a float32 policy here and on the CPU."""
    import torch

    losses, norms = [], []
    for device in (torch.device("cpu"), place.device):
        policy = Place(small=True).policy("150M").to(device).eval()
        model, batch = make_model(policy), make_batch(policy.config, 2)
        part = to_device(batch, 2, device)[0]
        loss = model.loss(model(part), part)["total"]
        loss.backward()
        losses.append(float(loss))
        norms.append(float(torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()))
    difference = max(abs(a / b - 1) for a, b in (losses, norms))
    return {"relative difference": difference, "ok": difference < 1e-3}


def parts(place: Place) -> Figures:
    """Microseconds per frame of the parts at 150M, forward and backward."""
    import torch

    from p2p.data.augment import augment
    from p2p.recipe import ParallelConfig
    from p2p.train.parallel import parallelize

    num_chunks = 1 if place.small else SIZES["150M"][2]
    figures: Figures = {}
    for label, benchmark, compiled in (
        ("eager", False, False),
        ("cudnn.benchmark", True, False),
        ("compiled", True, True),
    ):
        torch.backends.cudnn.benchmark = benchmark
        policy = place.policy("150M").train()
        parallelize(policy, ParallelConfig(compile=compiled), "eager" if place.small else "inductor")
        config = policy.config
        shape = (num_chunks, config.num_timesteps)
        frames = torch.zeros(*shape, 3, config.frame_height, config.frame_width, dtype=torch.uint8, device=place.device)
        text = torch.zeros(*shape, config.num_text_tokens, config.text_dim, device=place.device)
        actions = torch.zeros(*shape, config.num_action_slots, dtype=torch.int64, device=place.device)
        observed = torch.randn(
            frames.flatten(0, 1).shape[0], policy.layout.first_action, config.dim, device=place.device
        )
        y_out = torch.randn(len(observed), config.dim, device=place.device)
        functions = {
            "tokenizer": lambda p=policy, f=frames, t=text: p.observation_tokens(f.flatten(0, 1), t.flatten(0, 1)),
            "transformer": lambda p=policy, o=observed, a=actions: p.transform_tokens(o, a),
            "decoder": lambda p=policy, y=y_out, a=actions: p.decoder(y, p.action_embedding(a.flatten(0, 1))),
        }
        for name, function in functions.items():
            figures[f"{name}, {label}"] = 1000 * place.ms(lambda f=function: learn(place, f)) / len(observed)
    figures["augmentation"] = 1000 * place.ms(lambda: augment(frames)) / len(observed)
    host = torch.zeros(frames.shape, dtype=torch.uint8, pin_memory=not place.small)
    figures["copy of pinned frames"] = 1000 * place.ms(lambda: frames.copy_(host, non_blocking=True)) / len(observed)
    return {name: round(value, 2) for name, value in figures.items()}


def step(place: Place) -> Figures:
    """The whole step of the smallest and the largest size, as the recipes run it, without Composer."""
    import torch

    from p2p.recipe import ParallelConfig
    from p2p.train.parallel import parallelize
    from p2p.train.processor import time_convolutions

    time_convolutions()
    figures: Figures = {}
    for size in ("150M", "1200M"):
        policy = place.policy(size).train()
        parallelize(policy, ParallelConfig(compile=True), "eager" if place.small else "inductor")
        model, num_chunks = make_model(policy), 2 if place.small else SIZES[size][2]
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
        batch = make_batch(policy.config, num_chunks)

        def update(model: Any = model, batch: Any = batch, n: int = num_chunks, optimizer: Any = optimizer) -> None:
            for part in to_device(batch, n, place.device):
                with place.autocast():
                    outputs = model(part)
                model.loss(outputs, part)["total"].backward()
            optimizer.step()
            optimizer.zero_grad()

        ms = place.ms(update)
        figures[f"{size} frames/s"] = round(1000 * num_chunks * policy.config.num_timesteps / ms)
        if not place.small:
            figures[f"{size} GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
    return figures


def composer(place: Place) -> Figures:
    """Composer with FSDP2 on one device: two updates, a checkpoint, two more updates from there."""
    from bench_step import make_shards

    size, updates = "150M", (2, 4)
    config = place.config(size)
    with tempfile.TemporaryDirectory(prefix="p2p-accept-") as folder:
        shards = make_shards(Path(folder), config.num_timesteps, 8)
        changed = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if isinstance(getattr(config, field.name), int | str) and field.name not in ("text_embedder",)
        }
        for last in updates:
            settings = [f"policy.{name}={value}" for name, value in changed.items()]
            settings += [f"data.train={shards}/train", "data.num_workers=1", "global_batch=2", "microbatch=1"]
            settings += [f"max_duration={last}ba", "save_interval=2ba", f"run_folder={folder}/run"]
            command = [sys.executable, "-m", "p2p.train", str(ROOT / "recipes" / f"{size}.yaml"), *settings]
            subprocess.run(command, check=True, capture_output=True, text=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    return {"steps": steps, "ok": max(steps) == updates[-1]}


def serving(place: Place) -> Figures:
    """The captured step against the CPU's ids in float32, then its latency for the sizes in the type that serves."""
    import numpy as np
    import torch

    from p2p.model.captured import CapturedEngine
    from p2p.model.engine import StepEngine
    from p2p.model.inference import for_inference

    small = Place(small=True).policy("150M").eval()
    here = Place(small=True).policy("150M").to(place.device).eval()
    num_steps, same = (6 if place.small else 450), 0
    rng, engines = np.random.default_rng(0), (StepEngine(small), CapturedEngine(here))
    side, slots = small.config.frame_height, small.config.num_action_slots
    for _ in range(num_steps):
        frame = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
        uniforms = rng.random(slots)
        ids = [engine.step(frame, None, uniforms) for engine in engines]
        for engine in engines:
            engine.finish_step()
        same += bool((ids[0] == ids[1]).all())
    figures: Figures = {"steps with the CPU's ids": f"{same} of {num_steps}", "ok": same == num_steps}
    for size in SIZES:
        policy = for_inference(place.policy(size), torch.float32 if place.small else torch.bfloat16)
        engine, side = CapturedEngine(policy), policy.config.frame_height
        frame, taken = rng.integers(256, size=(side, side, 3), dtype=np.uint8), []
        for _ in range(3 if place.small else 300):
            started = time.perf_counter()
            engine.step(frame, None, rng.random(slots))
            taken.append(1000 * (time.perf_counter() - started))
        figures[f"{size} ms p50, p99"] = [round(float(np.percentile(taken[1:], p)), 2) for p in (50, 99)]
    return figures


def loader(place: Place) -> Figures:
    """Frames per second of one loading process."""
    from bench_step import make_shards

    from p2p.data.dataset import GameplayDataset

    config = place.config("150M")
    with tempfile.TemporaryDirectory(prefix="p2p-accept-") as folder:
        shards = make_shards(Path(folder), config.num_timesteps, 8)
        dataset = GameplayDataset.for_policy(config, f"{shards}/train", cache=Path(folder) / "cache", batch_size=1)
        started = time.perf_counter()
        num_chunks = sum(1 for _ in dataset)
    return {"frames/s per core": round(num_chunks * config.num_timesteps / (time.perf_counter() - started))}


STAGES = {stage.__name__: stage for stage in (ceilings, attention, parity, parts, step, composer, serving, loader)}


# ------------------------------------------------------------------ what the stages share


def learn(place: Place, function: Callable[[], Any]) -> None:
    with place.autocast():
        output = function()
    output.float().square().mean().backward()


def make_model(policy: Any) -> Any:
    from p2p.train.composer_policy import ComposerPolicy

    return ComposerPolicy(policy)


def make_batch(config: Any, num_chunks: int) -> dict[str, Any]:
    import torch

    shape = (num_chunks, config.num_timesteps)
    return {
        "frames": torch.randint(256, (*shape, 3, config.frame_height, config.frame_width), dtype=torch.uint8),
        "actions": torch.randint(4, (*shape, config.num_action_slots)),
        "text": torch.zeros(*shape, config.num_text_tokens, config.text_dim),
        "user_mask": torch.ones(shape, dtype=torch.bool),
        "valid_mask": torch.ones(shape, dtype=torch.bool),
        "recording": ["r"] * num_chunks,
        "start": torch.zeros(num_chunks, dtype=torch.int64),
    }


def to_device(batch: dict[str, Any], microbatch: int, device: Any) -> list[dict[str, Any]]:
    import torch

    from p2p.train.composer_policy import split_batch

    return [
        {key: x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x for key, x in part.items()}
        for part in split_batch(batch, microbatch)
    ]


# ------------------------------------------------------------------ processes


def run_stage(name: str, small: bool) -> Figures:
    """A stage in a process of its own; what went wrong stands under "failed"."""
    command = [sys.executable, __file__, "--stage", name, *(["--small"] if small else [])]
    started, limit_s = time.monotonic(), LIMITS_S.get(name, LIMIT_S) * (5 if small else 1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode:
            figures: Figures = {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
        else:
            figures = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        figures = {"failed": f"not done after {error.timeout:.0f} s"}
    return {**figures, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, help="run this one here and print its figures")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--small", action="store_true", help="on a CPU, with tiny policies")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    if args.stage:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        print(json.dumps(STAGES[args.stage](Place(args.small))))
        return
    results = {name: run_stage(name, args.small) for name in args.only}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    print("| stage | figure | value |\n| --- | --- | ---: |")
    for name, figures in results.items():
        for figure, value in figures.items():
            print(f"| {name} | {figure} | {value if not isinstance(value, float) else f'{value:.4g}'} |")
    if any("failed" in figures or figures.get("ok") is False for figures in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
