"""Time from a frame to its answer. `python tests/benchmarks/bench_serve.py [--device cuda] [--size 150M]`

On a CPU: the engine beside a straightforward implementation of the original's procedure, step by step in turn, with the
full cache; until the answer, and after it; ratios of medians. The weights are random, so no guess would ever be right
by itself: guesses are made right up to the slot at which the recorded action differed from the one before, for steps of
the recordings in --recordings, or of some episodes of the scripted player that `p2p record` makes meanwhile. With one
thread, times are those of the processor, which other work on the machine changes little. On a GPU: p50 and p99 of the
captured step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from original_procedure import OriginalProcedure

from p2p.actions import Action, ActionSpace
from p2p.config import PolicyConfig, SamplingConfig
from p2p.data.resize import resize
from p2p.model.cache import Stepper
from p2p.model.decode import DecoderRunner
from p2p.model.inference import for_inference
from p2p.model.policy import Policy

SIZES = {"150M": (1024, 10), "300M": (1024, 20), "600M": (2048, 9), "1200M": (2048, 22)}
RECORDED_GAME, NUM_RECORDED = "doom:health_gathering", 6


def random_policy(size: str, device: str = "cpu") -> Policy:
    dim, num_layers = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        return Policy(PolicyConfig(dim=dim, num_layers=num_layers)).eval()


def random_frame(config: PolicyConfig) -> Tensor:
    return torch.randint(256, (1, 3, config.frame_height, config.frame_width), dtype=torch.uint8)


def print_percentiles(name: str, seconds: list[float]) -> None:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    print(f"{name:44s} p50 {p50:8.2f} ms   p99 {p99:8.2f} ms")


# ------------------------------------------------------------------ CPU


def fill(cache_owner: OriginalProcedure | Stepper, policy: Policy) -> None:
    """Fill the cache as after a window of play; what the values are does not matter to the time."""
    window, s = policy.config.num_timesteps, policy.layout.tokens_per_timestep
    if isinstance(cache_owner, Stepper):
        cache = cache_owner.cache
        for step in range(window + 1):
            index = torch.arange(s)
            for ring in cache.rings.values():
                ring.write(torch.full_like(index, step), index)
        for layer in cache.layers:
            layer.keys.normal_()
            layer.values.normal_()
        cache.num_steps = window + 1
        return
    shape = (1, policy.config.num_heads, (window - 1) * s, policy.head_dim)
    cache_owner.caches = [(torch.randn(shape), torch.randn(shape)) for _ in policy.layers]
    cache_owner.num_steps = window


def one_engine_step(
    stepper: Stepper,
    decoder: DecoderRunner,
    frame: Tensor,
    text: Tensor,
    num_right: int,
    random: np.random.Generator,
    clock: Callable[[], float],
) -> tuple[float, float, int]:
    """Seconds until the answer and after it, and decoder passes, with a guess of which `num_right` slots are right.

    What StepEngine's `step` and `finish_step` do, by hand, because the guess is to be so right and no better.
    """
    policy = stepper.policy
    uniforms = torch.from_numpy(random.random((1, policy.config.num_action_slots))).float()
    sampling = SamplingConfig()
    started = clock()
    y_out = stepper.observe(frame, text)
    observed = clock() - started
    answer = decoder.decode(y_out, uniforms, sampling).ids  # what the guess must be to be right, not timed
    guess = answer.clone()
    guess[:, num_right:] = (guess[:, num_right:] + 1) % 4
    started = clock()
    decoded = decoder.decode(y_out, uniforms, sampling, guess)
    stepper.act(decoded.ids)
    answer_s = observed + clock() - started
    started = clock()
    stepper.remember()
    return answer_s, clock() - started, decoded.num_passes


def slots_repeated(recordings: Path) -> NDArray[np.int64]:
    """For each recorded step, how many slots from the first on equal those of the step before (8: all)."""
    from p2p.recording import executed_action, read_annotation

    files = sorted(recordings.glob("*/annotation.proto"))
    if not files:
        raise SystemExit(f"{recordings}: no recordings there; without --recordings some are made")
    lengths, space = [], ActionSpace()
    for file in files:
        actions = [executed_action(frame)[0] for frame in read_annotation(file).frame_annotations]
        known = np.array([action is not None for action in actions])
        ids = np.stack([space.encode_action(action or Action()) for action in actions])
        equal = (ids[1:] == ids[:-1])[known[1:] & known[:-1]]
        lengths.append(np.where(equal.all(1), equal.shape[1], equal.argmin(1)))
    return np.concatenate(lengths)


def record_some(folder: Path) -> Path:
    """Recordings of the scripted player in a new folder, by the command that a user types."""
    out = folder / "recordings"
    how = ["--game", RECORDED_GAME, "--episodes", str(NUM_RECORDED), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "p2p", "record", *how], check=True, stderr=subprocess.DEVNULL)
    return out


def bench_cpu(size: str, num_steps: int, repeated: NDArray[np.int64], num_threads: int) -> None:
    right_rate = float((repeated == ActionSpace().num_slots).mean())
    print(
        f"{right_rate:.1%} of {len(repeated):,} recorded actions repeat the one before; load {os.getloadavg()[0]:.1f}"
    )
    torch.set_num_threads(num_threads)
    policy = random_policy(size)
    fast = for_inference(random_policy(size))
    clock = time.process_time if num_threads == 1 else time.perf_counter
    original = OriginalProcedure(policy, SamplingConfig(), clock)
    print(
        f"{size}, {num_threads} thread(s), cache of {policy.config.num_timesteps} steps; the engine in "
        f"{fast.out_token.dtype}, the original's procedure in {original.precision.said}"
    )
    stepper, decoder = Stepper(fast), DecoderRunner(fast)
    fill(original, policy)
    fill(stepper, fast)
    text = torch.zeros(1, policy.config.num_text_tokens, policy.config.text_dim)
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"answer": [], "total": [], "never": [], "rate": [], "after": []}
    passes = []
    for step in range(num_steps + 1):
        frame = random_frame(policy.config)
        uniforms = torch.from_numpy(random.random((1, policy.config.num_action_slots))).float()
        original.step(frame, text, uniforms)
        never, _, _ = one_engine_step(stepper, decoder, frame, text, 0, random, clock)
        num_right = int(random.choice(repeated))
        at_rate, after, num_passes = one_engine_step(stepper, decoder, frame, text, num_right, random, clock)
        if step:  # the first warms up
            for key, value in zip(seconds, (original.answer_s, original.total_s, never, at_rate, after), strict=True):
                seconds[key].append(value)
            passes.append(num_passes)
    print_percentiles("original's procedure, until the answer", seconds["answer"])
    print_percentiles("original's procedure, all", seconds["total"])
    print_percentiles("engine, no guess ever right", seconds["never"])
    print_percentiles(f"engine, {right_rate:.0%} of actions guessed right", seconds["rate"])
    print_percentiles("engine, after the answer", seconds["after"])
    median = {key: float(np.median(value)) for key, value in seconds.items()}
    mean_rate = float(np.mean(seconds["rate"]))
    print(f"decoder passes at that rate: {np.mean(passes):.2f}")
    for name, value in (("no guess right", median["never"]), ("guesses at that rate, mean", mean_rate)):
        print(
            f"ratio, {name}: {value / median['answer']:.2f} of the original's time until the answer; the whole step, "
            f"with what follows the answer, {(value + median['after']) / median['total']:.2f} of the original's"
        )


def bench_resize(num_frames: int = 50) -> None:
    """From a captured picture to the model's size, in CPU seconds of one thread, beside copying that picture."""
    random = np.random.default_rng(0)
    for height, width in ((480, 640), (1080, 1920), (1440, 2560)):
        frame = random.integers(256, size=(height, width, 3), dtype=np.uint8)
        resize(frame, 192, 192)
        started = time.process_time()
        for _ in range(num_frames):
            resize(frame, 192, 192)
        ours = (time.process_time() - started) / num_frames
        started = time.process_time()
        for _ in range(num_frames):
            frame.copy()
        copied = (time.process_time() - started) / num_frames
        print(f"resizing {width}x{height}: {1000 * ours:.2f} ms, {ours / copied:.1f} x copying it")


