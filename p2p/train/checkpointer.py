"""When checkpoints are written in training, and which one a run goes on from."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from p2p.checkpoints.layout import AVERAGE, read_layout
from p2p.checkpoints.steps import (
    CONFIG,
    KIND,
    fetch_newest,
    local_steps,
    newest_local,
    newest_stored,
    step_name,
    stored_steps,
    uploaded_steps,
)
from p2p.config import load_policy_config
from p2p.files import remove_folder, sync
from p2p.manifest import MANIFEST, FileRecord, read_manifest
from p2p.object_storage import ObjectFolder
from p2p.recipe import Recipe, load_recipe
from p2p.train.callbacks import SharedStatistics, every
from p2p.train.facts import check_same_run, facts_of_policy, make_facts
from p2p.train.paths import RECIPE
from p2p.train.publishing import WRITING, Uploader, begin, publish
from p2p.train.state import load_state, save_state
from p2p.train.together import all_do, first_does, new_group

log = logging.getLogger(__name__)

UPLOAD_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint, its step, whether the run goes on with the same data from the same place, and whether
    the store, where there is one, has it too."""

    folder: Path
    step: int
    same_course: bool
    is_stored: bool = True


class Checkpointer(Callback):
    """Loads the resume point; saves every `interval` updates and at the end; uploads when there is a store.

    Training waits until the state is written and hashed. A thread has it on the disk and gives it its name, which the
    next save and the end of the run wait for; there the thread's errors are raised, on every process.
    """

    def __init__(self, recipe: Recipe, statistics: SharedStatistics, data: str, resume_point: ResumePoint | None):
        self.recipe, self.data, self.resume_point = recipe, data, resume_point
        self.folder = recipe.checkpoint_path
        self.due = every(recipe.save_interval)
        self.statistics = statistics
        self.background = ThreadPoolExecutor(1, "checkpoint-publish")
        self._publishing: Future[None] | None = None
        self._group = new_group(recipe.parallel.timeout_s)
        self.uploader: Uploader | None = None
        if recipe.is_remote_save and dist.get_global_rank() == 0:
            self.uploader = Uploader(_store(recipe), self.folder, recipe.keep)

    def after_load(self, state: State, logger: Logger) -> None:
        """Composer's event between sharding and training; Composer itself loads nothing."""
        if self.resume_point is None:
            return
        folder, step = self.resume_point.folder, self.resume_point.step
        load_state(state, logger, folder, read_layout(folder), self.resume_point.same_course)
        if int(state.timestamp.batch.value) != step:
            raise ValueError(f"{folder}: holds the state of update {int(state.timestamp.batch.value)}, not of {step}")
        if self.uploader is not None and not self.resume_point.is_stored:  # the run was ended before it was uploaded
            self.uploader.submit(step)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.due(state):
            self.statistics.average(state)
            self.save(state)

    def save(self, state: State) -> None:
        """Write the state; it is published in the background."""
        self.settle()
        first_does(lambda: begin(self.folder))
        try:
            own = save_state(state, self.folder / WRITING)
        except BaseException:
            self._clear()
            raise
        facts = make_facts(self.recipe, self.data, int(state.timestamp.batch.value), dist.get_world_size())
        self._publishing = self.background.submit(self._publish, *own, facts)

    def settle(self) -> None:
        """Wait until what was saved is published.

        Raises:
            ValueError, OSError: on every process, when it could not be.
        """
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            publishing.result()

    def finish(self) -> None:
        """Wait until what was saved is published and uploaded; all processes call it together.

        Raises:
            ValueError, OSError: on every process, when it could not be.
        """
        self.settle()
        uploader, self.uploader = self.uploader, None
        first_does(lambda: None if uploader is None else uploader.close(UPLOAD_TIMEOUT_S))

    def _publish(self, name: str, record: FileRecord, facts: dict[str, Any]) -> None:
        """In a thread of every process; `name` is its own file."""

        def synced() -> tuple[str, FileRecord]:
            sync(self.folder / WRITING / name)
            return name, record

        keep = None if self.recipe.is_remote_save else self.recipe.keep
        try:
            records = dict(all_do(synced, self._group))
            first_does(lambda: publish(self.folder, self.recipe.policy, facts, records, keep), self._group)
        finally:
            self._clear()
        if self.uploader is not None:
            self.uploader.submit(int(facts["step"]))

    def _clear(self) -> None:
        if dist.get_global_rank() == 0:
            remove_folder(self.folder / WRITING)

    def close(self, state: State, logger: Logger) -> None:
        """Composer's event at the end of the process: uploads go on to their end also where training did not."""
        if self.uploader is not None:
            uploader, self.uploader = self.uploader, None
            uploader.close(UPLOAD_TIMEOUT_S)


