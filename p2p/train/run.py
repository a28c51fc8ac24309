"""One training run: read the recipe, build everything in order, fit, export. Started by `p2p train`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from p2p.console import fail, log_to_stderr, note
from p2p.recipe import Recipe, load_recipe, save_recipe
from p2p.train.paths import RECIPE

if TYPE_CHECKING:
    from composer import Trainer
    from composer.core import Callback, DataSpec, State

    from p2p.train.checkpointer import ResumePoint
    from p2p.train.composer_policy import ComposerPolicy
    from p2p.train.precision import Precision

log = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = 130, 143
USAGE = "p2p train [-n PROCESSES] RECIPE [key=value ...]"


def main(argv: Sequence[str]) -> int:
    """Train; returns the exit status. What the user can cause is reported in one line."""
    parser = argparse.ArgumentParser(usage=USAGE, description="Train a policy by a recipe.")
    parser.add_argument("recipe", help="a recipe file, or the name of one of recipes/, such as 150M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train=DIR max_duration=2ba")
    args = parser.parse_args(argv)
    set_up_logging()
    recipe = None
    try:
        recipe = load_recipe(args.recipe, args.overrides)
        _locks = _prepare(recipe)  # held as long as this process lives
        trainer = build(recipe)
    except (ValueError, OSError) as error:
        return fail(error)
    except (KeyboardInterrupt, SystemExit) as end:
        return _interrupted(end, recipe)
    return train(recipe, trainer)


def train(recipe: Recipe, trainer: Trainer) -> int:
    """`fit`; returns the exit status, and reports in one line what ended it early."""
    from p2p.checkpoints.reading import NotFinite
    from p2p.data.errors import ShardError
    from p2p.gate import Refused

    try:
        fit(recipe, trainer)
    except (ShardError, NotFinite, Refused, OSError) as error:  # of shards, weights, files; a failed upload
        return fail(_last_line(error))
    except RuntimeError as error:
        from p2p.data.shared_memory import shared_memory_fault

        fault = shared_memory_fault(error)
        if not fault:
            raise
        return fail(fault)
    except (KeyboardInterrupt, SystemExit) as end:
        return _interrupted(end, recipe)
    return 0


def _interrupted(end: KeyboardInterrupt | SystemExit, recipe: Recipe | None) -> int:
    """One line for Ctrl-C and SIGTERM, of which Composer makes a SystemExit.

    Raises:
        SystemExit: one that is neither.
    """
    status = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
    if status not in (INTERRUPTED, TERMINATED):
        raise end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # that the loader's workers end too is no failure now
    from p2p.checkpoints.steps import local_steps

    if os.environ.get("RANK", "0") == "0":
        steps = local_steps(recipe.checkpoint_path) if recipe is not None else []
        saved = f"saved until step {steps[0]}; the same command goes on from there" if steps else "nothing was saved"
        note(f"p2p: interrupted: {saved}")
    assert isinstance(status, int)
    return status


def _last_line(error: Exception) -> str:
    """The message itself; a loader's worker puts its traceback in front of it."""
    return str(error).strip().splitlines()[-1]


def set_up_logging() -> None:
    """Progress of process 0 on stderr; the libraries' chatter stays out."""
    log_to_stderr(logging.WARNING, "%(asctime)s %(message)s", "%H:%M:%S")
    logging.getLogger("p2p").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
    warnings.filterwarnings("ignore", message="The _fsdp_wrap attribute will be removed")


def build(recipe: Recipe) -> Trainer:
    """Everything up to the first update, the resume point loaded.

    Raises:
        ValueError: something that the user gave does not fit: data, weights, batch sizes.
    """
    from composer.utils import dist, get_device

    from p2p.train.checkpointer import find_resume_point
    from p2p.train.composer_policy import ComposerPolicy
    from p2p.train.facts import data_identity
    from p2p.train.loaders import build_train_data
    from p2p.train.parallel import compiles, parallelize
    from p2p.train.precision import precision_here
    from p2p.train.processor import keep_memory, share_cores, time_convolutions
    from p2p.train.start import build_policy

    share_cores()
    keep_memory()
    time_convolutions()
    dist.initialize_dist(get_device(None), recipe.parallel.timeout_s)
    train_data = build_train_data(recipe)
    policy = build_policy(recipe, meta=dist.get_global_rank() > 0)
    parallelize(policy, recipe.parallel)
    precision = precision_here(recipe.precision)
    model = ComposerPolicy(policy, recipe.loss.z_weight, recipe.data.corruption, precision)
    model.validation_chunks = recipe.eval.batch_size if compiles(recipe.parallel) else 0
    data = data_identity(train_data.dataloader.dataset.streams)
    resume_point = find_resume_point(recipe, data)
    trainer = _build_trainer(recipe, model, train_data, _build_callbacks(recipe, data, resume_point))
    if dist.get_global_rank() == 0:
        log.info("%s", _describe(recipe, trainer, precision))
        _announce(recipe, resume_point is not None, int(trainer.state.timestamp.batch.value))
    return trainer


