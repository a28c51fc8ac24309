"""Why deeper policies copy less: the toy experiment where the causal answer is known.

    python examples/toy_causality.py [--steps 4000000] [--seeds 3] [--plot docs/toy_causality.png]

A driver must brake while an obstacle is in sight. Each observation holds the obstacle bit, the brake-light bit
(the previous action) and three standard normal noise numbers. An obstacle appears with probability 0.1 and is gone
with probability 0.025 per step, so copying the light is right 96 % of the time. MLPs of width 10 with 0 to 4
hidden layers learn the driver's action one step at a time (SGD, batch 1, learning rate 1e-4). The score
    log p(brake | obstacle, no light) - log p(brake | light, no obstacle)
is positive when the net acts on the obstacle rather than the light. All nets train together: shallower ones are
the deepest one with pass-through layers, so that every array has the shape [layers, nets, ...].
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

P_APPEAR, P_GONE = 0.1, 0.025
NUM_NOISE = 3
WIDTH = 10
LEARNING_RATE = 1e-4
DEPTHS = (0, 1, 2, 3, 4)
CAUSAL_SCORE = 2.0  # "causal" in the table: braking for the obstacle is e^2 times as likely as for the light
NUM_SCORE_DRAWS = 256
CHUNK_STEPS = 10_000
NUM_SCORES = 40

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ToyResult:
    """scores [num_scored, depths, seeds] after `steps` [num_scored] updates."""

    steps: NDArray[np.int64]
    scores: Array
    depths: tuple[int, ...]
    seconds: float

    def steps_to_causal(self) -> Array:
        """[depths, seeds]: updates until the score first reached CAUSAL_SCORE; infinite when it never did."""
        reached = self.scores >= CAUSAL_SCORE
        first = self.steps[reached.argmax(axis=0)].astype(np.float64)
        return np.where(reached.any(axis=0), first, np.inf)


# ------------------------------------------------------------------ the world


def obstacles(num_steps: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """bool [num_steps]: whether an obstacle is in sight, from alternating geometric stays."""
    num_stays = int(num_steps * 2 / (1 / P_APPEAR + 1 / P_GONE)) + 100
    first = rng.random() < P_APPEAR / (P_APPEAR + P_GONE)
    present = (np.arange(num_stays) % 2 == 0) == first
    stays = np.where(present, rng.geometric(P_GONE, num_stays), rng.geometric(P_APPEAR, num_stays))
    while stays.sum() < num_steps:  # rare: the drawn stays were short
        stays, present = np.tile(stays, 2), np.tile(present, 2)
    return np.repeat(present, stays)[:num_steps]


def observation_chunks(num_steps: int, seeds: int) -> Iterator[tuple[Array, Array]]:
    """Observations [C, seeds, 5] (obstacle, light, noise) and the driver's actions [C, seeds], in chunks."""
    generators = [np.random.default_rng(seed) for seed in range(seeds)]
    seen = np.stack([obstacles(num_steps + 1, rng) for rng in generators], axis=1).astype(np.float64)
    for start in range(0, num_steps, CHUNK_STEPS):
        stop = min(start + CHUNK_STEPS, num_steps)
        noise = np.stack([rng.standard_normal((stop - start, NUM_NOISE)) for rng in generators], axis=1)
        now, light = seen[start + 1 : stop + 1], seen[start:stop]
        yield np.concatenate([now[..., None], light[..., None], noise], axis=-1), now


# ------------------------------------------------------------------ the nets


