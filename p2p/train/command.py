"""`p2p train [-n PROCESSES] RECIPE [key=value ...]`: one process itself, several by way of Composer's launcher."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import NoReturn

from p2p import gate
from p2p.recipe import load_recipe

MAX_PROCESSES = 1024  # of one machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [-n PROCESSES] RECIPE [key=value ...]"
    parser.add_argument("recipe", help="a recipe file, or the name of one of recipes/, such as 150M")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train=DIR max_duration=2ba")
    parser.add_argument(
        "-n", type=int, dest="processes", metavar="PROCESSES", help="on this machine (default: one for each GPU, or 1)"
    )
    parser.epilog = (
        "The same command goes on with a run that was interrupted. Several machines: Composer's launcher reads "
        "WORLD_SIZE, NODE_RANK, MASTER_ADDR and MASTER_PORT."
    )


def run(args: argparse.Namespace) -> NoReturn:
    """Becomes the training, or Composer's launcher: signals and the exit status are those of the training itself.

    The launcher ends with a traceback on Ctrl-C, so one process on a CPU does without.

    Raises:
        ValueError: when the recipe or an override does not read; said here at once, not by every process.
        ModuleNotFoundError: when Composer is not installed.
    """
    load_recipe(args.recipe, args.overrides)
    if importlib.util.find_spec("composer") is None:
        raise ModuleNotFoundError("no module named 'composer'", name="composer")
    launcher = ["-m", "composer.cli"]
    if args.processes is not None:
        launcher += ["-n", str(gate.whole_number(args.processes, "-n", 1, MAX_PROCESSES))]
    if args.processes in (None, 1) and "WORLD_SIZE" not in os.environ and not _has_gpus():
        launcher = []
    command = [sys.executable, *launcher, "-m", "p2p.train", args.recipe, *args.overrides]
    # -m would look for modules in the current folder first, where anything may lie.
    os.execve(sys.executable, command, {**os.environ, "PYTHONSAFEPATH": "1"})


def _has_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 0
