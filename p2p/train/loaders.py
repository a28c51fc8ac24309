"""Data loaders of a run: chunks from local shards or object storage, as Composer takes them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer.core import DataSpec, Evaluator, Event, State
from composer.utils import dist
from torch.utils.data import DataLoader

from p2p.data.augment import augment
from p2p.data.batch import collate
from p2p.data.dataset import GameplayDataset
from p2p.data.shared_memory import require_shared_memory
from p2p.recipe import Recipe
from p2p.train.composer_policy import Batch, count_chunks, split_batch, split_eval_batch


def build_train_data(recipe: Recipe) -> DataSpec:
    """Batches of global_batch / processes chunks, in an order that the number of processes does not change."""
    per_process = chunks_per_process(recipe)
    dataset = _dataset(recipe, "train", str(recipe.data.train), per_process, training=True)
    if dataset.num_samples < recipe.global_batch:
        raise ValueError(
            f"data.train {recipe.data.train!r} holds {dataset.num_samples} chunks of {recipe.policy.num_timesteps} "
            f"steps; an update needs {recipe.global_batch} (global_batch)"
        )
    _check_labels("data.train", str(recipe.data.train), dataset, "nothing to learn from")
    loader = _loader(recipe, dataset, per_process, drop_last=True)
    return DataSpec(
        loader,
        microbatch_transforms=_augment if recipe.data.augment else None,
        split_batch=split_batch,
        get_num_samples_in_batch=count_chunks,
    )


def _augment(batch: Batch) -> Batch:
    """On the device, microbatch by microbatch."""
    return {**batch, "frames": augment(batch["frames"])}


def build_evaluators(recipe: Recipe, due: Callable[[State], bool]) -> list[Evaluator]:
    """One evaluator per validation set; `due` says after which updates they run."""

    def interval(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and due(state)

    size = recipe.eval.batch_size
    evaluators = []
    for label, place in recipe.data.val_sets.items():
        dataset = _dataset(recipe, label, place, size, training=False)
        _check_labels("data.val" if label == "val" else f"data.val.{label}", place, dataset, "nothing to score")
        loader = _loader(recipe, dataset, size, drop_last=False)
        spec = DataSpec(loader, split_batch=split_eval_batch, get_num_samples_in_batch=count_chunks)
        evaluators.append(
            Evaluator(
                label=label,
                dataloader=spec,
                eval_interval=interval,
                subset_num_batches=recipe.eval.max_batches or -1,
                device_eval_microbatch_size=size,
            )
        )
    return evaluators


def _check_labels(key: str, place: str, dataset: GameplayDataset, consequence: str) -> None:
    """Losses and metrics count what a person did; without any of it they would be 0 and say nothing.

    Raises:
        ValueError: when the index of a data set knows no such frame.
    """
    tables = [stream.table.recordings for stream in dataset.streams]
    number = sum(map(len, tables))
    if not any(table.num_user.any() for table in tables):
        raise ValueError(
            f"{key} {place!r}: {number} recordings without one frame whose action is a person's, so there is "
            f"{consequence}; convert recordings that have user_action"
        )


def chunks_per_process(recipe: Recipe) -> int:
    world: int = dist.get_world_size()
    if recipe.global_batch % world != 0:
        raise ValueError(
            f"global_batch is {recipe.global_batch}, which {world} processes cannot share equally; "
            f"write a multiple of {world}"
        )
    return recipe.global_batch // world


def _dataset(recipe: Recipe, label: str, place: str, batch_size: int, training: bool) -> GameplayDataset:
    cache = Path(recipe.data.cache) if recipe.data.cache else recipe.run_path / "cache"
    return GameplayDataset.for_policy(
        recipe.policy,
        place,
        cache=cache / label,
        phase="random" if training else 0,
        batch_size=batch_size,
        shuffle=training and recipe.data.shuffle,
        shuffle_seed=recipe.seed,
        cache_limit=recipe.data.cache_limit if "://" in place else None,
    )


def _loader(recipe: Recipe, dataset: GameplayDataset, batch_size: int, drop_last: bool) -> DataLoader[Any]:
    num_workers = recipe.data.num_workers
    if num_workers:
        policy = recipe.policy
        frame_bytes = 3 * policy.frame_height * policy.frame_width
        num_bytes = batch_size * policy.num_timesteps * frame_bytes
        require_shared_memory(num_bytes, f"one batch of {batch_size} chunks for this process")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        prefetch_factor=recipe.data.prefetch_factor if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_interrupts if num_workers else None,
        drop_last=drop_last,
    )


def leave_interrupts(worker: int) -> None:
    """In a worker: Ctrl-C reaches the whole group, but it is for the process that trains, which ends its workers.

    A worker that ended by itself would look like one that died of a fault.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
