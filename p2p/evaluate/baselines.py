"""What a policy must beat: predictions that look at no frame, scored by the same functions.

- repeat previous: the action before. Its probabilities mix a point mass on the previous id with the frequencies,
  with the share of changes seen in the data as the weight of the latter.
- frequencies: an action drawn from the recordings; probabilities are each slot's frequencies.
- the mean: in every step the same, the most frequent ids and the mean motion; it has no probabilities.

Their frequencies come from the very data they are scored on, which favours them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from p2p.actions import HEADS, ActionSpace
from p2p.evaluate import metrics
from p2p.evaluate.metrics import Ids, Predicted, Tally
from p2p.evaluate.scoring import ScoredSteps, motion_px

BASELINES = ("repeat previous", "frequencies", "mean")
_SMALLEST_SHARE = 1e-6
_DRAW_SEED = 0


@dataclass(frozen=True)
class Statistics:
    """Of the unmasked steps: frequencies per slot [V], shares of changed ids per slot, all actions, mean motion."""

    frequencies: tuple[NDArray[np.float64], ...]
    changes: NDArray[np.float64]
    actions: Ids
    mean_px: NDArray[np.float64]


def statistics(recordings: Mapping[str, list[ScoredSteps]], space: ActionSpace) -> Statistics:
    """Count the unmasked steps of all recordings.

    Raises:
        ValueError: when there is none.
    """
    segments = [segment for joined in recordings.values() for segment in joined]
    kept = [segment.actions[segment.mask] for segment in segments]
    actions = np.concatenate(kept) if kept else np.zeros((0, space.num_slots), dtype=np.int64)
    if len(actions) == 0:
        raise ValueError(
            "the data hold no step with a person's action on a real frame, so there is nothing to compare with; "
            "give recordings that a person (or a scripted player recorded as user) made"
        )
    before = np.concatenate([metrics.previous_actions(s.actions, space)[s.mask] for s in segments])
    frequencies = tuple(
        np.bincount(actions[:, slot], minlength=v) / len(actions) for slot, v in enumerate(space.num_choices)
    )
    changes = (actions != before).mean(axis=0)
    return Statistics(frequencies, changes, actions, motion_px(actions, space).mean(axis=0))


def baseline_tallies(
    recordings: Mapping[str, list[ScoredSteps]], space: ActionSpace, known: Statistics | None = None
) -> dict[str, list[Tally]]:
    """Per baseline one tally per recording, in the order of `recordings`."""
    known = known or statistics(recordings, space)
    rng = np.random.default_rng(_DRAW_SEED)
    tallies: dict[str, list[Tally]] = {name: [] for name in BASELINES}
    for segments in recordings.values():
        parts: dict[str, list[Tally]] = {name: [] for name in BASELINES}
        for segment in segments:
            for name, predicted in _predictions(segment, space, known, rng).items():
                truth_px = motion_px(segment.actions, space)
                parts[name].append(metrics.recording_tally(segment.actions, segment.mask, truth_px, predicted, space))
        for name in BASELINES:
            tallies[name].append(metrics.add_tallies(parts[name]))
    return tallies


def _predictions(
    segment: ScoredSteps, space: ActionSpace, known: Statistics, rng: np.random.Generator
) -> dict[str, Predicted]:
    num, before = len(segment.actions), metrics.previous_actions(segment.actions, space)
    drawn = known.actions[rng.integers(0, len(known.actions), num)]
    constant = np.tile([int(np.argmax(f)) for f in known.frequencies], (num, 1))
    return {
        "repeat previous": Predicted(
            before, motion_px(before, space), before, _losses(segment, space, known, known.changes)
        ),
        "frequencies": Predicted(
            drawn, motion_px(drawn, space), before, _losses(segment, space, known, np.ones_like(known.changes))
        ),
        "mean": Predicted(constant, np.tile(known.mean_px, (num, 1)), before, {}),
    }


def _losses(segment: ScoredSteps, space: ActionSpace, known: Statistics, weight: NDArray[np.float64]) -> Tally:
    """Tallies of the mixture (1 - weight) * previous id + weight * frequencies, weight [A]."""
    before = metrics.previous_actions(segment.actions, space)
    logits: dict[str, torch.Tensor] = {}
    for head in HEADS:
        slots = [j for j, name in enumerate(space.slot_heads) if name == head]
        logits[head] = torch.stack([_mixture(before[:, j], known.frequencies[j], weight[j]) for j in slots], dim=1)
    actions, mask = torch.from_numpy(segment.actions), torch.from_numpy(segment.mask)
    arguments = (logits, actions, mask, space)
    return {**metrics.loss_tally(*arguments), **metrics.calibration_tally(*arguments)}


def _mixture(before: Ids, frequencies: NDArray[np.float64], weight: float) -> torch.Tensor:
    """Logarithms of the mixed probabilities [n, V]."""
    share = min(max(float(weight), _SMALLEST_SHARE), 1.0)
    spread = (1 - _SMALLEST_SHARE) * frequencies + _SMALLEST_SHARE / len(frequencies)
    probabilities = np.tile(share * spread, (len(before), 1))
    probabilities[np.arange(len(before)), before] += 1 - share
    return torch.from_numpy(np.log(probabilities))
