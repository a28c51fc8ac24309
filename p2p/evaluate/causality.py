"""How much a policy looks at the picture rather than copying its last action.

    p2p causality POLICY --data STREAM [--repeats 5]

For B chunks, each cut into C equal parts, the score is the sum over B and C of KL(f(o, a) || f(o~, a)) at each
part's end: o~ replaces every frame, with probability 0.5, by a frame of another recording of the same game; the
actions stay. f is the distribution of the whole action, so the divergences of its A slots add up (each given the
recorded slots before it). Larger is more causal; a policy that has learned nothing scores low, too, so read the
score together with the loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2p.console import say

if TYPE_CHECKING:
    import torch

    from p2p.evaluate.stream import Stream

NUM_CHUNKS, NUM_PARTS, SWAP_PROBABILITY = 32, 10, 0.5
NUM_DONORS = 2  # other recordings' chunks that the replacing frames of one chunk come from

PolicyFunction = Callable[..., Any]


@dataclass(frozen=True)
class CausalityScore:
    """Mean and standard deviation over repeats of the sum over B and C, and the loss on the same chunks."""

    score: float
    std: float
    repeats: tuple[float, ...]
    num_chunks: int
    num_parts: int
    loss: float

    @property
    def per_step(self) -> float:
        """The mean divergence of one step in nats: the score over B * C."""
        return self.score / (self.num_chunks * self.num_parts)


def part_ends(num_timesteps: int, num_parts: int) -> list[int]:
    """The last timestep of each of the equal parts of a chunk."""
    if num_timesteps < num_parts:
        raise ValueError(f"chunks of {num_timesteps} timesteps cannot be cut into {num_parts} parts; use --parts less")
    return [(part + 1) * num_timesteps // num_parts - 1 for part in range(num_parts)]


def action_divergence(logits: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> torch.Tensor:
    """KL(f || f~) of the whole action in nats: the heads' logits of both, each [..., slots, V] -> [...]."""
    import torch
    import torch.nn.functional as F

    total = torch.zeros(())
    for mine, theirs in zip(logits, other, strict=True):
        log_p, log_q = F.log_softmax(mine.double(), -1), F.log_softmax(theirs.double(), -1)
        total = total + (log_p.exp() * (log_p - log_q)).sum((-1, -2))
    return total


def swap_frames(frames: torch.Tensor, donors: Sequence[torch.Tensor], rng: np.random.Generator) -> torch.Tensor:
    """A copy of frames [T, 3, Y, X] with each one replaced, with probability 0.5, by a random one of the donors."""
    import torch

    swapped, pool = frames.clone(), torch.cat(list(donors))
    steps = np.flatnonzero(rng.random(len(frames)) < SWAP_PROBABILITY)
    swapped[torch.from_numpy(steps)] = pool[torch.from_numpy(rng.integers(len(pool), size=len(steps)))]
    return swapped


def chunk_divergence(
    policy: PolicyFunction, chunk: dict[str, Any], swapped: torch.Tensor, num_parts: int
) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum over the part ends of one chunk, and the logits of the untouched chunk, head -> [T, slots, V]."""
    import torch

    with torch.inference_mode():
        actions, text = (torch.stack([chunk[name]] * 2) for name in ("actions", "text"))
        logits = policy(torch.stack([chunk["frames"], swapped]), actions, text)._asdict()
    before, after = ({head: value[row] for head, value in logits.items()} for row in (0, 1))
    divergence = action_divergence(before.values(), after.values())
    return float(divergence[part_ends(len(divergence), num_parts)].sum()), before


def causality(
    policy: PolicyFunction,
    stream: Stream,
    num_chunks: int = NUM_CHUNKS,
    num_parts: int = NUM_PARTS,
    num_repeats: int = 5,
    seed: int = 0,
) -> CausalityScore:
    """The score of `policy` (frames, actions, text -> ActionLogits), over fresh chunks and swaps per repeat.

    Raises:
        ValueError: when no game of the stream has two recordings.
    """
    from p2p.evaluate import metrics
    from p2p.model.losses import label_mask

    sums, losses = [], []
    for repeat in range(num_repeats):
        rng = np.random.default_rng([seed, repeat])
        total = 0.0
        for index in stream.draw_chunks(num_chunks, rng):
            chunk = stream.tensors(index)
            donors = [stream.tensors(donor)["frames"] for donor in stream.draw_donors(index, NUM_DONORS, rng)]
            swapped = swap_frames(chunk["frames"], donors, rng)
            divergence, logits = chunk_divergence(policy, chunk, swapped, num_parts)
            total += divergence
            losses.append(metrics.loss_tally(logits, chunk["actions"], label_mask(chunk), stream.space))
        sums.append(total)
    loss = float(metrics.perplexities(metrics.add_tallies(losses))["loss"])
    std = float(np.std(sums, ddof=1)) if num_repeats > 1 else 0.0
    return CausalityScore(float(np.mean(sums)), std, tuple(sums), num_chunks, num_parts, loss)


# ------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, help="policy folder")
    parser.add_argument("--data", required=True, help="stream of recordings: a folder, or s3://...")
    parser.add_argument("--chunks", type=int, default=NUM_CHUNKS, help="B, chunks per repeat (default 32)")
    parser.add_argument("--parts", type=int, default=NUM_PARTS, help="C, parts of a chunk (default 10)")
    parser.add_argument("--repeats", type=int, default=5, help="fresh draws of chunks and frames (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda when there is one)")


def run(args: argparse.Namespace) -> int:
    for name in ("chunks", "parts", "repeats"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; write 1 or more")
    from p2p.evaluate.policies import on_device, open_policy
    from p2p.evaluate.stream import open_stream

    policy = open_policy(args.policy, args.device)
    stream = open_stream(args.data, policy.config)
    result = causality(on_device(policy), stream, args.chunks, args.parts, args.repeats, args.seed)
    say(
        f"causality {result.score:.2f} +- {result.std:.2f} (sum over {args.chunks} chunks x {args.parts} parts, "
        f"{args.repeats} repeats); {result.per_step:.4f} nats a step; loss on these chunks {result.loss:.4f}"
    )
    return 0
