"""`p2p repair`: recordings that a kill or a full disk left unfinished become whole ones.

p2p repair runs/raw
"""

import argparse
from pathlib import Path

from p2p.console import USER_ERROR, say
from p2p.recording import repair_recordings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", type=Path, help="folder of the recordings")


def run(args: argparse.Namespace) -> int:
    """Repair, and say what was saved; the exit status is 2 when something could not be."""
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: no such folder; name the one that recordings were written below")
    found = repair_recordings(args.folder)
    for repaired in found:
        say(repaired)
    num_saved = sum(not repaired.problem for repaired in found)
    say(f"{args.folder}: {num_saved} recordings repaired, {len(found) - num_saved} could not be")
    return USER_ERROR if num_saved < len(found) else 0
