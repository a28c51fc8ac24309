"""Chunks that do not decode and that others stand in for: counted over all processes; too many stop a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from p2p.data.stream import ShardError
from p2p.train.composer_policy import COUNTS_KEY

log = logging.getLogger(__name__)

ALLOWED_SHARE = 0.001  # of the chunks so far
ALLOWED_AT_LEAST = 8  # early in a run, when one is a large share
_LISTED = 50


class ReplacedChunks(Callback):
    """`count`: replaced chunks of the run so far; `latest`: the recordings that they were of in this update.

    metrics.jsonl has both, so that a resumed run goes on counting; one on another machine begins at 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.latest: list[str] = []
        self.recordings: set[str] = set()

    def resume(self, metrics: Path) -> None:
        """Take the count from the lines of the updates that a resumed run keeps; every process calls it."""
        found: list[Any] = [_counted(metrics) if dist.get_global_rank() == 0 else None]
        dist.broadcast_object_list(found)
        self.count, names = found[0]
        self.recordings = set(names)

    def batch_end(self, state: State, logger: Logger) -> None:
        """
        Raises:
            ShardError: when more than ALLOWED_SHARE of the chunks so far were replaced; it lists their recordings.
        """
        *_, chunks, _, replaced = state.batch[COUNTS_KEY]
        self.latest = []
        if not replaced:
            return
        own = [name for name in state.batch["replaced"] if name]
        self.latest = sorted(name for names in dist.all_gather_object(own) for name in names)
        self.count += len(self.latest)
        self.recordings.update(self.latest)
        so_far = int(state.timestamp.batch.value) * int(chunks)
        if self.count > max(ALLOWED_AT_LEAST, ALLOWED_SHARE * so_far):
            raise ShardError(
                f"{self._summary(so_far)}, more than {ALLOWED_SHARE:.1%}: these recordings are damaged; "
                "find out with p2p-convert verify --decode, and convert them again"
            )

    def fit_end(self, state: State, logger: Logger) -> None:
        if self.count and dist.get_global_rank() == 0:
            log.warning("%s", self._summary(None))

    def _summary(self, so_far: int | None) -> str:
        names = sorted(self.recordings)
        listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        share = "" if so_far is None else f" of {so_far}"
        return f"{self.count}{share} chunks did not decode and were replaced by others (recordings: {listed})"


def _counted(metrics: Path) -> tuple[int, list[str]]:
    """(replaced chunks, their recordings) by the lines of a metrics.jsonl."""
    count = 0
    names: set[str] = set()
    for line in metrics.read_text().splitlines() if metrics.exists() else []:
        entry = json.loads(line)
        count = max(count, int(entry.get("replaced_chunks", 0)))
        names.update(str(name) for name in entry.get("replaced_of", []))
    return count, sorted(names)
