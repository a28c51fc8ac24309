"""What training and serving cost on an H100, counted without one. `python tests/benchmarks/count_gpu.py [--size 150M]`

Forward, loss, backward and optimizer of the released sizes on fake CUDA tensors, compiled through Inductor and Triton
to sm_90: bytes moved and kernels launched per frame by part, beside the time that these bytes and FLOPs take at the
rates below (a roofline, not a measurement: no card has run this); waits for the device, graph breaks and compilations
of a run's shapes. `--eager` counts without torch.compile, `--no-triton` without compiling the kernels. Ends with
status 1 if a step waits or a graph breaks.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from no_gpu import restart_with_device

BYTES_PER_S, FLOPS_PER_S = 2.6e12, 620e12  # what an H100 reaches of its 3.35e12 and 989e12
TRAIN_FACTOR = 3  # forward 1, backward 2
# dim, num_layers, chunks per GPU and at a time, as in the recipes
SIZES = {"150M": (1024, 10, 10, 5), "300M": (1024, 20, 8, 4), "600M": (2048, 9, 8, 4), "1200M": (2048, 22, 5, 3)}
SERVING = "serving"  # not a part: a step of a captured session
RUN = "run"  # not a part: what a run's steps wait for and compile
PARTS = ("augmentation", "tokenizer", "layer", "last layer", "decoder", "losses", "optimizer")
NUM_DRAWS = 40


@dataclass(frozen=True)
class Row:
    """A part's cost per frame; `times` says how often it stands in the policy."""

    name: str
    times: int
    megabytes: float
    kernels: float
    flops: float

    @property
    def memory_us(self) -> float:
        return 1e12 * self.times * self.megabytes / BYTES_PER_S

    @property
    def matmul_us(self) -> float:
        return 1e6 * self.flops / FLOPS_PER_S


