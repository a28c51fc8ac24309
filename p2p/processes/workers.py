"""Several processes that report to this one: what they say is handed on, and none of them stays behind."""

import contextlib
import multiprocessing
import queue
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

from p2p.processes.reaper import mark_children

CONTEXT = multiprocessing.get_context("spawn")  # forked copies of threads and sockets are no good start
_POLL_S = 1.0
_END_TIMEOUT_S = 10.0
_END, _FAILED = "__end__", "__failed__"


class Report(Protocol):
    """What a worker calls to say something: `report(kind, value)`."""

    def __call__(self, kind: str, value: Any) -> None: ...


def run_workers(
    work: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> Generator[tuple[str, Any], None, None]:
    """Run `work(*arguments[i], report)` in one process for each i; yields what they report, as (kind, value).

    The processes end when the generator is closed.

    Raises:
        ValueError: with a worker's ValueError or OSError, or when one of them dies; the others are ended.
    """
    mark_children()
    messages: Any = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=_life, args=(work, args, messages), daemon=True) for args in arguments]
    try:
        with _ctrl_c_held_back():
            for worker in workers:
                worker.start()
        num_running = len(workers)
        while num_running:
            try:
                kind, value = messages.get(timeout=_POLL_S)
            except queue.Empty:
                dead = [worker.exitcode for worker in workers if worker.exitcode]
                if dead:
                    raise ValueError(f"a worker process ended with status {dead[0]}") from None
                continue
            if kind == _FAILED:
                raise ValueError(value)
            if kind == _END:
                num_running -= 1
            else:
                yield kind, value
        for worker in workers:
            worker.join()
    finally:
        _end([worker for worker in workers if worker.pid is not None])


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes that are started in the block never see a terminal's Ctrl-C: this one hears it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: Sequence[Any]) -> None:
    """Ask them to end, and end those that do not."""
    for worker in workers:
        worker.terminate()
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    for worker in workers:
        worker.join(max(0.0, deadline_s - time.monotonic()))
        if worker.exitcode is None:
            worker.kill()
            worker.join()


def _end_when_asked() -> None:
    """SIGTERM raises SystemExit in this process, once: what it does to end is not interrupted."""
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise SystemExit

    signal.signal(signal.SIGTERM, end)


def _life(work: Callable[..., None], arguments: tuple[Any, ...], messages: Any) -> None:
    """A worker's whole life. Any error ends the worker and is told, so that nobody waits for it."""
    _end_when_asked()
    try:
        work(*arguments, lambda kind, value: messages.put((kind, value)))
    except (ValueError, OSError) as error:
        messages.put((_FAILED, str(error)))
    except SystemExit:  # nobody listens any more, and the queue must not hold up the end
        messages.cancel_join_thread()
        raise
    except BaseException:
        messages.put((_FAILED, traceback.format_exc()))
        raise
    messages.put((_END, None))
