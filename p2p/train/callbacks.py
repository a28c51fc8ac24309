"""What happens around an update: its seed, its learning rate, its gradient norm, the weights' average, its report.

Each callback does one thing at Composer's events and holds no state that a checkpoint would miss:
seeds and learning rates are functions of the update's number, so a resumed run repeats them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State, TimeUnit
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from p2p.checkpoints.reading import NotFinite
from p2p.gate import printable
from p2p.recipe import OptimizerConfig, ScheduleConfig, parse_duration
from p2p.train.composer_policy import COUNTS_KEY
from p2p.train.flops import StepCost
from p2p.train.metrics_file import MetricsFile
from p2p.train.optim import lr_factor
from p2p.train.parallel import reduction_gain
from p2p.train.replaced import ReplacedChunks
from p2p.train.together import first_does

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 10.0
MAX_CHUNKS_NAMED = 100


def num_updates(state: State) -> int:
    """The number of updates of the whole run."""
    assert state.max_duration is not None
    if state.max_duration.unit == TimeUnit.EPOCH:
        assert state.dataloader_len is not None
        return int(state.max_duration.value) * int(state.dataloader_len)
    return int(state.max_duration.value)


def every(interval: str) -> Callable[[State], bool]:
    """True after each `interval` updates ('500ba') and after the last one."""
    number = parse_duration(interval, "interval")[0]
    return lambda state: (
        int(state.timestamp.batch.value) % number == 0 or (int(state.timestamp.batch.value) >= num_updates(state))
    )


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a distributed tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class StepSeed(Callback):
    """Seeds torch before each update from (seed, update, process).

    Composer does not restore the generators when the dataset restores its own position, so without this
    a resumed run would repeat the dropout and augmentation of its first updates.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def batch_start(self, state: State, logger: Logger) -> None:
        entropy = [self.seed, int(state.timestamp.batch.value), dist.get_global_rank()]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)))


class OptimizerSettings(Callback):
    """Writes the recipe's settings into the optimizer before each update.

    A checkpoint brings back the settings of the run that wrote it; the recipe, as typed now, decides.
    """

    def __init__(self, optimizer: OptimizerConfig, schedule: ScheduleConfig):
        self.config, self.schedule = optimizer, schedule

    def batch_start(self, state: State, logger: Logger) -> None:
        factor = lr_factor(self.schedule, int(state.timestamp.batch.value), num_updates(state))
        for group in state.optimizers[0].param_groups:
            group["lr"] = self.config.lr * factor
            group["weight_decay"] = self.config.weight_decay


class GradientNorm(Callback):
    """Measures the norm of the whole gradient, and clips it to `limit` when there is one.

    Where the processes' gradients come summed instead of averaged (`reduction_gain`), it averages them.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self.last_norm: Tensor | None = None
        self._gain = 1.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._gain = reduction_gain("cuda" if torch.cuda.is_available() else "cpu")

    def after_train_batch(self, state: State, logger: Logger) -> None:
        parameters = [p for p in state.model.parameters() if p.grad is not None]
        if self._gain != 1.0:
            for parameter in parameters:
                local(parameter.grad).div_(self._gain)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.limit is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.limit, norm)
        self.last_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm


class FiniteGuard(Callback):
    """Ends the run at the first loss or gradient that is not finite, before the average or a checkpoint takes it.

    Both values are the same on all processes. Composer reads the loss after every update, which waits for the device;
    the norm is there by then.
    """

    def __init__(self, gradient_norm: GradientNorm):
        self.gradient_norm = gradient_norm

    def batch_end(self, state: State, logger: Logger) -> None:
        loss, norm = state.total_loss_dict["loss/train/total"], self.gradient_norm.last_norm
        assert norm is not None
        if math.isfinite(loss) and math.isfinite(norm):
            return
        batch = state.batch
        own = [f"{name}@{start}" for name, start in zip(batch["recording"], batch["start"].tolist(), strict=True)]
        chunks = sorted(chunk for each in dist.all_gather_object(own) for chunk in each)
        raise NotFinite(
            f"update {int(state.timestamp.batch.value)}: the loss is {loss:g}, the gradient's norm {float(norm):g}; "
            "the run ends here, and nothing of this update is saved. If the loss grew before, write a smaller "
            "optimizer.lr or an optimizer.clip; if not, look at this update's chunks (recording@first frame): "
            + printable(" ".join(chunks[:MAX_CHUNKS_NAMED]))
        )


class WeightAverage(Callback):
    """Exponential moving average of the parameters, half_life in updates; stands in for them in validation."""

    def __init__(self, half_life: int):
        self.decay = 0.5 ** (1 / half_life)
        self.average: dict[str, Tensor] = {}

    def before_load(self, state: State, logger: Logger) -> None:
        """After sharding, before a checkpoint is read into these tensors."""
        self.average = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        averages = [local(self.average[name]) for name, _ in state.model.named_parameters()]
        weights = [local(p.detach()) for _, p in state.model.named_parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self.decay)

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._swap(state)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._swap(state)

    @torch.no_grad()
    def _swap(self, state: State) -> None:
        for module in state.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a forward without backward leaves the root's parameters gathered
        for name, parameter in state.model.named_parameters():
            mine, other = local(parameter.detach()), local(self.average[name])
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"average": dict(self.average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, tensor in state["average"].items():
                self.average[name].copy_(tensor)


class SharedStatistics(Callback):
    """Averages BatchNorm's running statistics over processes before they are used or saved."""

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self.average(state)

    def average(self, state: State) -> None:
        if dist.get_world_size() == 1:
            return
        for buffer in state.model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer, reduce_operation="SUM")
                buffer.div_(dist.get_world_size())


