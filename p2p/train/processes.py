"""The processes of a run on one machine: started together, ended together, with one exit status.

Composer's own launcher does the same, but answers Ctrl-C with a traceback and the status of SIGTERM, and loads Composer
once more for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from p2p.console import note

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128  # a shell's status of what ended by a signal is this and the signal's number
_POLL_S = 0.1
_TOGETHER_S = 2.0  # so long after the first failure, others may fail by themselves, for the same reason
_END_TIMEOUT_S = 30.0
_MAX_SHOWN_BYTES = 1 << 16

Child = subprocess.Popen[bytes]


def run_processes(command: Sequence[str], num_processes: int, environment: Mapping[str, str]) -> int:
    """Run a command in `num_processes` processes of one process group of torch, until all have ended.

    Process 0 has our output; what the others say is shown when one of them fails. A failure ends them all. Ctrl-C,
    SIGTERM and a closed terminal do so too, a second one at once.

    Returns:
        0 when all ended well; the status of the process that failed; 130, 143 or 129 after a signal.
    """
    asked: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stops_go_to(asked))
        said = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, num_processes))]
        children: list[Child] = []
        stack.callback(_kill, children)
        port = _free_port()
        for rank in range(num_processes):
            children.append(_start(command, rank, num_processes, port, environment, said[rank]))
        _until(lambda: bool(asked) or _failed(children) is not None or _all_ended(children))
        if asked:
            _end(children, asked)
            return _SIGNALLED + asked[0]
        if _failed(children) is None:
            return 0
        _until(lambda: bool(asked) or _all_ended(children), _TOGETHER_S)
        failed = _failed(children)
        assert failed is not None
        _end(children, asked)
        output = said[failed]
        if output is not None:
            note(f"process {failed} of {num_processes} failed:\n{_end_of(output)}")
        status = children[failed].returncode
        return status if status > 0 else _SIGNALLED - status


def _start(
    command: Sequence[str],
    rank: int,
    num_processes: int,
    port: int,
    environment: Mapping[str, str],
    said: IO[bytes] | None,
) -> Child:
    """One process with the variables that torch and Composer read, in a session of its own: no terminal's signals."""
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    return subprocess.Popen(
        list(command), env={**environment, **variables}, stdout=said, stderr=said, start_new_session=True
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _failed(children: Sequence[Child]) -> int | None:
    """The first process that has ended otherwise than well."""
    return next((rank for rank, child in enumerate(children) if child.poll()), None)


def _all_ended(children: Sequence[Child]) -> bool:
    return all(child.poll() is not None for child in children)


def _until(condition: Callable[[], bool], seconds: float = float("inf")) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _end(children: Sequence[Child], asked: list[int]) -> None:
    """Ask all to end, and wait for it, unless another signal comes; what is left then is killed by the caller."""
    num_asked = len(asked)
    for child in children:
        if child.poll() is None:
            child.terminate()
    _until(lambda: len(asked) > num_asked or _all_ended(children), _END_TIMEOUT_S)


def _kill(children: Sequence[Child]) -> None:
    """End what is left, loaders' workers included."""
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _end_of(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _MAX_SHOWN_BYTES))
    return output.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _stops_go_to(asked: list[int]) -> Iterator[None]:
    """The numbers of the signals to stop are noted meanwhile; what is ignored (under nohup) stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.getsignal(number) for number in _STOPPING}
    wanted = [number for number, old in before.items() if old != signal.SIG_IGN]
    for number in wanted:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, before[number])
