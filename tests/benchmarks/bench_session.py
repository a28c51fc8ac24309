"""An hour of play at 20 frames a second in one go. `python tests/benchmarks/bench_session.py [--steps 72000]`

A small policy plays; printed are the latency and the memory of each tenth of the session, and how far the
last outputs are from a fresh forward over the timesteps that can still matter to them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from p2p.config import PolicyConfig
from p2p.console import ProgressBar
from p2p.model.engine import StepEngine
from p2p.model.policy import Policy

# No sinks: they are not rotated, so with them an output depends on its absolute position, too, as in the original.
CONFIG = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=20, attention_history=(7, 20), image_encoder="small_cnn",
    decoder_num_heads=4, decoder_num_layers=1, text_dim=16,
)  # fmt: skip
TOLERANCE = 1e-4


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def fresh_output(policy: Policy, frames: list[Tensor], actions: list[Tensor]) -> Tensor:
    """The last y_out of a whole-chunk forward whose layers see as far as the player's caches."""
    config = policy.config
    histories = tuple(min(history, config.num_timesteps - 1) for history in config.histories)
    whole = Policy(dataclasses.replace(config, num_timesteps=len(frames), attention_history=histories)).eval()
    whole.load_state_dict(policy.state_dict())
    text = torch.zeros(1, len(frames), config.num_text_tokens, config.text_dim)
    with torch.no_grad():
        return whole.transform(torch.stack(frames)[None], torch.stack(actions)[None], text)[0, -1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=72_000)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    policy = Policy(CONFIG).eval()
    engine, random = StepEngine(policy), np.random.default_rng(0)
    pool = torch.randint(256, (64, 3, CONFIG.frame_height, CONFIG.frame_width), dtype=torch.uint8)
    reach = sum(CONFIG.histories) + 1  # timesteps that can still matter to an output
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=reach)
    seconds = np.zeros(args.steps, dtype=np.float32)
    tenth = max(args.steps // 10, 1)
    memory = []
    progress = ProgressBar("playing", args.steps, "frames")
    for step in range(args.steps):
        progress.update(step)
        frame = pool[(step * 37) % len(pool)]
        uniforms = random.random(CONFIG.num_action_slots)
        started = time.perf_counter()
        ids = engine.step(frame, None, uniforms)
        engine.finish_step()
        seconds[step] = time.perf_counter() - started
        recent.append((frame, torch.from_numpy(ids)))
        if (step + 1) % tenth == 0:
            memory.append(resident_bytes())
    for i, bytes_now in enumerate(memory):
        p50, p99 = np.percentile(seconds[i * tenth : (i + 1) * tenth] * 1e3, [50, 99])
        print(
            f"steps {i * tenth:>6}-{(i + 1) * tenth:<6} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {bytes_now / 1e6:7.1f} MB"
        )
    assert engine.last_y_out is not None
    frames, actions = (list(column) for column in zip(*recent, strict=True))
    difference = float((engine.last_y_out[0] - fresh_output(policy, frames, actions)).abs().max())
    print(f"after {args.steps} steps: {difference:.1e} from a fresh forward over the last {reach} timesteps")
    growth = memory[-1] / memory[1] - 1
    print(f"memory grew by {growth:.1%} from the second tenth to the last")
    return 0 if difference < TOLERANCE and growth < 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
