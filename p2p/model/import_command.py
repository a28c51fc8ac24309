"""`p2p import CHECKPOINT.ckpt --out DIR`: a checkpoint of the original trainer into a policy folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from p2p.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a released checkpoint (Lightning .ckpt) into a policy folder: model.safetensors and config.yaml. "
        "The optimizer state inside the checkpoint is not read. Its architecture comes from --config, --recipe, the "
        "model_config.yaml beside it, or else from its tensors, and is always held against these."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT.ckpt")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the policy folder to write")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the original's model_config.yaml or config/policy_model/SIZE.yaml (default: the one beside it)",
    )
    source.add_argument(
        "--recipe", metavar="NAME", help="take the policy of this recipe instead: 150M, 300M, 600M, 1200M, or a file"
    )


def run(args: argparse.Namespace) -> int:
    from p2p.model.original import import_checkpoint
    from p2p.model.weights import WEIGHTS_NAME
    from p2p.recipe import load_recipe

    config = load_recipe(args.recipe).policy if args.recipe else None
    folder = import_checkpoint(args.checkpoint, args.out, args.config, config)
    before, after = args.checkpoint.stat().st_size, (folder / WEIGHTS_NAME).stat().st_size
    say(f"{folder}: {after / 1e6:,.1f} MB of weights from {before / 1e6:,.1f} MB of checkpoint")
    return 0
