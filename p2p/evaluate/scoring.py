"""From a policy and chunks of recordings to one tally per recording.

Chunks arrive in batches (the dict that `p2p.data` collates) in any order; what was done and what was predicted are
collected per recording and joined, since onsets and repeats look across the borders of chunks.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p2p.actions import HEADS, MOUSE_X_MEAN, MOUSE_Y_MEAN, ActionSpace
from p2p.config import SamplingConfig
from p2p.evaluate import metrics
from p2p.evaluate.metrics import Ids, Mask, Predicted, Tally
from p2p.model.decode import DecoderRunner
from p2p.model.losses import label_mask
from p2p.model.policy import Policy

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
DECODER_ROWS = 512  # timesteps that the decoder writes at once


@dataclass(frozen=True)
class ScoredSteps:
    """Consecutive steps of one recording, with what was predicted for them.

    actions int64 [n, A]; mask bool [n]: a person's action on a real frame; ids and mouse_px as in `Predicted`;
    losses: the tallies of the policy's probabilities over the chunks that were joined.
    """

    recording: str
    start: int
    actions: Ids
    mask: Mask
    ids: Ids
    mouse_px: NDArray[np.float64]
    losses: Tally

    @property
    def stop(self) -> int:
        return self.start + len(self.actions)

    def joined(self, later: ScoredSteps) -> ScoredSteps:
        """This segment and the one that begins where it ends."""
        return ScoredSteps(
            self.recording,
            self.start,
            np.concatenate([self.actions, later.actions]),
            np.concatenate([self.mask, later.mask]),
            np.concatenate([self.ids, later.ids]),
            np.concatenate([self.mouse_px, later.mouse_px]),
            metrics.add_tallies([self.losses, later.losses]),
        )


@dataclass
class Collector:
    """Takes segments in any order and gives them back joined, per recording."""

    segments: dict[str, list[ScoredSteps]] = field(default_factory=lambda: defaultdict(list))

    def add(self, segment: ScoredSteps) -> None:
        self.segments[segment.recording].append(segment)

    def joined(self) -> dict[str, list[ScoredSteps]]:
        """Per recording (sorted by name) its segments in time order, joined where one begins as another ends."""
        result: dict[str, list[ScoredSteps]] = {}
        for recording in sorted(self.segments):
            merged: list[ScoredSteps] = []
            for segment in sorted(self.segments[recording], key=lambda s: s.start):
                if merged and merged[-1].stop == segment.start:
                    merged[-1] = merged[-1].joined(segment)
                else:
                    merged.append(segment)
            result[recording] = merged
        return result


# ------------------------------------------------------------------ predictions of a policy


def motion_px(actions: Ids, space: ActionSpace) -> NDArray[np.float64]:
    """The mean motion in pixels (dx, dy) of the bins of actions [..., A]: [..., 2]."""
    x, y = np.array(MOUSE_X_MEAN, dtype=np.float64), np.array(MOUSE_Y_MEAN, dtype=np.float64)
    return np.stack([x[actions[..., space.mouse_x_slot]], y[actions[..., space.mouse_y_slot]]], axis=-1)


def expected_motion_px(logits: torch.Tensor, space: ActionSpace) -> NDArray[np.float64]:
    """The expected motion (dx, dy) under the probabilities of the mouse slots, logits [N, A, V]: [N, 2]."""
    axes = []
    for slot, table in ((space.mouse_x_slot, MOUSE_X_MEAN), (space.mouse_y_slot, MOUSE_Y_MEAN)):
        probabilities = logits[:, slot, : len(table)].double().softmax(-1)
        axes.append((probabilities @ torch.tensor(table, dtype=torch.float64)).numpy())
    return np.stack(axes, axis=-1)


@dataclass(frozen=True)
class StepPredictions:
    """forced: head -> logits [B, T, slots, V] after the recorded slots; ids int64 [B, T, A] and mouse_px [B, T, 2]
    after the policy's own slots, so that no slot of the answer is given away. The past is the recorded one in all.
    """

    forced: dict[str, torch.Tensor]
    ids: torch.Tensor
    mouse_px: NDArray[np.float64]


@torch.inference_mode()
def predict_steps(policy: Policy, batch: Batch) -> StepPredictions:
    """Teacher-forced predictions: likelihoods, the most likely action of each step, and the expected motion."""
    device = policy.out_token.device
    frames, actions, text = (batch[name].to(device) for name in ("frames", "actions", "text"))
    y_out = policy.transform(frames, actions, text)
    shape, y_out = y_out.shape[:2], y_out.flatten(0, 1)
    logits = policy.heads(policy.decoder(y_out, policy.action_embedding(actions.flatten(0, 1))))
    forced = {head: getattr(logits, head).unflatten(0, shape).float().cpu() for head in HEADS}
    ids, own = decode_rows(policy, y_out, SamplingConfig(greedy=True))
    motion = expected_motion_px(own, policy.config.action_space).reshape(*shape, 2)
    return StepPredictions(forced, ids.unflatten(0, shape), motion)


def decode_rows(
    policy: Policy, y_out: torch.Tensor, sampling: SamplingConfig, uniforms: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids int64 [N, A] and logits [N, A, V] (-inf past a slot's classes) from y_out [N, D], on the CPU."""
    if uniforms is None:  # greedy: not read
        uniforms = torch.full((len(y_out), policy.config.num_action_slots), 0.5)
    ids, logits = [], []
    for rows, drawn in zip(y_out.split(DECODER_ROWS), uniforms.to(y_out.device).split(DECODER_ROWS), strict=True):
        decoded = DecoderRunner(policy, batch_size=len(rows)).decode(rows, drawn, sampling)
        ids.append(decoded.ids.cpu())
        logits.append(decoded.logits.float().cpu())
    return torch.cat(ids), torch.cat(logits)