# ------------------------------------------------------------------ GPU


def bench_gpu(sizes: list[str], num_steps: int) -> None:
    from p2p.model.captured import CapturedEngine

    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for size in sizes:
        policy = for_inference(random_policy(size, "cuda"))
        engine = CapturedEngine(policy, SamplingConfig())
        seconds = []
        for _ in range(num_steps + policy.config.num_timesteps):
            frame, uniforms = random_frame(policy.config)[0], torch.rand(policy.config.num_action_slots)
            started = time.perf_counter()
            engine.step(frame, None, uniforms)
            seconds.append(time.perf_counter() - started)
        print_percentiles(f"{size} bf16, captured, full cache", seconds[policy.config.num_timesteps :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, help="default: 150M on a CPU, all on a GPU")
    parser.add_argument("--steps", type=int, help="default: 20 on a CPU, 1000 on a GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--recordings", type=Path, help=f"on a CPU; default: {NUM_RECORDED} of {RECORDED_GAME} are made"
    )
    args = parser.parse_args()
    if args.device == "cuda":
        bench_gpu([args.size] if args.size else list(SIZES), args.steps or 1000)
    else:
        with tempfile.TemporaryDirectory(prefix="p2p-bench-") as folder:
            repeated = slots_repeated(args.recordings or record_some(Path(folder)))
        bench_resize()
        bench_cpu(args.size or "150M", args.steps or 20, repeated, args.threads)


if __name__ == "__main__":
    main()
