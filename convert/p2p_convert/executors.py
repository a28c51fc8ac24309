"""Run the tasks of a plan: in this process, or in several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from p2p_convert.plan import Task
from p2p_convert.work import run_task


def run_local(tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """(task, report) as they are done.

    Raises:
        ValueError: when a worker process died.
    """
    if num_workers == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, run_task(task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(tasks)), mp_context=context) as pool:
        pending = {pool.submit(run_task, task): task for task in tasks}
        try:
            for future in as_completed(pending):
                yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise ValueError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
