"""`p2p train [-n PROCESSES] RECIPE [key=value ...]`: one process itself, or several that it starts and ends."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from p2p import gate
from p2p.recipe import load_recipe
from p2p.train.processes import run_processes

MAX_PROCESSES = 1024  # of one machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-n PROCESSES] RECIPE [key=value ...]"
    parser.add_argument("recipe", help="a recipe file, or the name of one of recipes/, such as 150M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train=DIR max_duration=2ba")
    parser.add_argument(
        "-n", type=int, dest="processes", metavar="PROCESSES", help="on this machine (default: one for each GPU, or 1)"
    )
    parser.epilog = (
        "The same command goes on with a run that was interrupted. Several machines: with WORLD_SIZE, NODE_RANK, "
        "MASTER_ADDR and MASTER_PORT set, Composer's launcher starts the processes of this one."
    )


def run(args: argparse.Namespace) -> int:
    """Becomes the training when that is one process on a CPU; else starts the processes, and waits for them.

    Raises:
        ValueError: when the recipe or an override does not read; said here at once, not by every process.
        ModuleNotFoundError: when Composer is not installed.
    """
    load_recipe(args.recipe, args.overrides)
    if importlib.util.find_spec("composer") is None:
        raise ModuleNotFoundError("no module named 'composer'", name="composer")
    if args.processes is not None:
        gate.whole_number(args.processes, "-n", 1, MAX_PROCESSES)
    training = ["-m", "p2p.train", args.recipe, *args.overrides]
    # -m would look for modules in the current folder first, where anything may lie.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if "WORLD_SIZE" in os.environ:
        chosen = ["-n", str(args.processes)] if args.processes is not None else []
        os.execve(sys.executable, [sys.executable, "-m", "composer.cli", *chosen, *training], environment)
    num_gpus = _num_gpus()
    num_processes = args.processes or max(1, num_gpus)
    command = [sys.executable, *training]
    if num_processes == 1 and num_gpus == 0:
        os.execve(sys.executable, command, environment)
    return run_processes(command, num_processes, environment)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