class Bench:
    """The parts of one size on fake tensors, each measured at its second call: the first compiles."""

    def __init__(self, size: str, eager: bool, num_timesteps: int, detail: int = 0, triton: bool = True):
        import torch
        from gpu_counter import GpuCounter

        from p2p.config import PolicyConfig
        from p2p.data.augment import draw
        from p2p.model.policy import Policy
        from p2p.recipe import ParallelConfig
        from p2p.train.flops import forward_flops
        from p2p.train.parallel import parallelize

        self.counter, self.detail = GpuCounter(triton_compiles=triton), detail
        dim, num_layers, self.chunks_per_gpu, self.num_chunks = SIZES[size]
        steps = num_timesteps
        self.config = PolicyConfig(dim=dim, num_layers=num_layers, num_timesteps=steps, attention_history=steps)
        self.frames = self.num_chunks * self.config.num_timesteps
        self.flops = forward_flops(self.config)
        generator = torch.Generator().manual_seed(0)
        self.draws = itertools.cycle([draw(generator) for _ in range(NUM_DRAWS * self.num_chunks)])
        with torch.device("meta"):
            self.policy = Policy(self.config).train()
        with self.counter.measured():
            self.policy.to_empty(device="cuda")
        parallelize(self.policy, ParallelConfig(compile=not eager), self.counter.compiler)

    def run(self, part: str) -> Row:
        function = getattr(self, part.replace(" ", "_"))
        times = len(self.policy.layers) - 1 if part == "layer" else 1
        flops, calls, frames = 0.0, 1, self.frames
        if part == "augmentation":
            calls = NUM_DRAWS
        if part == "optimizer":
            frames = self.chunks_per_gpu * self.config.num_timesteps
        flops = TRAIN_FACTOR * sum(self.flops[key] for key in self._flops_of(part))
        if part == "layer":
            flops *= times / len(self.policy.layers)
        elif part == "last layer":
            flops /= len(self.policy.layers)
        with self.counter.measured():
            function()
        with self.counter.measured() as count:
            for _ in range(calls):
                function()
        if count.waits or count.copies:
            print(f"    {part}: waits {dict(count.waits)}, blocking copies {dict(count.copies)}")
        if self.detail:
            for operation, moved in count.by_operation.most_common(self.detail):
                print(f"    {moved / calls / frames / 1e6:.2f} MB {operation}")
        return Row(part, times, count.moved / calls / frames / 1e6, count.kernels / calls / frames, flops)

    def _flops_of(self, part: str) -> tuple[str, ...]:
        return {
            "tokenizer": ("image encoder", "text projection"),
            "layer": ("transformer, linear", "transformer, attention"),
            "last layer": ("transformer, linear", "transformer, attention"),
            "decoder": ("action decoder", "heads"),
        }.get(part, ())

    # ------------------------------------------------------------------ parts

    def frames_and_text(self) -> tuple[Any, Any]:
        import torch

        config = self.config
        frames = torch.empty(self.frames, 3, config.frame_height, config.frame_width, dtype=torch.uint8, device="cuda")
        return frames, torch.empty(self.frames, config.num_text_tokens, config.text_dim, device="cuda")

    def augmentation(self) -> None:
        import torch

        from p2p.data.augment import augment_chunk

        frames, _ = self.frames_and_text()
        torch.stack([augment_chunk(chunk, next(self.draws)) for chunk in frames.unflatten(0, (self.num_chunks, -1))])

    def tokenizer(self) -> None:
        self._learn(lambda: self.policy.observation_tokens(*self.frames_and_text()))

    def layer(self) -> None:
        self._layer(0)

    def last_layer(self) -> None:
        self._layer(len(self.policy.layers) - 1)

    def _layer(self, index: int) -> None:
        import torch

        from p2p.model.attention import AttentionPattern, attention_for
        from p2p.model.layers import rotation

        policy, config = self.policy, self.config
        last = index == len(policy.layers) - 1
        s, out = policy.layout.tokens_per_timestep, policy.layout.out
        length = config.num_timesteps * s
        with self.counter.paused():
            x = torch.empty(self.num_chunks, length, config.dim, device="cuda", requires_grad=True)
            table = rotation(torch.arange(length, device="cuda"), policy.head_dim)
            history = config.histories[index]
            pattern = AttentionPattern(policy.layout, config.num_timesteps, history, config.num_sink_tokens, last)
            attend = attention_for(pattern, x.device)
        rows = slice(out, None, s) if last else None
        self._learn(lambda: policy.layers[index](x, table, attend, rows=rows))

    def decoder(self) -> None:
        import torch

        policy, config = self.policy, self.config
        y_out = torch.empty(self.frames, config.dim, device="cuda", requires_grad=True)
        actions = torch.empty(self.frames, config.num_action_slots, dtype=torch.int64, device="cuda")
        self._learn(lambda: policy.heads(policy.decoder(y_out, policy.action_embedding(actions))))

    def losses(self) -> None:
        import torch

        from p2p.actions import HEADS, NUM_CHOICES
        from p2p.model.losses import FrameCounts, combine, sum_heads
        from p2p.model.policy import ActionLogits

        space = self.config.action_space
        actions = torch.empty(self.frames, self.config.num_action_slots, dtype=torch.int64, device="cuda")
        mask = torch.empty(self.frames, dtype=torch.bool, device="cuda")
        with self.counter.paused():
            logits = ActionLogits(
                *(
                    torch.empty(
                        self.frames,
                        len(range(space.num_slots)[space.head_slots[head]]),
                        NUM_CHOICES[head],
                        dtype=torch.bfloat16,
                        device="cuda",
                        requires_grad=True,
                    )
                    for head in HEADS
                )
            )
        combine(sum_heads(logits, actions, mask, space), FrameCounts(1.0, 1.0))["total"].backward()

    def optimizer(self) -> None:
        import torch

        with self.counter.paused():
            parameters = [p.detach().requires_grad_() for p in self.policy.parameters()]
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
            optimizer.step()
        optimizer.step()

    def _learn(self, function: Callable[[], Any]) -> None:
        """Forward and backward from a gradient that is there already."""
        import torch

        with torch.autocast("cuda", torch.bfloat16):
            outputs = function()
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        with self.counter.paused():
            gradients = [torch.empty_like(x) for x in outputs]
        torch.autograd.backward(outputs, gradients)
        for parameter in self.policy.parameters():
            parameter.grad = None


