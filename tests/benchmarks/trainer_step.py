"""One side of bench_step.py on a CPU: updates of the real trainer (Composer, FSDP2, one process), timed by its events.

    python tests/benchmarks/trainer_step.py ours|plain --shards DIR [--timesteps 50] [--updates 3]

`plain` is the same run with the forward of plain_policy.py in place of the policy's. One thread; prints a JSON object:
CPU seconds of each update by its phases, and the most memory. Data come from shards that p2p-convert made; the loader
is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

PHASES = ("augmentation", "forward", "loss and backward", "norm and optimizer")


def recipe_arguments(size: str, timesteps: int, precision: str, updates: int, shards: Path, run: Path) -> list[str]:
    """The recipe of a size with what a CPU can take: one chunk an update, a chunk of `timesteps` steps."""
    return [
        f"recipes/{size}.yaml",
        f"data.train={shards}/train",
        "data.num_workers=1",
        "data.shuffle=false",
        f"policy.num_timesteps={timesteps}",
        f"policy.attention_history={timesteps}",
        "global_batch=1",
        "microbatch=1",
        f"precision={precision}",
        f"max_duration={updates}ba",
        "save_interval=100000ba",
        f"run_folder={run}",
    ]


def timing_callback() -> Any:
    """A Composer callback that notes CPU seconds at the borders of PHASES."""
    from composer.core import Callback, State
    from composer.loggers import Logger

    class Timing(Callback):
        def __init__(self) -> None:
            self.marks: list[float] = []
            self.updates: list[dict[str, float]] = []

        def _mark(self) -> None:
            self.marks.append(time.process_time())

        def batch_start(self, state: State, logger: Logger) -> None:
            self.marks = []
            self._mark()

        def before_forward(self, state: State, logger: Logger) -> None:
            self._mark()

        def after_forward(self, state: State, logger: Logger) -> None:
            self._mark()

        def after_backward(self, state: State, logger: Logger) -> None:
            self._mark()

        def batch_end(self, state: State, logger: Logger) -> None:
            self._mark()
            spent = [end - begin for begin, end in zip(self.marks, self.marks[1:], strict=False)]
            self.updates.append(dict(zip(PHASES, spent, strict=True)))

    return Timing()


def make_plain(policy: Any) -> None:
    """Let the policy of a trainer compute as plain_policy.py does, its parameters as FSDP2 has them."""
    from plain_policy import plain_forward, use_library_convolutions

    from p2p.model.network import ActionLogits

    use_library_convolutions(policy)

    def forward(frames: Any, actions: Any, text: Any, history_actions: Any = None, decode: Any = None) -> Any:
        logits = plain_forward(policy, frames, actions, text)
        return logits if decode is None else ActionLogits(*(x[decode] for x in logits))

    object.__setattr__(policy, "forward", forward)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("ours", "plain"))
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--size", default="150M")
    parser.add_argument("--timesteps", type=int, default=50)
    parser.add_argument("--precision", default="amp_bf16")
    parser.add_argument("--updates", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the trainer takes as many threads as it has cores
    from p2p.recipe import load_recipe
    from p2p.train import run

    run.set_up_logging()
    with tempfile.TemporaryDirectory(prefix="p2p-step-") as folder:
        arguments = recipe_arguments(
            args.size, args.timesteps, args.precision, args.updates, args.shards.absolute(), Path(folder)
        )
        trainer = run.build(load_recipe(arguments[0], arguments[1:]))
        if args.side == "plain":
            make_plain(trainer.state.model.policy)
        timing = timing_callback()
        kept = [callback for callback in trainer.state.callbacks if type(callback).__name__ != "Checkpointer"]
        trainer.state.callbacks = [*kept, timing]  # a checkpoint of 150M would take longer than what is measured
        trainer.fit()
        loss = float(trainer.state.total_loss_dict["loss/train/total"])
        trainer.close()
    memory_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    said = trainer.state.model.precision.said
    print(json.dumps({"computed_in": said, "loss": loss, "memory_gb": memory_gb, "updates": timing.updates}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
