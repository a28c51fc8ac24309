"""Run the tasks of a plan: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import connection
from typing import Any

from p2p.console import log_to_stderr
from p2p_convert.plan import Task
from p2p_convert.work import keep_notes, read_notes, run_task

_RAY_RETRIES = 5  # of a task whose worker died


class _WorkerDied(Exception):  # noqa: N818  an event, not a failure of the program
    """`noted`: (task, recording) that the workers were at."""

    def __init__(self, noted: list[tuple[int, str]]) -> None:
        super().__init__()
        self.noted = noted


def run_local(tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """(task, report) as they are done.

    When a worker process dies, the tasks that workers were at are run alone, each in a process of its own. A recording
    that such a process dies of is rejected; the rest goes on.

    Raises:
        ValueError: when a worker process dies before it has begun with any recording.
    """
    if num_workers == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, run_task(task)
        return
    left = {task.number: task for task in tasks}
    suspects: list[int] = []
    while left:
        batch = [left[suspects.pop()]] if suspects else list(left.values())
        try:
            for task, report in _run_in_processes(batch, num_workers):
                del left[task.number]
                yield task, report
        except _WorkerDied as death:
            noted = {number: recording for number, recording in death.noted if number in left}
            if not noted:
                raise ValueError(
                    "a worker process died (out of memory?); run the same command again to go on"
                ) from death
            if len(batch) == 1:
                ((number, recording),) = noted.items()
                left[number] = replace(left[number], deadly=left[number].deadly | {recording})
            suspects = list(noted)


def _run_in_processes(tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as notes,
        ProcessPoolExecutor(
            min(num_workers, len(tasks)), mp_context=context, initializer=begin_worker, initargs=(notes,)
        ) as pool,
    ):
        pending = {pool.submit(run_task, task): task for task in tasks}
        try:
            for future in as_completed(pending):
                yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            raise _WorkerDied(read_notes(notes)) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def begin_worker(notes: str) -> None:
    """In each process of the pool: log as the command does, and note in this folder what is being converted."""
    log_to_stderr(logging.WARNING)
    keep_notes(notes)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """A killed conversion must not go on in its workers: OUT then has another owner."""
    connection.wait([sentinel])
    os._exit(1)


def run_ray(tasks: Sequence[Task], num_workers: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """(task, report) as they are done on the Ray cluster at RAY_ADDRESS, or on one made for it here.

    A cluster has its own number of workers; `num_workers` counts for one made here. Every node must see the
    sources and OUT under the same names. A task whose worker dies is run again, and nothing but that task.

    Raises:
        ValueError: when Ray is not installed, or a task fails again and again.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ValueError("--executor ray needs Ray: pip install 'p2p-convert[ray]'") from error
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        with contextlib.redirect_stdout(sys.stderr):
            ray.init(address=address, num_cpus=None if address else num_workers, log_to_driver=False)
    try:
        remote = ray.remote(max_retries=_RAY_RETRIES)(run_task)
        pending = {remote.remote(task): task for task in tasks}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            try:
                yield pending.pop(done), ray.get(done)
            except RayError as error:
                raise ValueError(f"Ray gave a task up: {error}; run the same command again to go on") from error
    finally:
        if own:
            ray.shutdown()


EXECUTORS = {"local": run_local, "ray": run_ray}
