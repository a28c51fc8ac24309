"""Starts training processes quickly: imports Composer once, then forks a process for each rank of each run.

Run as a program it reads one JSON order a line ({"argv", "processes", "log", ...}) and forks `launch` with the
variables that `composer -n N` would set; it answers with the process ids, in groups of their own.
`Zygote` is the other side.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Run:
    """A training run under way: its processes, which are children of the zygote."""

    def __init__(self, zygote: Zygote, number: int, pids: list[int], log: Path):
        self.zygote, self.number, self.pids, self.log = zygote, number, pids, log
        self.ended = False

    def wait(self) -> None:
        """Until all processes ended; they must have ended well."""
        if not self.ended:
            statuses = self.end()
            assert statuses == [0] * len(self.pids), f"exit {statuses}:\n{self.log.read_text()}"

    def end(self) -> list[int]:
        """Until all processes ended; their exit statuses."""
        self.ended = True
        return self.zygote.request({"wait": self.number})

    def kill(self) -> None:
        """SIGKILL to every process and its loader workers, as a machine that loses power."""
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
        self.zygote.request({"wait": self.number})

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"not reached in {TIMEOUT_S:.0f} s:\n{self.log.read_text()}"
            time.sleep(0.02)


class Zygote:
    """The process that forks runs."""

    def __init__(self, cwd: Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(cwd), "WANDB_API_KEY": ""},
        )
        self.count = 0

    def request(self, order: dict[str, object]) -> list[int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the zygote ended"
        return list(json.loads(answer))

    def start(
        self,
        argv: list[str],
        log: Path,
        processes: int = 1,
        program: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """`composer -n PROCESSES launch ARGV`, or another program with a main(argv) instead of launch."""
        self.count += 1
        order: dict[str, object] = {
            "start": self.count,
            "argv": argv,
            "processes": processes,
            "log": str(log),
            "port": free_port(),
        }
        order |= {"program": str(program or "launch"), "environment": environment or {}}
        return Run(self, self.count, self.request(order), log)

    def close(self) -> None:
        """Its runs have ended by now; the process holds nothing that it would have to put away."""
        self.process.kill()
        self.process.communicate()


# ------------------------------------------------------------------ the process


def serve() -> None:
    import composer  # noqa: F401 (that it is loaded before the forks is the point)
    import streaming  # noqa: F401

    import p2p.train.checkpointer
    import p2p.train.composer_policy
    import p2p.train.loaders
    import p2p.train.run  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    children: dict[int, list[int]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children.pop(order["wait"])]
        else:
            answer = children[order["start"]] = [fork_rank(order, rank) for rank in range(order["processes"])]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def fork_rank(order: dict[str, Any], rank: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    world = str(order["processes"])
    os.environ |= order["environment"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"])}
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        status = runpy.run_path(str(order["program"]))["main"](order["argv"])
    except BaseException:  # noqa: BLE001 (whatever it was, it belongs into the log)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