def print_row(row: Row) -> None:
    name = row.name if row.times == 1 else f"{row.name} (x {row.times})"
    print(
        f"| {name} | {row.megabytes:.2f} | {row.kernels * 1000:.0f} | {row.memory_us:.1f} | {row.matmul_us:.1f} "
        f"| {max(row.memory_us, row.matmul_us):.1f} |",
        flush=True,
    )


def check_run(eager: bool) -> bool:
    """Print what a run's steps wait for; whether they wait for nothing, and each shape is compiled once."""
    from gpu_run import MICROBATCH, count_run

    run = count_run(compile_layers=not eager)
    print(f"a run with microbatches of {MICROBATCH} and less, two validation sets with odd last batches:")
    print(f"  waits for the device: {dict(run.waits) or 'none'}")
    print(f"  blocking copies to it: {dict(run.copies) or 'none'}")
    print(f"  graphs compiled: {run.graphs_at_first} in the first round, {run.graphs_later} later")
    print(f"  functions given up, for too many shapes: {run.gave_up or 'none'}")
    print(f"  graph breaks: {run.graph_breaks or 'none'}", flush=True)
    return not (run.waits or run.copies or run.graphs_later or run.graph_breaks or run.gave_up)


def count_serving(size: str, num_timesteps: int) -> None:
    """Print what one captured step launches and moves, without the graph: capturing needs a card."""
    import torch
    from gpu_counter import GpuCounter

    from p2p.config import PolicyConfig
    from p2p.model.captured import CapturedEngine
    from p2p.model.image import fold_batch_norm
    from p2p.model.policy import Policy

    dim, num_layers, *_ = SIZES[size]
    steps = num_timesteps
    counter = GpuCounter()
    with torch.device("meta"):
        policy = Policy(PolicyConfig(dim=dim, num_layers=num_layers, num_timesteps=steps, attention_history=steps))
    CapturedEngine._capture = lambda engine: None
    with counter.measured():
        policy.to_empty(device="cuda").requires_grad_(False)
        policy.image_tokenizer.encoder = fold_batch_norm(policy.image_tokenizer.encoder)
        policy.to(torch.bfloat16)
        engine = CapturedEngine(policy)
    with counter.measured() as count, torch.no_grad():
        engine._compute()
    print(f"{size}, a step of a session: {count.kernels:,} launches in the graph, {count.moved / 1e9:.2f} GB moved")
    print(f"    waits {dict(count.waits) or 'none'}, blocking copies {dict(count.copies) or 'none'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, RUN, SERVING), default=(*PARTS, RUN, SERVING))
    parser.add_argument("--timesteps", type=int, default=200)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--no-triton", action="store_true", help="count Inductor's code, but do not compile it: quick")
    parser.add_argument("--detail", type=int, default=0, help="name that many uncompiled operations of each part")
    parser.add_argument("--caches", type=Path, default=Path(tempfile.gettempdir()) / "p2p-count-gpu")
    args = parser.parse_args()
    restart_with_device(args.caches)
    os.nice(10)
    good = check_run(args.eager) if RUN in args.parts else True
    parts = [part for part in args.parts if part not in (RUN, SERVING)]
    if SERVING in args.parts:
        for size in args.size:
            count_serving(size, args.timesteps)
    for size in args.size if parts else []:
        started = time.monotonic()
        bench = Bench(size, args.eager, args.timesteps, args.detail, not args.no_triton)
        print(f"\n{size}, {bench.num_chunks} chunks of {args.timesteps} at a time\n")
        print("| part | MB per frame | kernels per 1000 frames | us: memory | us: matmul | us: the larger |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        rows = []
        for part in parts:
            rows.append(bench.run(part))
            print_row(rows[-1])
        total = sum(max(row.memory_us, row.matmul_us) for row in rows)
        print(f"\n{total:.0f} us per frame, {1e6 / total:,.0f} frames/s; counted in {time.monotonic() - started:.0f} s")
        print(f"graphs compiled: {len(bench.counter.compiled)}; graph breaks: {bench.counter.graph_breaks or 'none'}")
        good &= not bench.counter.graph_breaks
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