def _build_trainer(
    recipe: Recipe,
    model: ComposerPolicy,
    train_data: DataSpec,
    callbacks_and_due: tuple[list[Callback], Callable[[State], bool]],
) -> Trainer:
    from composer import Trainer
    from composer.utils import dist

    from p2p.train.loaders import build_evaluators, chunks_per_process
    from p2p.train.optim import build_optimizer
    from p2p.train.parallel import fsdp_config

    callbacks, eval_due = callbacks_and_due
    per_process = chunks_per_process(recipe)
    return Trainer(
        model=model,
        train_dataloader=train_data,
        eval_dataloader=build_evaluators(recipe, eval_due) or None,
        optimizers=build_optimizer(model.parameters(), recipe.optimizer),
        max_duration=recipe.max_duration,
        callbacks=callbacks,
        loggers=_loggers(recipe),
        run_name=recipe.name,
        progress_bar=False,
        parallelism_config=fsdp_config(recipe.parallel, dist.get_world_size()),
        precision=model.precision.composer,
        device_train_microbatch_size=min(recipe.microbatch or per_process, per_process),
        seed=recipe.seed,
        dist_timeout=recipe.parallel.timeout_s,
        spin_dataloaders=False,
    )


def _build_callbacks(
    recipe: Recipe, data: str, resume_point: ResumePoint | None
) -> tuple[list[Callback], Callable[[State], bool]]:
    """In the order in which they act on an event, and after which updates validation is due."""
    from composer.utils import dist

    from p2p.train import callbacks as cb
    from p2p.train.checkpointer import Checkpointer
    from p2p.train.flops import step_cost
    from p2p.train.replaced import ReplacedChunks

    statistics, norm = cb.SharedStatistics(), cb.GradientNorm(recipe.optimizer.clip)
    replaced = ReplacedChunks()
    report = cb.Report(recipe.run_path, recipe.log_interval, step_cost(recipe, dist.get_world_size()), norm, replaced)
    callbacks = [
        cb.StepSeed(recipe.seed),
        cb.OptimizerSettings(recipe.optimizer, recipe.schedule),
        norm,
        cb.FiniteGuard(norm),
        statistics,
        replaced,
        report,
    ]
    if recipe.ema_half_life is not None:
        callbacks.append(cb.WeightAverage(recipe.ema_half_life))
    checkpointer = Checkpointer(recipe, statistics, data, resume_point)
    eval_due = checkpointer.due if recipe.eval.interval is None else cb.every(recipe.eval.interval)
    return [*callbacks, checkpointer], eval_due


def fit(recipe: Recipe, trainer: Trainer) -> None:
    """Train to the end, then write the policy folder; a run that is at its end is only exported."""
    from composer.utils import dist

    from p2p.train.callbacks import num_updates
    from p2p.train.checkpointer import Checkpointer

    state = trainer.state
    (checkpointer,) = (callback for callback in state.callbacks if isinstance(callback, Checkpointer))
    if int(state.timestamp.batch.value) >= num_updates(state):
        log.info("%s is already trained for %s", recipe.name, recipe.max_duration)
    else:
        try:
            trainer.fit()
        finally:
            checkpointer.settle()  # however training ends, what it saved counts
    checkpointer.finish()
    trainer.close()
    if dist.get_global_rank() == 0:
        export(recipe)
    dist.barrier()


def export(recipe: Recipe) -> None:
    """The newest checkpoint's weights into <run folder>/policy."""
    from p2p.checkpoints.weights import read_run
    from p2p.model.weights import write_policy_folder

    config, tensors, step = read_run(recipe.checkpoint_path, raw=False)
    folder = write_policy_folder(config, tensors, recipe.run_path / "policy")
    log.info("policy of step %d: %s", step, folder)


def _prepare(recipe: Recipe) -> list[IO[bytes]]:
    """Check what can be checked before the slow imports, and take the run's folder, by locks that are returned.

    Raises:
        ValueError: what the recipe names is missing or does not fit, or another process trains in that folder.
    """
    from p2p.train.paths import check_paths, take_run

    check_paths(recipe)
    if os.environ.get("RANK", "0") != "0":
        return []
    from p2p.train.start import check_start

    check_start(recipe)
    return take_run(recipe)


def _loggers(recipe: Recipe) -> list[object]:
    """Weights & Biases when a key is there; metrics.jsonl is written in any case (see callbacks.Report)."""
    if not os.environ.get("WANDB_API_KEY"):
        return []
    from composer.loggers import WandBLogger

    return [WandBLogger(project="p2p", name=recipe.name, init_kwargs={"id": recipe.name, "resume": "allow"})]


def _describe(recipe: Recipe, trainer: Trainer, precision: Precision) -> str:
    """One line: size of the policy, device, numbers, size of the data."""
    import torch
    from composer.utils import dist

    from p2p.train.flops import meta_policy

    num_parameters = sum(parameter.numel() for parameter in meta_policy(recipe.policy).parameters())
    if torch.cuda.is_available():
        device = f"{dist.get_world_size()} x {torch.cuda.get_device_name()}"
    else:
        device = f"CPU, {dist.get_world_size()} x {torch.get_num_threads()} threads"
    dataset = trainer.state.train_dataloader.dataset
    tables = [stream.table.recordings for stream in dataset.streams]
    frames = sum(int(table.num_frames.sum(dtype="int64")) for table in tables)
    number = sum(map(len, tables))
    return (
        f"{recipe.name}: {num_parameters / 1e6:,.1f} M parameters · {device} · {precision.said} · {number:,} "
        f"recordings, {frames:,} frames, {dataset.num_samples:,} chunks of {recipe.policy.num_timesteps} steps an epoch"
    )


def _announce(recipe: Recipe, resumed: bool, step: int) -> None:
    recipe.run_path.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, recipe.run_path / RECIPE)
    log.info(
        "%s: %s from step %d to %s", recipe.run_path, "resuming" if resumed else "training", step, recipe.max_duration
    )