def batch_segments(policy: Policy, batch: Batch) -> list[ScoredSteps]:
    """One segment per chunk of the batch, with the steps on real frames alone."""
    space = policy.config.action_space
    steps, mask = predict_steps(policy, batch), label_mask(batch)
    segments = []
    for index, recording in enumerate(batch["recording"]):
        logits = {head: value[index] for head, value in steps.forced.items()}
        arguments = (logits, batch["actions"][index], mask[index], space)
        losses = {**metrics.loss_tally(*arguments), **metrics.calibration_tally(*arguments)}
        num = int(batch["valid_mask"][index].sum())
        segments.append(
            ScoredSteps(
                str(recording),
                int(batch["start"][index]),
                batch["actions"][index, :num].numpy(),
                mask[index, :num].numpy(),
                steps.ids[index, :num].numpy(),
                steps.mouse_px[index, :num],
                losses,
            )
        )
    return segments


def collect(policy: Policy, batches: Iterable[Batch]) -> dict[str, list[ScoredSteps]]:
    """Teacher-forced predictions of the policy for every chunk, joined per recording."""
    collector = Collector()
    policy.eval()
    for number, batch in enumerate(batches):
        for segment in batch_segments(policy, batch):
            collector.add(segment)
        logger.debug("batch %d scored", number)
    return collector.joined()


# ------------------------------------------------------------------ tallies per recording


def policy_tallies(recordings: Mapping[str, list[ScoredSteps]], space: ActionSpace) -> list[Tally]:
    """One tally per recording, of the predictions that the segments carry."""
    return [metrics.add_tallies([_segment_tally(s, space) for s in segments]) for segments in recordings.values()]


def _segment_tally(segment: ScoredSteps, space: ActionSpace) -> Tally:
    history = metrics.previous_actions(segment.actions, space)
    predicted = Predicted(segment.ids, segment.mouse_px, history, segment.losses)
    truth_px = motion_px(segment.actions, space)
    return metrics.recording_tally(segment.actions, segment.mask, truth_px, predicted, space)
