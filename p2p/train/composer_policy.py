"""The policy as Composer wants it: forward, loss and validation metrics of a batch of chunks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor
from torchmetrics import Metric

from p2p.actions import HEADS
from p2p.config import Z_WEIGHT
from p2p.model.losses import FrameCounts, HeadSums, combine, label_mask, sum_heads, total_loss
from p2p.model.network import ActionLogits
from p2p.model.policy import Policy
from p2p.recipe import CorruptionConfig
from p2p.train.corruption import corrupt_history
from p2p.train.precision import FLOAT32, Precision

Batch = dict[str, Any]

LABELLED_KEY = "labelled"  # int64 [N], see `labelled_frames`
COUNTS_KEY = "global_counts"  # of the global batch: labelled frames, frames, chunks, fingerprint, replaced chunks


class ComposerPolicy(ComposerModel):
    """Wraps a Policy; the loss is exact over the global batch whatever its split (see `split_batch`)."""

    def __init__(
        self,
        policy: Policy,
        z_weight: float = Z_WEIGHT,
        corruption: CorruptionConfig | None = None,
        precision: Precision = FLOAT32,
    ):
        super().__init__()
        self.policy = policy
        self.z_weight = z_weight
        self.corruption = corruption
        self.precision = precision
        self.validation_chunks = 0  # a compiled policy computes validation batches as if they had that many chunks

    def forward(self, batch: Batch) -> ActionLogits:
        """Logits of the learned frames only, N of them: [N, slots of the head, V] per head."""
        if not self.training and len(batch["actions"]) < self.validation_chunks:
            batch = _filled_up(batch, self.validation_chunks)
        history = None
        if self.training and self.corruption is not None and self.corruption.active:
            history = corrupt_history(batch["actions"], self.corruption, self.policy.config.action_space)
        with self.precision.autocast():
            logits: ActionLogits = self.policy(
                batch["frames"], batch["actions"], batch["text"], history_actions=history, decode=labelled_frames(batch)
            )
        return logits

    def loss(self, outputs: ActionLogits, batch: Batch, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """This microbatch's share of the global loss, times what Composer's averaging will divide it by.

        Composer weighs a microbatch by its share of the process's chunks and then averages over processes;
        `global chunks / chunks here` undoes both, so that the logged sums are the global batch's values.
        """
        labelled, frames, chunks, *_ = batch[COUNTS_KEY]
        shares = combine(self.sums(outputs, batch), FrameCounts(labelled, frames), self.z_weight)
        return {name: share * (chunks / len(batch["actions"])) for name, share in shares.items()}

    def sums(self, outputs: ActionLogits, batch: Batch) -> dict[str, HeadSums]:
        actions = batch["actions"].flatten(0, 1)[labelled_frames(batch)]
        all_of_them = torch.ones(len(actions), dtype=torch.bool, device=actions.device)
        return sum_heads(outputs, actions, all_of_them, self.policy.config.action_space)

    def eval_forward(self, batch: Batch, outputs: Any | None = None) -> ActionLogits:
        return outputs if outputs is not None else self.forward(batch)

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        if is_train:
            return {}
        names = ("loss", "cross_entropy", "perplexity", *(f"perplexity_{head}" for head in HEADS))
        return {name: ValidationMetric(name, self.z_weight) for name in names}

    def update_metric(self, batch: Batch, outputs: ActionLogits, metric: Metric) -> None:
        metric.update(self.sums(outputs, batch), label_mask(batch))


class ValidationMetric(Metric):
    """One number of a validation set, from sums over all its batches and processes.

    `name` is loss, cross_entropy, perplexity (exp of the loss) or perplexity_<head> (exp of CE in nats).
    """

    full_state_update = False
    cross_entropy: Tensor
    z: Tensor
    labelled: Tensor
    frames: Tensor

    def __init__(self, name: str, z_weight: float):
        super().__init__()
        self.name, self.z_weight = name, z_weight
        for state in ("cross_entropy", "z"):
            self.add_state(state, torch.zeros(len(HEADS), dtype=torch.float64), dist_reduce_fx="sum")
        for state in ("labelled", "frames"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Mapping[str, HeadSums], mask: Tensor) -> None:
        for i, head in enumerate(HEADS):
            self.cross_entropy[i] += sums[head].cross_entropy.double() / sums[head].num_slots
            self.z[i] += sums[head].z.double() / sums[head].num_slots
        self.labelled += mask.sum()
        self.frames += mask.numel()

    def compute(self) -> Tensor:
        means = dict(zip(HEADS, self.cross_entropy / self.labelled.clamp(min=1), strict=True))
        if self.name.startswith("perplexity_"):
            return means[self.name.removeprefix("perplexity_")].exp()
        z = dict(zip(HEADS, self.z / self.frames.clamp(min=1), strict=True))
        loss, cross_entropy, _ = total_loss(means, z, self.z_weight)
        return {"loss": loss, "cross_entropy": cross_entropy, "perplexity": loss.exp()}[self.name]


# ------------------------------------------------------------------ batches


def split_batch(batch: Batch, microbatch_size: int | float) -> Sequence[Batch]:
    """Cut a process's batch into microbatches that know the counts of the global batch.

    Runs once per update on every process: the counts are summed over processes here, and stay in `batch`.
    """
    mask = label_mask(batch)
    counts = [float(mask.sum()), float(mask.numel()), float(len(mask)), float(fingerprint(batch))]
    counts.append(float(sum(map(bool, batch.get("replaced", ())))))
    summed = _on_communication_device(torch.tensor(counts, dtype=torch.float64))
    dist.all_reduce(summed, reduce_operation="SUM")
    parts = _split({key: value for key, value in batch.items() if key != COUNTS_KEY}, int(microbatch_size))
    batch[COUNTS_KEY] = tuple(summed.tolist())
    return [{**part, COUNTS_KEY: batch[COUNTS_KEY]} for part in parts]


def fingerprint(batch: Batch) -> int:
    """A number that tells which chunks a batch holds, whatever their order; over processes it adds up."""
    names = zip(batch["recording"], batch["start"].tolist(), strict=True)
    return sum(zlib.crc32(f"{recording}@{start}".encode()) for recording, start in names)


def split_eval_batch(batch: Batch, microbatch_size: int | float) -> Sequence[Batch]:
    """Cut a validation batch into microbatches; metrics count by themselves."""
    return _split(batch, int(microbatch_size))


def _split(batch: Batch, size: int) -> list[Batch]:
    num_chunks = len(batch["actions"])
    parts = [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, num_chunks, size)]
    return [{**part, LABELLED_KEY: labelled_frames(part)} for part in parts]


def _filled_up(batch: Batch, num_chunks: int) -> Batch:
    """The batch with empty chunks behind its own, for one shape less to compile; its learned frames stay the same."""
    missing = num_chunks - len(batch["actions"])
    inputs = {name: batch[name] for name in ("frames", "actions", "text")}
    filled = {name: torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for name, x in inputs.items()}
    return {**batch, **filled, LABELLED_KEY: labelled_frames(batch)}


def labelled_frames(batch: Batch) -> Tensor:
    """Places of the learned frames in the batch's B * T: found before the batch went to its device, or here."""
    found: Tensor | None = batch.get(LABELLED_KEY)
    return label_mask(batch).flatten().nonzero()[:, 0] if found is None else found


def count_chunks(batch: Batch) -> int:
    return len(batch["actions"])


def _on_communication_device(tensor: Tensor) -> Tensor:
    """NCCL reduces tensors on the GPU only."""
    return tensor.cuda() if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl" else tensor
