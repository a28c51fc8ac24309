"""Chunks that do not decode and that others stand in for: counted over all processes; too many stop a run."""

from __future__ import annotations

import logging
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from p2p.data.errors import ShardError
from p2p.train.composer_policy import COUNTS_KEY
from p2p.train.metrics_file import MetricsFile
from p2p.train.together import first_does

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
        self.count, self.recordings = first_does(lambda: _counted(metrics))

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


def _counted(metrics: Path) -> tuple[int, set[str]]:
    """(replaced chunks, their recordings) by a metrics.jsonl."""
    count, names = 0, set[str]()
    for entry in MetricsFile(metrics).entries():
        replaced, of = entry.get("replaced_chunks"), entry.get("replaced_of")
        count = max(count, replaced if type(replaced) is int else 0)
        names.update(name for name in (of if isinstance(of, list) else ()) if isinstance(name, str))
    return count, names
