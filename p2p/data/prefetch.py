"""Shards are fetched ahead of the samples that need them, by one thread; what fails is raised where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet


class Prefetcher:
    """`prepare` is called once for each shard that was asked for; a failure is kept for whoever waits for the shard."""

    def __init__(self, prepare: Callable[[int, int], None], longest_wait_s: float) -> None:
        self._prepare, self._longest_wait_s = prepare, longest_wait_s
        self._pool = ThreadPoolExecutor(1, "p2p-prefetch")
        self._asked: dict[Hashable, Future[None]] = {}

    def ask(self, stream: int, shard: int) -> None:
        if (stream, shard) not in self._asked:
            self._asked[stream, shard] = self._pool.submit(self._prepare, stream, shard)

    def wait(self, stream: int, shard: int) -> None:
        """Until a shard that was asked for was prepared.

        Raises:
            What `prepare` raised; TimeoutError when it takes too long.
        """
        future = self._asked.pop((stream, shard), None)
        if future is None:
            return
        try:
            future.result(self._longest_wait_s)
        except NotYet:
            if future.done():  # its own
                raise
            raise TimeoutError(f"shard {shard} was not there after {self._longest_wait_s:.0f} s: start again") from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
