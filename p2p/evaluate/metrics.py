"""What a policy's predictions are worth: pure functions from logits and ids to numbers.

Every metric is computed from a *tally*: a mapping from names to arrays of sums (losses, hits, products)
that add up over chunks and recordings. So the same function serves one recording, a whole data set, and
the bootstrap, which weighs the recordings anew: `bootstrap` multiplies the stacked tallies by the drawn counts.

Letters: n steps in time order, A action slots, V choices, R recordings, N drawn data sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from p2p.actions import HEADS, NUM_BUTTONS, NUM_KEYS, ActionSpace
from p2p.config import Z_WEIGHT
from p2p.model.losses import sum_heads, total_loss
from p2p.model.network import ActionLogits

Tally = dict[str, NDArray[np.float64]]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

ONSET_TOLERANCE_STEPS = 2
NUM_CALIBRATION_BINS = 15


# ------------------------------------------------------------------ tallies


def add_tallies(tallies: Sequence[Tally]) -> Tally:
    """The sum of tallies that hold the same names."""
    if not tallies:
        raise ValueError("no tallies to add: the data set gave no recording with a step to score")
    return {name: np.sum([tally[name] for tally in tallies], axis=0) for name in tallies[0]}


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.broadcast(numerator, denominator).shape, np.nan),
                     where=np.asarray(denominator) > 0)  # fmt: skip


# ------------------------------------------------------------------ losses and perplexity


def loss_tally(
    logits: Mapping[str, torch.Tensor], actions: torch.Tensor, mask: torch.Tensor, space: ActionSpace
) -> Tally:
    """Sums of cross entropy and of squared logsumexp, one entry per head.

    Args:
        logits: per head [..., slots of the head, V].
        actions: int64 [..., A], what was done; mask: bool [...], true where it is to be predicted.
    """
    values = ActionLogits(**{head: logits[head].detach().cpu().float() for head in HEADS})
    sums = sum_heads(values, actions, mask, space, torch.float64).values()
    slots = np.array([part.num_slots for part in sums], dtype=np.float64)
    return {
        "ce_sum": np.array([float(part.cross_entropy) for part in sums]),
        "ce_count": slots * float(mask.sum()),
        "z_sum": np.array([float(part.z) for part in sums]),
        "z_count": slots * mask.numel(),
    }


def _as_numpy(logits: torch.Tensor) -> NDArray[np.float64]:
    """Numpy, since torch's threads cost more than they give on arrays this small."""
    return np.asarray(logits.detach().cpu().float().numpy(), dtype=np.float64)


