"""Perplexities and honest metrics of every checkpoint in a folder, also while a training run still writes them.

    p2p validate CHECKPOINT_DIR --data STREAM [--data STREAM ...] [--watch] [--min-steps N] [--max-steps M]

Results are lines of validation.jsonl beside the table and the curve; what stands there is not evaluated again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.checkpoints.finding import DEPTH, RUN, Checkpoint, bring, find_checkpoints
from p2p.console import aligned, say
from p2p.evaluate.validation_table import BASELINE, draw_curve, table
from p2p.object_storage import ObjectFolder
from p2p.storage import LocalFolder, open_storage

if TYPE_CHECKING:
    from p2p.evaluate.metrics import Estimate
    from p2p.evaluate.scoring import Batch
    from p2p.model import Policy

logger = logging.getLogger(__name__)

RESULTS_NAME = "validation.jsonl"
CURVE_NAME = "validation.png"
RECIPE_NAME = "recipe.yaml"
_MAX_RESULTS_BYTES = 64 << 20

Scores = dict[str, dict[str, "Estimate"]]


@dataclass(frozen=True)
class Options:
    """What a validation does: data sets, N chunks of each (None: all), and how to wait."""

    data: tuple[str, ...]
    num_chunks: int | None
    batch_size: int | None
    device: str | None
    min_steps: int
    max_steps: int | None
    interval_s: float
    patience_s: float
    z_weight: float  # of the training loss, which loss and perplexity over all heads have too


def score_batches(policy: Policy, batches: Iterable[Batch], z_weight: float) -> Scores:
    """Teacher-forced metrics of the policy, and of repeating the previous action, with bootstrap intervals."""
    from p2p.evaluate import metrics
    from p2p.evaluate.baselines import baseline_tallies
    from p2p.evaluate.scoring import collect, policy_tallies

    space = policy.config.action_space
    recordings = collect(policy, batches)
    tallies = {"policy": policy_tallies(recordings, space), BASELINE: baseline_tallies(recordings, space)[BASELINE]}
    summarise = partial(metrics.summarise, z_weight=z_weight)
    return {name: metrics.bootstrap(each, summarise) for name, each in tallies.items()}


# ------------------------------------------------------------------ results on disk


class Results:
    """The lines of validation.jsonl: read, extended, and written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            for number, line in enumerate(gate.read_regular(path, _MAX_RESULTS_BYTES).splitlines(), 1):
                self.rows.append(_row(line, f"{path}, line {number}"))

    def has(self, checkpoint: Checkpoint, fingerprint: str, data: str, num_chunks: int | None) -> bool:
        key = (checkpoint.name, fingerprint, data, num_chunks)
        return any((r["checkpoint"], r["fingerprint"], r["data"], r["chunks"]) == key for r in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        from p2p.evaluate.report import jsonable, write_text

        same = (row["checkpoint"], row["data"], row["chunks"])
        self.rows = [r for r in self.rows if (r["checkpoint"], r["data"], r["chunks"]) != same]
        self.rows.append(jsonable(row))
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.rows))


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = gate.mapping(gate.parse_json(line, where), where)
    except gate.Refused as error:
        raise ValueError(f"{error}; repair or delete the file") from error
    absent = [name for name in ("checkpoint", "fingerprint", "data", "chunks", "step", "metrics") if name not in row]
    if absent:
        raise ValueError(f"{where}: {', '.join(absent)} is missing; repair or delete the file")
    return row


# ------------------------------------------------------------------ one pass, or many


