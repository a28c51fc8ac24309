"""`composer launch` with a hand on the thread that publishes checkpoints: FILE RECIPE [key=value ...].

The thread does nothing until FILE exists, so that a test can look at, damage or kill a run in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from p2p.recipe import load_recipe
from p2p.train import run
from p2p.train.checkpointer import Checkpointer

TIMEOUT_S = 120.0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def main(argv: Sequence[str]) -> int:
    release, recipe_name, *overrides = argv
    run.set_up_logging()
    recipe = load_recipe(recipe_name, overrides)
    trainer = run.build(recipe)
    (checkpointer,) = (each for each in trainer.state.callbacks if isinstance(each, Checkpointer))
    checkpointer.background.submit(wait_for, Path(release))
    return run.train(recipe, trainer)
