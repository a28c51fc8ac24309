"""Work that one process does for all, or each for itself: every process gets the results, or raises the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

from p2p.gate import Refused

T = TypeVar("T")


def first_does(work: Callable[[], T]) -> T:
    """Process 0 works, the others wait for it.

    Raises:
        ValueError, OSError: what the work raises, on every process; else they would wait for one that has ended.
    """
    outcome = [_outcome(work) if dist.get_global_rank() == 0 else None]
    dist.broadcast_object_list(outcome)
    assert outcome[0] is not None
    return _results(outcome[0])[0]


def all_do(work: Callable[[], T]) -> list[T]:
    """Every process works; the results are in the order of the processes.

    Raises:
        ValueError, OSError: what the first process that failed raises, on every process.
    """
    return _results(*dist.all_gather_object(_outcome(work)))


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
