"""When checkpoints are written in training, and which one a run resumes from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.checkpoint import save_checkpoint

from p2p.config import PolicyConfig
from p2p.object_storage import ObjectFolder
from p2p.recipe import Recipe
from p2p.train.callbacks import SharedStatistics, every
from p2p.train.checkpoints import Uploader, fetch, newest_local, newest_remote, prune, publish, step_name

log = logging.getLogger(__name__)

UPLOAD_TIMEOUT_S = 3600.0
_SCRATCH = ".writing"


class Checkpointer(Callback):
    """Saves every `interval` updates and at the end; keeps the newest `keep`; uploads when there is a store."""

    def __init__(self, recipe: Recipe, statistics: SharedStatistics):
        self.folder = recipe.checkpoint_path
        self.due = every(recipe.save_interval)
        self.keep = recipe.keep
        self.config: PolicyConfig = recipe.policy
        self.statistics = statistics
        self.uploader: Uploader | None = None
        if recipe.is_remote_save and dist.get_global_rank() == 0:
            assert recipe.save_folder is not None
            self.uploader = Uploader(ObjectFolder(recipe.save_folder), self.folder, recipe.keep)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.due(state):
            self.statistics.average(state)
            self._save(state)

    def _save(self, state: State) -> None:
        step = int(state.timestamp.batch.value)
        scratch = self.folder / _SCRATCH
        if dist.get_global_rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        dist.barrier()
        written = save_checkpoint(state, filename=str(scratch / "ep{epoch}-ba{batch}-rank{rank}.pt"))
        assert written is not None  # every process writes its shards
        dist.barrier()
        if dist.get_global_rank() == 0:
            publish(Path(written).parent, self.folder / step_name(step), self.config)
            shutil.rmtree(scratch, ignore_errors=True)
            if self.uploader is None:
                prune(self.folder, self.keep)
            else:
                self.uploader.submit(step)
        dist.barrier()

    def close(self, state: State, logger: Logger) -> None:
        if self.uploader is not None:
            uploader, self.uploader = self.uploader, None
            uploader.close(UPLOAD_TIMEOUT_S)


def find_resume_point(recipe: Recipe) -> Path | None:
    """The newest complete checkpoint of the run, fetched from object storage when it is only there.

    Every process gets the same answer; process 0 looks and fetches.
    """
    answer: list[int | None] = [None]
    if dist.get_global_rank() == 0 and recipe.resume:
        answer = [_newest(recipe)]
    dist.broadcast_object_list(answer)
    return None if answer[0] is None else recipe.checkpoint_path / step_name(answer[0])


def _newest(recipe: Recipe) -> int | None:
    local = newest_local(recipe.checkpoint_path)
    if not recipe.is_remote_save:
        return local
    assert recipe.save_folder is not None
    store = ObjectFolder(recipe.save_folder)
    recipe.checkpoint_path.mkdir(parents=True, exist_ok=True)
    remote = newest_remote(store, recipe.checkpoint_path)
    if remote is not None and (local is None or remote > local):
        log.info("fetching checkpoint %s of %s", step_name(remote), store.url)
        fetch(store, remote, recipe.checkpoint_path)
        return remote
    return local