class Nets:
    """depths x seeds MLPs trained together; net n has depth depths[n // seeds] and reads the stream n % seeds."""

    def __init__(self, depths: tuple[int, ...], seeds: int, learning_rate: float = LEARNING_RATE) -> None:
        self.depths, self.seeds, self.learning_rate = depths, seeds, learning_rate
        self.num_layers, self.num_nets = max(depths) + 1, len(depths) * seeds
        shape = (self.num_layers, self.num_nets)
        self.weights = np.zeros((*shape, WIDTH, WIDTH + 1))  # the last column is the bias
        self.rates = np.zeros((*shape, WIDTH, 1))
        self.floors = np.full((*shape, WIDTH), -np.inf)  # ReLU is max(z, 0), pass-through max(z, -inf)
        for net in range(self.num_nets):
            self._build(net, depths[net // seeds], np.random.default_rng([net % seeds, depths[net // seeds]]))
        self.inputs = np.zeros((self.num_layers + 1, self.num_nets, WIDTH + 1, 1))
        self.inputs[:, :, WIDTH] = 1.0
        self.deltas = np.zeros((self.num_layers + 1, self.num_nets, WIDTH, 1))

    def _build(self, net: int, depth: int, rng: np.random.Generator) -> None:
        num_in = 2 + NUM_NOISE
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            if not last and layer >= depth:
                self.weights[layer, net, :, :WIDTH] = np.eye(WIDTH)
                continue
            num_out, bound = (1 if last else WIDTH), 1 / np.sqrt(num_in)
            self.weights[layer, net, :num_out, :num_in] = rng.uniform(-bound, bound, (num_out, num_in))
            self.weights[layer, net, :num_out, WIDTH] = rng.uniform(-bound, bound, num_out)
            self.rates[layer, net, :num_out] = self.learning_rate
            if not last:
                self.floors[layer, net] = 0.0
                num_in = WIDTH

    def logits(self, observations: Array) -> Array:
        """[draws, seeds, 5] -> logits of braking [draws, nets], without touching the state of training."""
        hidden = np.zeros((len(observations), self.num_nets, WIDTH))
        hidden[..., : observations.shape[-1]] = np.tile(observations, (1, len(self.depths), 1))
        for layer in range(self.num_layers):
            weight = self.weights[layer]
            hidden = np.einsum("nij,dnj->dni", weight[..., :WIDTH], hidden) + weight[..., WIDTH]
            hidden = np.maximum(hidden, self.floors[layer])
        return np.asarray(hidden[..., 0])

    def train(self, observations: Array, brakes: Array) -> None:
        """One SGD update per row of observations [C, seeds, 5] and actions [C, seeds], in order."""
        inputs, deltas, weights = self.inputs, self.deltas, self.weights
        layers = range(self.num_layers)
        forward = [(weights[i], inputs[i], self.floors[i][..., None], inputs[i + 1][:, :WIDTH]) for i in layers]
        transposed = [weights[i][:, :, :WIDTH].transpose(0, 2, 1) for i in layers]
        floors = self.floors[..., None]
        first, last = inputs[0][:, : observations.shape[-1], 0], inputs[-1][:, 0, 0]
        states, before = inputs[1:, :, :WIDTH], inputs[:-1, :, None, :, 0]
        observations = np.tile(observations, (1, len(self.depths), 1))
        brakes = np.tile(brakes, (1, len(self.depths)))
        step, delta_of_logit = np.empty_like(weights), deltas[-1][:, 0, 0]
        for row, brake in zip(observations, brakes, strict=True):
            first[:] = row
            for weight, entering, floor, leaving in forward:
                np.maximum(weight @ entering, floor, out=leaving)
            np.subtract(1 / (1 + np.exp(-last)), brake, out=delta_of_logit)
            passing = states > floors
            for i in reversed(range(1, self.num_layers)):
                np.multiply(transposed[i] @ deltas[i + 1], passing[i - 1], out=deltas[i])
            np.multiply(deltas[1:] * self.rates, before, out=step)
            weights -= step


def causal_scores(nets: Nets, rng: np.random.Generator) -> Array:
    """[depths, seeds]: log p(brake | obstacle, no light) - log p(brake | light, no obstacle), mean over noise."""
    observations = np.zeros((2, NUM_SCORE_DRAWS, nets.seeds, 2 + NUM_NOISE))
    observations[..., 2:] = rng.standard_normal((1, NUM_SCORE_DRAWS, nets.seeds, NUM_NOISE))
    observations[0, ..., 0] = 1.0
    observations[1, ..., 1] = 1.0
    log_p = [-np.logaddexp(0.0, -nets.logits(case)).mean(axis=0) for case in observations]
    return np.asarray(log_p[0] - log_p[1]).reshape(len(nets.depths), nets.seeds)


def run_toy(
    num_steps: int, seeds: int, depths: tuple[int, ...] = DEPTHS, learning_rate: float = LEARNING_RATE
) -> ToyResult:
    """Train all nets for `num_steps` updates and score them at about NUM_SCORES moments."""
    started = time.monotonic()
    nets, rng = Nets(depths, seeds, learning_rate), np.random.default_rng(0)
    steps, scores, done = [0], [causal_scores(nets, rng)], 0
    num_chunks = -(-num_steps // CHUNK_STEPS)
    every = max(1, num_chunks // NUM_SCORES)
    for index, (observations, brakes) in enumerate(observation_chunks(num_steps, seeds)):
        nets.train(observations, brakes)
        done += len(brakes)
        if (index + 1) % every == 0 or done == num_steps:
            steps.append(done)
            scores.append(causal_scores(nets, rng))
    return ToyResult(np.array(steps), np.stack(scores), depths, time.monotonic() - started)


# ------------------------------------------------------------------ report


def table(result: ToyResult) -> str:
    """A Markdown table: per depth the final score and the updates until it passed CAUSAL_SCORE."""
    final, reached = result.scores[-1], result.steps_to_causal()
    lines = [
        f"| hidden layers | score after {result.steps[-1]:,} updates, mean (min-max) | updates until {CAUSAL_SCORE:g}, "
        "median |",
        "|---|---|---|",
    ]
    for index, depth in enumerate(result.depths):
        row, when = final[index], np.median(reached[index])
        updates = f"{int(when):,}" if np.isfinite(when) else "not reached"
        lines.append(f"| {depth} | {row.mean():.2f} ({row.min():.2f}-{row.max():.2f}) | {updates} |")
    return "\n".join(lines)


def plot(result: ToyResult, path: Path) -> None:
    """Score against updates, one curve per depth (mean over seeds, band from the lowest to the highest)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    millions = result.steps / 1e6
    for index, depth in enumerate(result.depths):
        score = result.scores[:, index]
        (line,) = axes.plot(millions, score.mean(axis=1), label=f"{depth} hidden layers")
        axes.fill_between(millions, score.min(axis=1), score.max(axis=1), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="updates (millions)", ylabel="causal score (nats)")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="the toy experiment where the causal answer is known")
    parser.add_argument(
        "--steps", type=int, default=4_000_000, help="updates of each net (default 4000000: 3-5 min on one core)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="nets per depth (default 3)")
    parser.add_argument("--plot", type=Path, help="where to write the curves as PNG")
    args = parser.parse_args()
    if args.steps < 1 or args.seeds < 1:
        parser.error(f"--steps {args.steps} --seeds {args.seeds}: both must be at least 1")
    result = run_toy(args.steps, args.seeds)
    print(table(result))
    print(f"{args.seeds} seeds, {result.seconds:.0f} s on this machine")
    if args.plot:
        plot(result, args.plot)
        print(f"curves: {args.plot}")


if __name__ == "__main__":
    main()
