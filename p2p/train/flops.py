"""`p2p flops recipes/X.yaml`: what a recipe costs, counted on the meta device: parameters, FLOPs, memory, hours.

FLOPs are those of the architecture as docs/training.md defines it (a multiply-add is 2, backward is twice
forward, nothing is subtracted for work that the code manages to skip), so MFUs can be compared between
implementations.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from p2p.actions import FRAME_RATE_HZ
from p2p.config import PolicyConfig
from p2p.console import say
from p2p.recipe import Recipe, load_recipe, parse_duration

if TYPE_CHECKING:
    from torch import Tensor, nn

    from p2p.model.layers import Layer
    from p2p.model.policy import Policy

log = logging.getLogger(__name__)

TRAIN_FACTOR = 3  # forward 1, backward 2
# Dense bf16 with float32 accumulation, FLOP/s, by what the device's name contains (makers' data sheets).
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "B100": 1750e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class StepCost:
    """One update of the global batch; `peak_flops` is that of all devices together, None where unknown."""

    frames: int
    tokens: int
    flops: float
    peak_flops: float | None


def step_cost(recipe: Recipe, num_processes: int) -> StepCost:
    """The cost of one update, for progress and MFU."""
    frames = recipe.global_batch * recipe.policy.num_timesteps
    flops = TRAIN_FACTOR * sum(forward_flops(recipe.policy).values()) * frames
    peak = peak_flops_here()
    tokens = frames * recipe.policy.tokens_per_timestep
    return StepCost(frames, tokens, flops, None if peak is None else peak * num_processes)


def peak_flops_here() -> float | None:
    """Peak of the GPU at hand; None on a CPU or an unknown GPU."""
    import torch

    return peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_flops(device_name: str) -> float | None:
    """Peak of a device by its name, however that is spaced: NVIDIA GeForce RTX 4090, RTX4090, rtx-4090."""
    return next((peak for name, peak in PEAK_FLOPS.items() if _squeezed(name) in _squeezed(device_name)), None)


def _squeezed(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def visible_pairs(config: PolicyConfig, history: int) -> int:
    """Query-key pairs that a layer's mask lets through in one chunk of T timesteps."""
    s, a = config.tokens_per_timestep, config.num_action_slots
    num_obs = s - a - 1
    earlier_steps = sum(min(t, history) for t in range(config.num_timesteps))
    same_step = num_obs * num_obs + (num_obs + 1) + a * (num_obs + a)
    sinks = s * config.num_sink_tokens
    return earlier_steps * s * (s - 1) + config.num_timesteps * (same_step + sinks)


def forward_flops(config: PolicyConfig) -> dict[str, float]:
    """FLOPs per frame of a forward pass over chunks of T timesteps, by part."""
    d, s, a = config.dim, config.tokens_per_timestep, config.num_action_slots
    layer = 2 * (4 * d * d + 3 * d * config.hidden_dim)  # per token: qkv, output, w13, w2
    pairs = sum(visible_pairs(config, history) for history in config.histories)
    decoder_pairs = sum(i + 2 for i in range(a + 1))  # causal, with one sink
    decoder = config.decoder_num_layers * ((a + 1) * layer + 4 * d * decoder_pairs) + 2 * d * d
    return {
        "image encoder": _image_flops(config),
        "text projection": 2.0 * config.num_text_tokens * config.text_dim * d,
        "transformer, linear": float(config.num_layers * s * layer),
        "transformer, attention": 4.0 * d * pairs / config.num_timesteps,
        "action decoder": float(decoder),
        "heads": 2.0 * d * sum(config.action_space.num_choices),
    }