# ------------------------------------------------------------------ report


class Report(Callback):
    """Measures every update; writes metrics.jsonl (and W&B, by Composer's logger) and a line of progress.

    Names of the entries: step, epoch, loss, cross_entropy, z_loss, perplexity_<head>, chunks (a number
    that tells which chunks the update saw), replaced_chunks (so far; where there are new ones, replaced_of lists
    their recordings), lr, grad_norm,
    step_s, wait_s (of step_s, waiting for the loader), frames_per_s, tokens_per_s, mfu, memory_gb, and
    <validation set>/<loss, cross_entropy, perplexity, perplexity_<head>, replaced_chunks where there are some>.
    """

    def __init__(
        self,
        folder: Path,
        interval: int,
        cost: StepCost,
        gradient_norm: GradientNorm,
        replaced: ReplacedChunks,
    ):
        self.file = MetricsFile(folder / "metrics.jsonl")
        self.interval = interval
        self.cost = cost
        self.gradient_norm = gradient_norm
        self.replaced = replaced
        self.entry: dict[str, Any] = {}
        self.mean_step_s: float | None = None
        self._last_line_s = -float("inf")
        self._fetch_s = self._fetched_s = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        first_does(lambda: self.file.drop_after(int(state.timestamp.batch.value)))
        self.replaced.resume(self.file.path)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._fetch_s = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._fetched_s = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        step, step_s = int(state.timestamp.batch.value), time.monotonic() - self._fetch_s
        self.mean_step_s = step_s if self.mean_step_s is None else 0.95 * self.mean_step_s + 0.05 * step_s
        last = step >= num_updates(state)
        self.entry = {}
        if step % self.interval == 0 or last or self.replaced.latest:
            self.entry = {**self._learning(state), **self._speed(step_s)}
            logger.log_metrics(self.entry)
            if self.replaced.latest:
                self.entry["replaced_of"] = self.replaced.latest
        self._log_progress(state, step, last)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        values = {
            f"{label}/{name}": float(metric.compute())
            for label, metrics in state.eval_metrics.items()
            for name, metric in metrics.items()
        }
        values |= {f"{label}/replaced_chunks": count for label, count in self.replaced.validation.items() if count}
        self.entry = {"step": int(state.timestamp.batch.value), **self.entry, **values}
        if dist.get_global_rank() == 0:
            log.info("validation at %d: %s", self.entry["step"], ", ".join(f"{k} {v:.3f}" for k, v in values.items()))

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """After validation, before the checkpoint: the file never lags behind a checkpoint."""
        if self.entry and dist.get_global_rank() == 0:
            self.file.append(self.entry)
        self.entry = {}

    def _learning(self, state: State) -> dict[str, Any]:
        losses = {key.removeprefix("loss/train/"): value for key, value in state.total_loss_dict.items()}
        entry: dict[str, Any] = {"step": int(state.timestamp.batch.value), "epoch": int(state.timestamp.epoch.value)}
        entry |= {"loss": losses["total"], "cross_entropy": losses["cross_entropy"], "z_loss": losses["z_loss"]}
        entry |= {
            key.replace("ce_", "perplexity_", 1): float(np.exp(value))
            for key, value in losses.items()
            if key.startswith("ce_")
        }
        entry["chunks"] = int(state.batch[COUNTS_KEY][3])
        entry["replaced_chunks"] = self.replaced.count
        entry["lr"] = state.optimizers[0].param_groups[0]["lr"]
        if self.gradient_norm.last_norm is not None:
            entry["grad_norm"] = float(self.gradient_norm.last_norm)
        return entry

    def _speed(self, step_s: float) -> dict[str, Any]:
        entry: dict[str, Any] = {"step_s": step_s, "wait_s": self._fetched_s - self._fetch_s}
        entry["frames_per_s"] = self.cost.frames / step_s
        entry["tokens_per_s"] = self.cost.tokens / step_s
        if self.cost.peak_flops is not None:
            entry["mfu"] = self.cost.flops / step_s / self.cost.peak_flops
        if torch.cuda.is_available():
            entry["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return {name: round(value, 6) for name, value in entry.items()}

    def _log_progress(self, state: State, step: int, last: bool) -> None:
        now = time.monotonic()
        if dist.get_global_rank() != 0 or (now - self._last_line_s < PROGRESS_INTERVAL_S and not last):
            return
        self._last_line_s = now
        assert self.mean_step_s is not None
        total = num_updates(state)
        parts = [f"step {step}/{total}", f"loss {state.total_loss_dict['loss/train/total']:.4f}"]
        parts.append(f"{self.cost.frames / self.mean_step_s:,.0f} frames/s")
        if self.cost.peak_flops is not None:
            parts.append(f"MFU {self.cost.flops / self.mean_step_s / self.cost.peak_flops:.1%}")
        parts.append(f"ETA {_duration((total - step) * self.mean_step_s)}")
        log.info("  ".join(parts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
