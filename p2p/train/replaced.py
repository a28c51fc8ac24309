"""Chunks that do not decode and that others stand in for: counted over all processes; too many stop a run."""

from __future__ import annotations

import logging
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from p2p.data.substitutes import ReplacedCount
from p2p.train.composer_policy import COUNTS_KEY
from p2p.train.metrics_file import MetricsFile
from p2p.train.together import first_does

log = logging.getLogger(__name__)


class ReplacedChunks(ReplacedCount, Callback):
    """`count`: replaced chunks of the run so far; `latest`: the recordings that they were of in this update;
    `validation`: how many there were in each validation set when it was last scored.

    metrics.jsonl has them, so that a resumed run goes on counting; one on another machine begins at 0.
    A ShardError ends the run when they are too many, in training or in one validation set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: list[str] = []
        self.validation: dict[str, int] = {}
        self._own: list[str] = []  # of this process's part of the validation set that is being scored: "" where whole

    def resume(self, metrics: Path) -> None:
        """Take the count from the lines of the updates that a resumed run keeps; every process calls it."""
        self.count, self.recordings = first_does(lambda: _counted(metrics))

    def batch_end(self, state: State, logger: Logger) -> None:
        *_, chunks, _, replaced = state.batch[COUNTS_KEY]
        self.latest = []
        if not replaced:
            return
        own = [name for name in state.batch["replaced"] if name]
        self.latest = sorted(name for names in dist.all_gather_object(own) for name in names)
        self.add(self.latest, int(state.timestamp.batch.value) * int(chunks))

    def eval_start(self, state: State, logger: Logger) -> None:
        self._own = []

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        self._own += state.batch["replaced"]

    def eval_end(self, state: State, logger: Logger) -> None:
        label, found = str(state.dataloader_label), ReplacedCount()
        names = [name for names in dist.all_gather_object(self._own) for name in names]
        found.add(names, len(names))
        self.validation[label] = found.count
        if found.count and dist.get_global_rank() == 0:
            log.warning("%s: %s", label, found.summary(len(names)))

    def fit_end(self, state: State, logger: Logger) -> None:
        if self.count and dist.get_global_rank() == 0:
            log.warning("%s", self.summary())


def _counted(metrics: Path) -> tuple[int, set[str]]:
    """(replaced chunks, their recordings) by a metrics.jsonl."""
    count, names = 0, set[str]()
    for entry in MetricsFile(metrics).entries():
        replaced, of = entry.get("replaced_chunks"), entry.get("replaced_of")
        count = max(count, replaced if type(replaced) is int else 0)
        names.update(name for name in (of if isinstance(of, list) else ()) if isinstance(name, str))
    return count, names