def find_resume_point(recipe: Recipe, data: str) -> ResumePoint | None:
    """The newest usable checkpoint of the run, fetched from object storage when it is only there.

    Every process gets the same answer; process 0 looks, fetches, verifies and compares.

    Raises:
        ValueError: when the recipe may not go on from it (see `facts`), or there are checkpoints and none is usable.
    """
    return first_does(lambda: _find(recipe, data))


def _find(recipe: Recipe, data: str) -> ResumePoint | None:
    if not recipe.resume:
        stored = stored_steps(_store(recipe)) if recipe.is_remote_save else []
        if stored:
            raise ValueError(
                f"save_folder {recipe.save_folder} holds checkpoints up to step {stored[0]}, and resume is false: "
                "write another save_folder, or leave resume out"
            )
        return None
    step = newest_local(recipe.checkpoint_path)
    if recipe.is_remote_save:
        recipe.checkpoint_path.mkdir(parents=True, exist_ok=True)
        fetched = fetch_newest(_store(recipe), recipe.checkpoint_path, step)
        step = step if fetched is None else fetched
    if step is None:
        _check_new(recipe)
        return None
    folder = recipe.checkpoint_path / step_name(step)
    same_course = check_same_run(_facts(folder), recipe, data, str(folder))
    _check_average(folder, recipe)
    is_stored = not recipe.is_remote_save or newest_stored(_store(recipe)) == step
    return ResumePoint(folder, step, same_course, is_stored)


def _check_new(recipe: Recipe) -> None:
    """Raises ValueError where a run without a usable checkpoint would begin anew, though something was trained."""
    folder = recipe.checkpoint_path
    if local_steps(folder):
        raise ValueError(
            f"{folder}: no checkpoint is usable (see above): bring one back from a copy, or write resume=false to "
            "start anew"
        )
    if recipe.is_remote_save and uploaded_steps(_store(recipe)):
        raise ValueError(
            f"{recipe.save_folder}: no checkpoint is usable (see above): bring one back from a copy, or write another "
            "save_folder to start anew"
        )
    elsewhere = _folder_before(recipe)
    if elsewhere is not None and elsewhere.resolve() != folder.resolve() and local_steps(elsewhere):
        raise ValueError(
            f"{folder} holds no checkpoint, and those of this run are in {elsewhere}, where its recipe.yaml had them: "
            "move them, set save_folder back, or write resume=false to start anew"
        )


def _folder_before(recipe: Recipe) -> Path | None:
    """Where the run as it was typed before kept its checkpoints; None where that is not known."""
    try:
        return load_recipe(recipe.run_path / RECIPE).checkpoint_path
    except (ValueError, OSError):
        return None


def _facts(folder: Path) -> dict[str, object]:
    if (folder / MANIFEST).exists():
        return dict(read_manifest(folder, KIND).facts)
    return facts_of_policy(load_policy_config(folder / CONFIG))


def _check_average(folder: Path, recipe: Recipe) -> None:
    has_average = any(name.startswith(AVERAGE) for name in read_layout(folder))
    if recipe.ema_half_life is not None and not has_average:
        raise ValueError(
            f"ema_half_life is {recipe.ema_half_life}, but {folder} holds no average to go on from: leave it out, or "
            "give the run another name or run_folder, with init_from"
        )
    if recipe.ema_half_life is None and has_average:
        log.info("%s: its average of the weights is dropped (ema_half_life is not set)", folder)


def _store(recipe: Recipe) -> ObjectFolder:
    assert recipe.save_folder is not None
    return ObjectFolder(recipe.save_folder)
