"""Work that one process does for all, or each for itself: every process gets the results, or raises the error.

A `group` of processes of its own lets a thread do so while training speaks through another.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed
from composer.utils import dist
from torch.distributed import ProcessGroup

from p2p.gate import Refused

T = TypeVar("T")


def new_group(timeout_s: float) -> ProcessGroup | None:
    """All processes once more, through the network instead of the GPUs; None where there is only one."""
    if dist.get_world_size() == 1:
        return None
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))


def first_does(work: Callable[[], T], group: ProcessGroup | None = None) -> T:
    """Process 0 works, the others wait for it.

    Raises:
        ValueError, OSError: what the work raises, on every process; else they would wait for one that has ended.
    """
    outcome = [_outcome(work) if dist.get_global_rank() == 0 else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, group=group)
    assert outcome[0] is not None
    return _results(outcome[0])[0]


def all_do(work: Callable[[], T], group: ProcessGroup | None = None) -> list[T]:
    """Every process works; the results are in the order of the processes.

    Raises:
        ValueError, OSError: what the first process that failed raises, on every process.
    """
    own = _outcome(work)
    return _results(*(dist.all_gather_object(own, group) if dist.get_world_size() > 1 else [own]))


_Outcome = tuple[T | None, ValueError | OSError | None]


def _outcome(work: Callable[[], T]) -> _Outcome[T]:
    try:
        return work(), None
    except (ValueError, OSError) as error:
        return None, _plain(error)


def _results(*outcomes: _Outcome[T]) -> list[T]:
    for _, problem in outcomes:
        if problem is not None:
            raise problem
    return [result for result, _ in outcomes]  # type: ignore[misc]


def _plain(error: ValueError | OSError) -> ValueError | OSError:
    """An error that travels: of a plain type, without its causes."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename) if error.errno else OSError(str(error))
    return Refused(str(error))
