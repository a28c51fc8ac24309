"""`p2p export-dataset SHARDS --lerobot OUT`: shards as a dataset of another ecosystem, for its viewers."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `p2p export-dataset`."""
    parser.add_argument("shards", metavar="SHARDS", help="OUT of a conversion, or one stream of it; s3:// too")
    parser.add_argument("--lerobot", required=True, type=Path, metavar="OUT", help="a new folder for the dataset")


def run(args: argparse.Namespace) -> int:
    """Export, and say what came of it."""
    from p2p.console import say
    from p2p_convert.lerobot_dataset import export

    num_episodes, num_frames, skipped = export(args.shards, args.lerobot)
    say(f"{args.lerobot}: {num_episodes:,} episodes, {num_frames:,} frames")
    for reason, count in skipped.most_common():
        say(f"  {count:>8,} x left out: {reason}")
    return 0