def _image_flops(config: PolicyConfig) -> float:
    """Counted by running the encoder on a frame without data."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tokenizer = meta_policy(config).image_tokenizer.eval()
    frame = torch.empty(1, 3, config.frame_height, config.frame_width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokenizer(frame)
    return float(counter.get_total_flops())


def meta_policy(config: PolicyConfig) -> Policy:
    """The policy without weights."""
    import torch

    from p2p.model.policy import Policy

    with torch.device("meta"):
        return Policy(config)


def parameters_by_part(policy: Policy) -> dict[str, int]:
    """Trainable parameters, by the parts of docs/training.md."""
    parts = dict.fromkeys(
        ("image encoder", "transformer", "action decoder", "text projection", "tokens", "action embeddings", "heads"), 0
    )
    prefixes = {
        "image_tokenizer.": "image encoder",
        "layers.": "transformer",
        "decoder.": "action decoder",
        "text_projection.": "text projection",
        "action_embedding.": "action embeddings",
        "heads.": "heads",
    }
    for name, parameter in policy.named_parameters():
        part = next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "tokens")
        parts[part] += parameter.numel()
    return parts


# ------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU."""

    states: float  # weights, gradients, both moments, the average: float32, shared over the GPUs
    gathered: float  # the largest unit and the next one, gathered, float32 and its bf16 copy
    activations: float  # of one microbatch: an estimate

    @property
    def total(self) -> float:
        return self.states + self.gathered + self.activations