class Validator:
    """Evaluates what is new and whole; keeps streams open between checkpoints of one architecture."""

    def __init__(
        self,
        folder: LocalFolder | ObjectFolder,
        out: Path,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.options, self.clock = folder, options, clock
        self.results = Results(out / RESULTS_NAME)
        self.curve = out / CURVE_NAME
        self.tracker: Callable[[dict[str, Any]], None] | None = None
        self._streams: dict[tuple[Any, ...], Any] = {}
        self._unfinished: dict[str, tuple[str, float]] = {}

    def candidates(self) -> list[Checkpoint]:
        """Checkpoints within the bounds of steps; one whose name does not tell its step is always in."""
        low, high = self.options.min_steps, self.options.max_steps
        found = find_checkpoints(self.folder)
        return [c for c in found if c.step is None or (c.step >= low and (high is None or c.step <= high))]

    def run_pass(self) -> tuple[int, list[str]]:
        """Evaluate everything that is new; returns how many were, and the names of those still being written."""
        num_done, waiting = 0, []
        for checkpoint in self.candidates():
            fingerprint = checkpoint.fingerprint()
            todo = [
                d
                for d in self.options.data
                if not self.results.has(checkpoint, fingerprint, d, self.options.num_chunks)
            ]
            if not todo:
                continue
            problem = checkpoint.missing() or self._evaluate(checkpoint, fingerprint, todo)
            if problem is None:
                num_done += 1
            elif self._may_still_grow(checkpoint, fingerprint):
                logger.info("%s: %s; waiting for it", checkpoint.name, problem)
                waiting.append(checkpoint.name)
            else:
                logger.warning("%s is left out: %s", checkpoint.name, problem)
        return num_done, waiting

    def _may_still_grow(self, checkpoint: Checkpoint, fingerprint: str) -> bool:
        """Whether an unfinished checkpoint changed within the last `patience_s` seconds."""
        known, since = self._unfinished.get(checkpoint.name, ("", 0.0))
        if known != fingerprint:
            self._unfinished[checkpoint.name] = (fingerprint, self.clock())
            return True
        return self.clock() - since < self.options.patience_s

    def _evaluate(self, checkpoint: Checkpoint, fingerprint: str, data: list[str]) -> str | None:
        """Evaluate one checkpoint; returns why it could not be read, or None."""
        from p2p.evaluate.policies import open_policy, open_run

        with tempfile.TemporaryDirectory(prefix="p2p-validate-") as scratch:
            try:
                path = bring(self.folder, checkpoint, Path(scratch) / "fetched")
                policy = (open_run if checkpoint.kind == RUN else open_policy)(path, self.options.device)
            except ValueError as error:
                return str(error)
            for location in data:
                self.results.add(self._row(checkpoint, fingerprint, policy, location))
                if self.tracker is not None:
                    self.tracker(self.results.rows[-1])
        return None

    def _row(self, checkpoint: Checkpoint, fingerprint: str, policy: Policy, location: str) -> dict[str, Any]:
        logger.info("%s on %s", checkpoint.name, location)
        started = self.clock()
        stream = self._stream(location, policy)
        scores = score_batches(
            policy, stream.batches(self.options.batch_size, self.options.num_chunks), self.options.z_weight
        )
        return {
            "checkpoint": checkpoint.name,
            "fingerprint": fingerprint,
            "kind": checkpoint.kind,
            "step": checkpoint.step,
            "data": location,
            "chunks": self.options.num_chunks,
            "replaced_chunks": stream.replaced.count,
            "z_weight": self.options.z_weight,
            "seconds": round(self.clock() - started, 2),
            "metrics": {
                who: {name: vars(estimate) for name, estimate in values.items()} for who, values in scores.items()
            },
        }

    def _stream(self, location: str, policy: Policy) -> Any:
        from p2p.evaluate.stream import open_stream

        c = policy.config
        shape = (c.num_timesteps, c.frame_height, c.frame_width, c.num_text_tokens, c.text_dim, c.action_space)
        if (location, shape) not in self._streams:
            self._streams[location, shape] = open_stream(location, c)
        return self._streams[location, shape]

    def finished(self) -> bool:
        """Whether a checkpoint at `max_steps` or beyond was evaluated: then a watch has nothing more to wait for."""
        steps = [row["step"] for row in self.results.rows if row["step"] is not None]
        return self.options.max_steps is not None and any(step >= self.options.max_steps for step in steps)


# ------------------------------------------------------------------ command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="run folder, or folder (s3:// prefix) with checkpoints, policies or .ckpt files")
    parser.add_argument(
        "--data", action="append", help="stream, several times if you like (default: the recipe's data.val)"
    )
    parser.add_argument("--watch", action="store_true", help="go on as new checkpoints appear")
    parser.add_argument("--min-steps", type=int, default=0, help="leave out earlier checkpoints")
    parser.add_argument("--max-steps", type=int, help="leave out later ones; a watch ends when this one is done")
    parser.add_argument("--chunks", type=int, help="evaluate on N chunks spread over each stream (default: all)")
    parser.add_argument("--batch-size", type=int, help="chunks at a time (default: about 400 frames)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda when there is one)")
    parser.add_argument(
        "--out", type=Path, help="where the results go (default: the folder; of s3://, ./NAME-validation)"
    )
    parser.add_argument("--interval-s", type=float, default=10.0, help="pause between looks (default 10)")
    parser.add_argument("--patience-s", type=float, default=60.0, help="give up on one that stays half-written so long")


def z_weight_of_recipe(location: str) -> float:
    """`loss.z_weight` of the recipe.yaml of a run folder; the default where there is none, or it says nothing of it.

    Raises:
        ValueError: when it says something that is no weight.
    """
    from p2p.config import Z_WEIGHT, read_yaml

    path = Path(location, RECIPE_NAME)
    loss = read_yaml(path).get("loss") if path.is_file() else None
    weight = loss.get("z_weight", Z_WEIGHT) if isinstance(loss, dict) else Z_WEIGHT
    return gate.number(weight, f"{path}: loss.z_weight", 0.0, sys.float_info.max)


def data_of_recipe(location: str) -> list[str]:
    """The validation streams that the recipe.yaml of a run folder names.

    Raises:
        ValueError: when there is no such file, or it names none.
    """
    from p2p.config import read_yaml

    folder = Path(location)
    if not (folder / RECIPE_NAME).is_file():
        raise ValueError(f"{folder} has no {RECIPE_NAME} that would name the data; write --data STREAM")
    data = read_yaml(folder / RECIPE_NAME).get("data")
    named = data.get("val") if isinstance(data, dict) else None
    places = list(named.values()) if isinstance(named, dict) else [named] if named else []
    if not places:
        raise ValueError(f"{folder / RECIPE_NAME} names no data.val; write --data STREAM")
    return [str(place) for place in places]


def start_tracking(folder: Path) -> Callable[[dict[str, Any]], None] | None:
    """Logs each result to Weights & Biases when a key is there (WANDB_API_KEY, or WANDB_MODE=offline)."""
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline"):
        return None
    import wandb

    name = f"validate-{folder.resolve().name}"
    tracked = wandb.init(project=os.environ.get("WANDB_PROJECT", "p2p"), name=name, job_type="validate")
    tracked.define_metric("*", step_metric="checkpoint_step")

    def log(row: dict[str, Any]) -> None:
        values = {
            f"{Path(row['data']).name}/{who}/{metric}": estimate["value"]
            for who, metrics in row["metrics"].items()
            for metric, estimate in metrics.items()
            if estimate["value"] is not None
        }
        tracked.log({"checkpoint_step": row["step"] or 0, **values})

    return log


def run(args: argparse.Namespace) -> int:
    if (args.batch_size is not None and args.batch_size < 1) or args.interval_s <= 0:
        raise ValueError(f"--batch-size {args.batch_size} --interval-s {args.interval_s}: write positive numbers")
    folder = open_storage(args.folder, DEPTH)
    out = args.out or (folder.root if isinstance(folder, LocalFolder) else Path(f"{folder.name}-validation"))
    options = Options(
        data=tuple(args.data or data_of_recipe(args.folder)),
        num_chunks=args.chunks,
        batch_size=args.batch_size,
        device=args.device,
        min_steps=args.min_steps,
        max_steps=args.max_steps,
        interval_s=args.interval_s,
        patience_s=args.patience_s,
        z_weight=z_weight_of_recipe(args.folder),
    )
    validator = Validator(folder, out, options)
    validator.tracker = start_tracking(out)
    pause = threading.Event()
    while True:
        num_done, waiting = validator.run_pass()
        if num_done:
            _show(validator)
        if validator.finished() or not (args.watch or waiting):
            break
        pause.wait(args.interval_s)
    if not validator.results.rows:
        raise ValueError(
            f"{args.folder}: no whole checkpoint in the given range of steps; expected step-* folders of a run, policy "
            "folders (model.safetensors, config.yaml), or .ckpt files beside a model_config.yaml"
        )
    if not num_done:
        _show(validator)
    say(f"results: {validator.results.path}   curve: {validator.curve}")
    return 0


def _show(validator: Validator) -> None:
    chosen = [row for row in validator.results.rows if row["data"] in validator.options.data]
    if chosen:
        say(aligned(table(chosen)))
        draw_curve(chosen, validator.curve)
