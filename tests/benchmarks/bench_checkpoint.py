"""Cost of checkpoints in training, and of hashes on loading. `python tests/benchmarks/bench_checkpoint.py`

A run of `p2p train` on a CPU (Composer, FSDP2, one process) whose state with the optimizer's has about 600 MB: how long
training waits for a save, in turn with a plain one: the same state through torch.distributed.checkpoint's own writer to
the disk, renamed, without hash, finite check or manifest. Ours is timed until training goes on, and until the
checkpoint has its name, which happens while training goes on; CPU seconds are of both together. Then a policy folder
of the same weights is loaded with its hashes verified, and its tensors by safetensors alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from bench_step import make_shards

from p2p.config import PolicyConfig

TIMESTEPS = 4


def build_trainer(folder: Path, dim: int, num_layers: int) -> Any:
    """A trainer after one update, so that the optimizer has its moments."""
    from p2p.recipe import load_recipe
    from p2p.train import run

    arguments = [
        "recipes/doom-tiny.yaml",
        f"data.train={make_shards(folder, TIMESTEPS, 4)}/train",
        "data.val=null",
        "data.num_workers=1",
        f"policy.dim={dim}",
        f"policy.num_layers={num_layers}",
        "policy.num_heads=8",
        f"policy.num_timesteps={TIMESTEPS}",
        f"policy.attention_history={TIMESTEPS}",
        "global_batch=1",
        "max_duration=2ba",
        "save_interval=1ba",
        "keep=1",
        f"run_folder={folder / 'run'}",
    ]
    run.set_up_logging()
    trainer = run.build(load_recipe(arguments[0], arguments[1:]))
    trainer.fit(duration="1ba")
    return trainer


def save_plainly(state: Any, folder: Path) -> None:
    """What a trainer without guards does: write, sync, rename, delete the one before."""
    import torch.distributed.checkpoint as dcp

    everything = state.state_dict()
    parts = {name: everything[name] for name in ("model", "optimizers", "callbacks", "timestamp", "dataset_state")}
    scratch, name = folder / "writing", folder / "step"
    dcp.save({"state": parts}, storage_writer=dcp.FileSystemWriter(scratch, sync_files=True))
    shutil.rmtree(name, ignore_errors=True)
    os.rename(scratch, name)


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def bench_saves(trainer: Any, folder: Path, rounds: int) -> None:
    from p2p.train.checkpointer import Checkpointer

    state = trainer.state
    (checkpointer,) = (each for each in state.callbacks if isinstance(each, Checkpointer))
    plain, waited, published = [], [], []
    for _ in range(rounds + 1):  # the first one of each warms up
        os.sync()
        clock = Clock()
        save_plainly(state, folder)
        plain.append(clock.read())
        os.sync()
        clock = Clock()
        checkpointer.save(state)
        waited.append(clock.read()[0])
        checkpointer.settle()
        published.append(clock.read())
    plain_s, ours_s = np.array(plain[1:]), np.array(published[1:])
    show("save: training waits", plain_s[:, 0], np.array(waited[1:]))
    show("save: until it has its name", plain_s[:, 0], ours_s[:, 0])
    show("save: CPU, all of it", plain_s[:, 1], ours_s[:, 1])


def bench_loads(config: PolicyConfig, folder: Path, rounds: int) -> None:
    from safetensors.torch import load_file

    from p2p.model.policy import Policy
    from p2p.model.weights import WEIGHTS_NAME, read_policy_folder, save_policy

    save_policy(Policy(config), folder / "policy")
    without = shutil.copytree(folder / "policy", folder / "without")
    (without / "manifest.json").unlink()

    def seconds(work: Callable[[], object]) -> float:
        clock = Clock()
        work()
        return clock.read()[0]

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: [tensor.sum() for tensor in load_file(without / WEIGHTS_NAME).values()],  # so that all is read
        "without": lambda: read_policy_folder(without),
        "verified": lambda: read_policy_folder(folder / "policy"),
    }
    taken = np.array([[seconds(way) for way in ways.values()] for _ in range(rounds + 1)])[1:]
    show("load: without its manifest, beside safetensors and a look at every number", taken[:, 0], taken[:, 1])
    show("load: hashes verified, beside the same without a manifest", taken[:, 1], taken[:, 2])


def show(what: str, reference: Any, ours: Any) -> None:
    ratio = np.median(ours / reference)
    cells = [f"{np.min(x):.2f} ({np.median(x):.2f}) s" for x in (reference, ours)]
    print(f"| {what} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: of temporary files)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2p-checkpoint-", dir=args.folder) as scratch:
        folder = Path(scratch)
        trainer = build_trainer(folder, args.dim, args.layers)
        num_bytes = sum(path.stat().st_size for path in (folder / "run" / "checkpoints").rglob("*") if path.is_file())
        print(f"{num_bytes / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}; minimum (median), ratio of pairs (median)")
        bench_saves(trainer, folder, args.rounds)
        bench_loads(trainer.state.model.policy.config, folder, args.rounds)
        trainer.close()
    print(f"load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