def memory_per_gpu(recipe: Recipe, num_gpus: int) -> Memory:
    """Under the recipe's sharding, checkpointing and microbatch."""
    from p2p.train.parallel import sharding_units

    policy = meta_policy(recipe.policy)
    num_parameters = sum(p.numel() for p in policy.parameters())
    units = sorted(sum(p.numel() for p in unit.parameters()) for unit in sharding_units(policy))
    per_parameter = 16 + (4 if recipe.ema_half_life is not None else 0)
    gathered = sum(units[-2:]) if recipe.parallel.reshard_after_forward else num_parameters
    chunks = min(recipe.microbatch or recipe.global_batch, max(recipe.global_batch // num_gpus, 1))
    activations = _saved_bytes_per_frame(policy, recipe) * chunks * recipe.policy.num_timesteps
    return Memory(per_parameter * num_parameters / num_gpus, 6.0 * gathered, activations)


def _saved_bytes_per_frame(policy: Policy, recipe: Recipe) -> float:
    """What autograd keeps for backward, by running one frame through each part in bf16 without data."""
    import torch

    config = recipe.policy
    policy.to(torch.bfloat16).train()

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta", dtype=torch.bfloat16, requires_grad=True)

    frames = 16
    pixels = empty(frames, 3, config.frame_height, config.frame_width)
    image = saved_bytes(policy.image_tokenizer, lambda: policy.image_tokenizer(pixels)) / frames
    layer, decoder_layer = cast("Layer", policy.layers[0]), cast("Layer", policy.decoder.layers[0])
    decoder_tokens = config.num_action_slots
    if recipe.parallel.activation_checkpointing:  # the layers' inputs alone: the main stream is float32
        main, decoder = 4.0 * config.tokens_per_timestep * config.dim, 2.0 * decoder_tokens * config.dim
    else:
        main = _saved_by_layer(layer, config.tokens_per_timestep, config.dim // config.num_heads, empty)
        decoder = _saved_by_layer(decoder_layer, decoder_tokens, policy.decoder.head_dim, empty)
    return image + config.num_layers * main + config.decoder_num_layers * decoder


def _saved_by_layer(layer: Layer, num_tokens: int, head_dim: int, empty: Callable[..., Tensor]) -> float:
    from p2p.model.layers import rotation

    table = rotation(empty(num_tokens).float().detach(), head_dim)
    width = layer.attention.qkv.in_features
    return saved_bytes(layer, lambda: layer(empty(1, num_tokens, width), table, _keep_qkv))


def _keep_qkv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As much kept for backward as by fused attention: q, k, v and an output."""
    return q * q + k[..., -q.shape[-2] :, :] + v[..., -q.shape[-2] :, :] * v[..., -q.shape[-2] :, :]


def saved_bytes(module: nn.Module, forward: Callable[[], object]) -> float:
    """Bytes of the storages that autograd keeps in `forward`, those of the module's parameters left out."""
    import torch

    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return float(sum(storage.nbytes() for storage in saved.values()))


# ------------------------------------------------------------------ the loader


@dataclass(frozen=True)
class Loader:
    """What loading costs: frames that a core prepares a second, stored bytes per frame, frames of the data set."""

    frames_per_core_s: float = 2206.0
    bytes_per_frame: float = 3920.0
    dataset_frames: float = 5e8

    def __post_init__(self) -> None:
        if min(self.frames_per_core_s, self.bytes_per_frame, self.dataset_frames) <= 0:
            raise ValueError(
                f"--loader-rate {self.frames_per_core_s}, --frame-bytes {self.bytes_per_frame}, "
                f"--dataset-frames {self.dataset_frames}: write positive numbers"
            )


def loader_needs(recipe: Recipe, num_gpus: int, frames_per_s: float, loader: Loader) -> list[str]:
    """What it takes to feed `frames_per_s`: cores, workers, network, cache, memory for what is prepared ahead.

    As much is prepared ahead as the trainer asks for: `prefetch_factor` batches by each worker, uint8 frames. Workers
    are as many as let each decoder go on from chunk to chunk (p2p/data/order.py).
    """
    from p2p.data.order import LANES_PER_CHUNK

    config, data = recipe.policy, recipe.data
    cores = frames_per_s / loader.frames_per_core_s
    needed = math.ceil(cores / num_gpus)
    workers = next((n for n in range(needed, LANES_PER_CHUNK + 1) if LANES_PER_CHUNK % n == 0), needed)
    pixels = 3 * config.frame_height * config.frame_width
    batch = recipe.global_batch / num_gpus * config.num_timesteps * pixels
    epoch_h = loader.dataset_frames / frames_per_s / 3600
    rows = [
        ("cores for loading", f"{cores:,.1f}", f"at {loader.frames_per_core_s:,.0f} frames/s each"),
        ("data.num_workers", f"{workers}", f"for each of the {num_gpus} training processes"),
        ("MB/s from the store", f"{frames_per_s * loader.bytes_per_frame / 1e6:,.0f}", "while the cache fills"),
        (
            "GB of cache",
            f"{loader.dataset_frames * loader.bytes_per_frame / 1e9:,.0f}",
            f"for {loader.dataset_frames:,.0f} frames of {loader.bytes_per_frame:,.0f} bytes, "
            f"{epoch_h:,.1f} hours an epoch",
        ),
        (
            "GB of shared memory",
            f"{num_gpus * workers * data.prefetch_factor * batch / 1e9:,.0f}",
            f"for {data.prefetch_factor} batches ahead of each worker",
        ),
        ("MB/s to each GPU", f"{frames_per_s / num_gpus * pixels / 1e6:,.0f}", "of uint8 frames"),
    ]
    return [
        f"to feed {num_gpus} GPUs with {frames_per_s:,.0f} frames/s:",
        *(f"  {what:<20}{number:>10}  {detail}" for what, number, detail in rows),
    ]


# ------------------------------------------------------------------ the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a recipe file, or the name of one of recipes/, such as 150M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as of p2p train")
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs (8)")
    parser.add_argument("--gpu", default="H100", help=f"peak of: {', '.join(PEAK_FLOPS)} (H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="utilisation to reckon with (0.4)")
    parser.add_argument("--frames", type=float, default=None, help="frames to train on (default: those of the recipe)")
    parser.add_argument(
        "--loader-rate",
        type=float,
        default=Loader.frames_per_core_s,
        metavar="FRAMES",
        help="frames that one core loads a second (%(default)g, measured: docs/benchmarks.md)",
    )
    parser.add_argument(
        "--frame-bytes",
        type=float,
        default=Loader.bytes_per_frame,
        metavar="BYTES",
        help="stored bytes a frame (%(default)g, measured: docs/benchmarks.md)",
    )
    parser.add_argument(
        "--dataset-frames",
        type=float,
        default=Loader.dataset_frames,
        metavar="FRAMES",
        help="frames of data.train (%(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe, args.overrides)
    peak = peak_flops(args.gpu)
    if peak is None:
        raise ValueError(f"--gpu {args.gpu!r} is not known; choose one of {', '.join(PEAK_FLOPS)}")
    if not 0 < args.mfu <= 1 or args.gpus < 1:
        raise ValueError(f"--mfu {args.mfu} must be in (0, 1], --gpus {args.gpus} at least 1")
    say("\n".join(describe(recipe, args.gpus, peak, args.mfu, args.frames)))
    rate = frames_per_second(recipe, peak * args.gpus * args.mfu)
    loader = Loader(args.loader_rate, args.frame_bytes, args.dataset_frames)
    say("\n".join(["", *loader_needs(recipe, args.gpus, rate, loader)]))
    return 0


def frames_per_second(recipe: Recipe, flops_per_second: float) -> float:
    """How many frames training takes in."""
    cost = step_cost(recipe, 1)
    return cost.frames * flops_per_second / cost.flops


def describe(recipe: Recipe, num_gpus: int, peak: float, mfu: float, num_frames: float | None) -> list[str]:
    """The lines of the command's answer."""
    parts = parameters_by_part(meta_policy(recipe.policy))
    flops = forward_flops(recipe.policy)
    cost = step_cost(recipe, num_gpus)
    frames, origin = _frames_of(recipe, cost, num_frames)
    seconds = frames / cost.frames * cost.flops / (peak * num_gpus * mfu)
    memory = memory_per_gpu(recipe, num_gpus)
    lines = [f"{recipe.name}: {sum(parts.values()):,} parameters", *_table(parts, "{:>18,}")]
    lines += [
        "",
        f"forward per frame: {sum(flops.values()) / 1e9:.2f} GFLOP, of chunks of {recipe.policy.num_timesteps}",
    ]
    lines += [f"  {name:<24}{value / 1e9:>12.3f}" for name, value in flops.items()]
    lines += ["", f"update: {cost.frames:,} frames, {cost.tokens:,} tokens, {cost.flops / 1e12:.1f} TFLOP"]
    lines += ["", f"memory per GPU of {num_gpus} (GB): {memory.total / 1e9:.1f}"]
    lines += [f"  weights, gradients, optimizer{memory.states / 1e9:>8.1f}"]
    lines += [f"  gathered units               {memory.gathered / 1e9:>8.1f}"]
    lines += [f"  activations (estimate)       {memory.activations / 1e9:>8.1f}"]
    lines += ["", f"{frames:,.0f} frames ({origin}) = {frames / FRAME_RATE_HZ / 3600:,.0f} hours of play, "]
    lines[-1] += f"{frames * recipe.policy.tokens_per_timestep:,.0f} tokens, {frames / cost.frames:,.0f} updates:"
    lines += [f"  {seconds / 3600:,.1f} hours at {mfu:.0%} of {num_gpus} x {peak / 1e12:.0f} TFLOP/s, "]
    lines[-1] += f"{frames / seconds:,.0f} frames/s"
    return lines


def _table(parts: dict[str, int], form: str) -> list[str]:
    return [f"  {name:<18}{form.format(value)}" for name, value in parts.items()]


def _frames_of(recipe: Recipe, cost: StepCost, num_frames: float | None) -> tuple[float, str]:
    if num_frames is not None:
        return num_frames, "as given"
    number, unit = parse_duration(recipe.max_duration, "max_duration")
    if unit != "ba":
        raise ValueError(f"max_duration is {recipe.max_duration}: epochs; give the number of frames by --frames")
    return float(number * cost.frames), f"{recipe.max_duration} of the recipe"
