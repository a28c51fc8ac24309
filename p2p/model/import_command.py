"""`p2p import CHECKPOINT.ckpt --out DIR`: a checkpoint of the original trainer into a policy folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from p2p.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a released checkpoint (Lightning .ckpt with its model_config.yaml) into a policy folder: "
        "model.safetensors and config.yaml. The optimizer state inside the checkpoint is not read."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT.ckpt")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the policy folder to write")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="its model_config.yaml (default: beside the checkpoint)"
    )


def run(args: argparse.Namespace) -> int:
    from p2p.model.original import import_checkpoint
    from p2p.model.weights import WEIGHTS_NAME

    folder = import_checkpoint(args.checkpoint, args.out, args.config)
    before, after = args.checkpoint.stat().st_size, (folder / WEIGHTS_NAME).stat().st_size
    say(f"{folder}: {after / 1e6:,.1f} MB of weights from {before / 1e6:,.1f} MB of checkpoint")
    return 0
