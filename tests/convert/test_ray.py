"""The same plan on a Ray cluster: the same bytes, also when a worker dies in the middle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from p2p_convert.plan import Options, Task
from p2p_convert.run import convert
from tests.data.making import tree_digest, write_recordings


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112  Ray spells it so
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def busy_worker() -> int:
    """The process that runs a task of ours on the cluster."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [""])[0].startswith("ray::run_task"):
                return int(process.pid)
    raise AssertionError("no task ran")


def test_a_worker_that_dies_costs_its_task_and_changes_nothing(
    two_nodes: Any, tmp_path: Path, shared_fixtures: Path
) -> None:
    sources = [write_recordings(tmp_path / "raw", 80, 60, gop=20), shared_fixtures / "data_case" / "dataset"]
    convert(sources, tmp_path / "calm", Options(val_fraction=0.1))
    killed: list[int] = []

    def kill_one(task: Task, report: Any) -> None:
        if not killed:
            killed.append(busy_worker())
            os.kill(killed[0], signal.SIGKILL)

    convert(sources, tmp_path / "out", Options(val_fraction=0.1), executor="ray", progress=kill_one)
    assert killed
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "calm")