def _logsumexp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., V] -> [...]."""
    largest = values.max(axis=-1)
    return np.asarray(largest + np.log(np.exp(values - largest[..., None]).sum(axis=-1)))


def perplexities(tally: Tally, z_weight: float = Z_WEIGHT) -> Tally:
    """exp(CE) per head, and in total exp of the loss (see `total_loss`)."""
    cross_entropy, z = (
        dict(zip(HEADS, np.moveaxis(_ratio(tally[f"{name}_sum"], tally[f"{name}_count"]), -1, 0), strict=True))
        for name in ("ce", "z")
    )
    total, _, _ = total_loss(cross_entropy, z, z_weight)
    return {
        "loss": total,
        "perplexity": np.exp(total),
        **{f"perplexity/{head}": np.exp(value) for head, value in cross_entropy.items()},
    }


# ------------------------------------------------------------------ calibration


def calibration_tally(
    logits: Mapping[str, torch.Tensor], actions: torch.Tensor, mask: torch.Tensor, space: ActionSpace
) -> Tally:
    """Per head and confidence bin: elements, their summed confidence, and how many were right.

    The confidence of an element is the largest probability; bin i holds ((i)/15, (i+1)/15], as torchmetrics does.
    """
    shape = (len(HEADS), NUM_CALIBRATION_BINS)
    sums: Tally = {name: np.zeros(shape) for name in ("bin_count", "bin_confidence", "bin_correct")}
    for index, head in enumerate(HEADS):
        values = _as_numpy(logits[head])[mask.numpy()]
        labels = actions[..., space.head_slots[head]].numpy()[mask.numpy()]
        confidence = np.exp(values.max(axis=-1) - _logsumexp(values))
        _fill_bins(sums, index, confidence, values.argmax(axis=-1) == labels)
    return sums


def _fill_bins(sums: Tally, head: int, confidence: NDArray[np.float64], correct: Mask) -> None:
    confidence, correct = confidence.reshape(-1), correct.reshape(-1)
    bins = np.clip(np.ceil(confidence * NUM_CALIBRATION_BINS).astype(np.int64) - 1, 0, NUM_CALIBRATION_BINS - 1)
    for name, weights in (("bin_count", None), ("bin_confidence", confidence), ("bin_correct", correct)):
        sums[name][head] = np.bincount(bins, weights=weights, minlength=NUM_CALIBRATION_BINS)


def calibration_errors(tally: Tally) -> Tally:
    """Expected calibration error per head: mean over elements of |accuracy - confidence| of their bin."""
    gap = np.abs(tally["bin_correct"] - tally["bin_confidence"]).sum(-1)
    error = _ratio(gap, tally["bin_count"].sum(-1))
    accuracy = _ratio(tally["bin_correct"].sum(-1), tally["bin_count"].sum(-1))
    result: Tally = {}
    for index, head in enumerate(HEADS):
        result[f"ece/{head}"] = error[..., index]
        result[f"accuracy/{head}"] = accuracy[..., index]
    return result


# ------------------------------------------------------------------ keys and buttons


def held(ids: Ids, num_choices: int) -> Mask:
    """Which of the choices 1..V-1 are held: [n, slots] -> [n, V-1] (id 0, nothing, is left out)."""
    return np.asarray((ids[..., :, None] == np.arange(1, num_choices)).any(axis=-2))


def confusion_tally(true_held: Mask, predicted_held: Mask, mask: Mask, prefix: str) -> Tally:
    """Hits, false alarms and misses per choice over the unmasked steps; arguments [n, V-1], [n, V-1], [n]."""
    kept = mask[:, None]
    return {
        f"{prefix}_tp": (true_held & predicted_held & kept).sum(0).astype(np.float64),
        f"{prefix}_fp": (~true_held & predicted_held & kept).sum(0).astype(np.float64),
        f"{prefix}_fn": (true_held & ~predicted_held & kept).sum(0).astype(np.float64),
    }


def onset_steps(now_held: Mask, before_held: Mask, mask: Mask) -> Mask:
    """Where a key is newly pressed: [n, K] held now, [n, K] held in the action executed before, [n] unmasked.

    A step counts only when it and the one before it are unmasked (a key may have been held for long when the
    person's actions begin). For a prediction, `before_held` is the history that the policy saw: so repeating the
    previous action never presses anything. Several steps in a row that want the same press are one onset.
    """
    countable = mask & np.concatenate([[False], mask[:-1]])
    pressed = now_held & ~before_held & countable[:, None]
    repeated = np.concatenate([np.zeros_like(pressed[:1]), pressed[:-1]])
    return np.asarray(pressed & ~repeated)


def count_matches(true_steps: Ids, predicted_steps: Ids, tolerance: int = ONSET_TOLERANCE_STEPS) -> int:
    """The largest number of one-to-one pairs at most `tolerance` steps apart; both arguments ascending."""
    i = j = matches = 0
    while i < len(true_steps) and j < len(predicted_steps):
        distance = int(true_steps[i]) - int(predicted_steps[j])
        if abs(distance) <= tolerance:
            i, j, matches = i + 1, j + 1, matches + 1
        elif distance < 0:
            i += 1
        else:
            j += 1
    return matches


def onset_tally(true_onsets: Mask, predicted_onsets: Mask, prefix: str) -> Tally:
    """Matched, unmatched predicted and unmatched true onsets per choice; arguments [n, K] of one recording."""
    num_true, num_predicted = true_onsets.sum(0), predicted_onsets.sum(0)
    matches = np.array(
        [
            count_matches(np.flatnonzero(true_onsets[:, k]), np.flatnonzero(predicted_onsets[:, k]))
            for k in range(true_onsets.shape[1])
        ],
        dtype=np.float64,
    )
    return {f"{prefix}_tp": matches, f"{prefix}_fp": num_predicted - matches, f"{prefix}_fn": num_true - matches}


def f1_scores(tally: Tally, prefix: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F1 over all choices together [...], and of each choice [..., K]; NaN where nothing was held or predicted."""
    hits, errors = tally[f"{prefix}_tp"], tally[f"{prefix}_fp"] + tally[f"{prefix}_fn"]
    each = _ratio(2 * hits, 2 * hits + errors)
    return _ratio(2 * hits.sum(-1), (2 * hits + errors).sum(-1)), each


# ------------------------------------------------------------------ mouse


def mouse_tally(true_px: NDArray[np.float64], predicted_px: NDArray[np.float64], mask: Mask) -> Tally:
    """Moments and sign agreement per axis over the unmasked steps; motions [n, 2] in pixels, mask [n]."""
    x, y = true_px[mask].astype(np.float64), predicted_px[mask].astype(np.float64)
    moves = x != 0
    return {
        "mouse_n": np.full(2, float(len(x))),
        "mouse_x": x.sum(0),
        "mouse_y": y.sum(0),
        "mouse_xx": (x * x).sum(0),
        "mouse_yy": (y * y).sum(0),
        "mouse_xy": (x * y).sum(0),
        "mouse_moves": moves.sum(0).astype(np.float64),
        "mouse_same_sign": (moves & (np.sign(x) == np.sign(y))).sum(0).astype(np.float64),
    }


def mouse_scores(tally: Tally) -> Tally:
    """Pearson correlation of predicted with true motion, and the share of true motions whose sign was predicted."""
    n = tally["mouse_n"]
    mean_x, mean_y = _ratio(tally["mouse_x"], n), _ratio(tally["mouse_y"], n)
    var_x = _ratio(tally["mouse_xx"], n) - mean_x**2
    var_y = _ratio(tally["mouse_yy"], n) - mean_y**2
    covariance = _ratio(tally["mouse_xy"], n) - mean_x * mean_y
    noise = 1e-12 * (mean_y**2 + 1)  # a constant prediction has no correlation, whatever the rounding left over
    varied = (var_x > 1e-12 * (mean_x**2 + 1)) & (var_y > noise)
    spread = np.where(varied, np.sqrt(np.where(varied, var_x * var_y, 1.0)), 0.0)
    correlation = _ratio(covariance, spread)
    sign = _ratio(tally["mouse_same_sign"], tally["mouse_moves"])
    result: Tally = {}
    for axis, name in enumerate(("x", "y")):
        result[f"mouse_{name}/correlation"] = correlation[..., axis]
        result[f"mouse_{name}/sign"] = sign[..., axis]
    return result


# ------------------------------------------------------------------ one recording, all metrics


@dataclass(frozen=True)
class Predicted:
    """What somebody (a policy or a baseline) said about the n steps of one recording.

    ids int64 [n, A]: the most likely (or drawn) action; mouse_px float64 [n, 2]: expected motion;
    history int64 [n, A]: the action before each step that the prediction was made from.
    losses: the tallies of `loss_tally` and `calibration_tally`, empty when there are no probabilities.
    """

    ids: Ids
    mouse_px: NDArray[np.float64]
    history: Ids
    losses: Tally


def previous_actions(actions: Ids, space: ActionSpace) -> Ids:
    """The action before each step of a recording [n, A]; before the first: nothing."""
    return np.concatenate([np.asarray(space.nothing, dtype=np.int64)[None], actions[:-1]])


def recording_tally(
    actions: Ids, mask: Mask, true_px: NDArray[np.float64], predicted: Predicted, space: ActionSpace
) -> Tally:
    """All sums of one recording: actions [n, A] and mask [n] in time order, without gaps."""
    tally: Tally = {"num_steps": np.array(float(mask.sum())), "num_recordings": np.array(1.0)}
    tally.update(predicted.losses)
    before = previous_actions(actions, space)
    for prefix, slots, num in (("key", space.key_slots, NUM_KEYS), ("button", space.button_slots, NUM_BUTTONS)):
        truth, guess = held(actions[:, slots], num), held(predicted.ids[:, slots], num)
        tally.update(confusion_tally(truth, guess, mask, prefix))
        tally.update(
            onset_tally(
                onset_steps(truth, held(before[:, slots], num), mask),
                onset_steps(guess, held(predicted.history[:, slots], num), mask),
                f"{prefix}_onset",
            )
        )
    tally.update(mouse_tally(true_px, predicted.mouse_px, mask))
    return tally


def summarise(tally: Tally, z_weight: float = Z_WEIGHT) -> Tally:
    """Every metric of a tally: name -> value (arrays when the tally has leading dimensions); NaN: undefined."""
    result: Tally = {}
    if "ce_sum" in tally:
        result.update(perplexities(tally, z_weight))
    if "bin_count" in tally:
        result.update(calibration_errors(tally))
    for prefix in ("key", "button"):
        result[f"{prefix}_f1"], _ = f1_scores(tally, prefix)
        result[f"{prefix}_onset_f1"], _ = f1_scores(tally, f"{prefix}_onset")
    result.update(mouse_scores(tally))
    return result


# ------------------------------------------------------------------ confidence


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval from the bootstrap over recordings; NaN bounds with fewer than two."""

    value: float
    low: float = math.nan
    high: float = math.nan


def bootstrap(
    tallies: Sequence[Tally],
    metrics: Callable[[Tally], Tally],
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each metric of the summed tallies, with the 2.5 and 97.5 percentiles over redrawn sets of recordings.

    A calibration error is a sum of absolute gaps, and redrawing widens every gap: its percentiles lie too high, often
    above the estimate itself. There the interval is moved by as much as the redrawn median lies off the estimate.

    Args:
        tallies: one per recording (recordings are drawn whole, since steps within one depend on each other).
        metrics: maps a tally, also one with a leading dimension, to named values, for instance `summarise`.
    """
    values = metrics(add_tallies(tallies))
    if len(tallies) < 2:
        return {name: Estimate(float(value)) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(tallies), np.full(len(tallies), 1 / len(tallies)), size=num_samples)
    drawn: Tally = {}
    for name in tallies[0]:
        stacked = np.stack([tally[name] for tally in tallies])
        drawn[name] = np.tensordot(counts.astype(np.float64), stacked, axes=1)
    samples = metrics(drawn)
    return {name: _estimate(float(value), samples[name], name.startswith("ece/")) for name, value in values.items()}


def _estimate(value: float, samples: NDArray[np.float64], is_absolute_gap: bool) -> Estimate:
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0 or not math.isfinite(value):
        return Estimate(value)
    low, median, high = np.percentile(defined, [2.5, 50, 97.5])
    if is_absolute_gap:
        low, high = max(0.0, low + value - median), high + value - median
    return Estimate(value, float(low), float(high))
