"""Which epoch a loader is in, and where a resumed one goes on: a few numbers that its processes share."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import get_worker_info

from p2p.gate import whole_number

_LONGEST_WAIT_S = 60.0
_MAX_WORKERS = 4096
_EPOCH, _OF, _RESUMED, _OFFSET, _BEGUN = 0, 1, 2, 3, 4


class Position:
    """Each worker of a loader begins every epoch once, in a process that lives on or is made anew, in any order.

    So the first that begins counts up, and the others of the same loader that have not begun this epoch join it.
    """

    def __init__(self) -> None:
        self._shared = multiprocessing.Array("q", _BEGUN + _MAX_WORKERS)
        self._forget(-1)
        self._shared[_RESUMED] = -1

    def begin(self) -> tuple[int, int]:
        """(epoch, chunks of it that are done already) of the epoch that this process begins now."""
        info = get_worker_info()
        worker, loader = (0, -2) if info is None else (info.id, (info.seed - info.id) % (1 << 62))
        with self._locked():
            shared = self._shared
            if shared[_OF] != loader or shared[_BEGUN + worker] == shared[_EPOCH]:
                shared[_EPOCH] += 1
                shared[_OF] = loader
            epoch = shared[_BEGUN + worker] = shared[_EPOCH]
            return epoch, shared[_OFFSET] if epoch == shared[_RESUMED] else 0

    def position(self) -> tuple[int, int]:
        """(epoch, chunks of it that were done when it was resumed); epoch -1: none has begun."""
        with self._locked():
            epoch, resumed, offset = (self._shared[i] for i in (_EPOCH, _RESUMED, _OFFSET))
        return (resumed, offset) if epoch <= resumed else (epoch, 0)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Have the next epoch that begins be state["epoch"], from chunk state["sample_in_epoch"] on.

        Raises:
            ValueError: when the state holds no such numbers.
        """
        epoch = whole_number(state.get("epoch"), "epoch of the loader's state", -1, 1 << 40)
        offset = whole_number(state.get("sample_in_epoch"), "sample_in_epoch of the loader's state", 0, 1 << 40)
        with self._locked():
            self._forget(max(epoch, 0) - 1)
            self._shared[_RESUMED], self._shared[_OFFSET] = epoch, offset

    def _forget(self, epoch: int) -> None:
        """Nobody has begun an epoch after `epoch`."""
        self._shared[:] = [epoch, -1, -1, 0] + [-2] * _MAX_WORKERS

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._shared.get_lock()
        if not lock.acquire(timeout=_LONGEST_WAIT_S):
            raise TimeoutError(
                f"the loader's other processes hold its position for {_LONGEST_WAIT_S:.0f} s: start again"
            )
        try:
            yield
        finally:
            lock.release()
