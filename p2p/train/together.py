"""Work that one process does for all: every process gets its result, or raises its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from composer.utils import dist

T = TypeVar("T")


def first_does(work: Callable[[], T]) -> T:
    """Process 0 works, the others wait for it.

    Raises:
        ValueError, OSError: what the work raises, on every process; else they would wait for one that has ended.
    """
    outcome: list[tuple[T | None, ValueError | OSError | None]] = [(None, None)]
    if dist.get_global_rank() == 0:
        try:
            outcome = [(work(), None)]
        except (ValueError, OSError) as error:
            outcome = [(None, _plain(error))]
    dist.broadcast_object_list(outcome)
    result, problem = outcome[0]
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]


def _plain(error: ValueError | OSError) -> ValueError | OSError:
    """An error that travels: of a plain type, without its causes."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror, error.filename) if error.errno else OSError(str(error))
    return ValueError(str(error))
