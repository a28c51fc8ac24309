"""`p2p export RUN_OR_CHECKPOINT --out DIR`: the weights of a training run as a policy folder.

Needs neither Composer nor the number of processes that trained.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        help="a run folder (its newest checkpoint), one checkpoint, or with --original a policy folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--raw", action="store_true", help="the weights themselves where a run also averaged them")
    parser.add_argument(
        "--original", action="store_true", help="write the original trainer's files: .ckpt, model_config.yaml"
    )


def run(args: argparse.Namespace) -> int:
    from p2p.checkpoints.weights import read_run
    from p2p.model.weights import write_policy_folder

    if args.original:
        log.info("%s", _export_original(args.source, args.out, args.raw))
        return 0
    config, tensors, step = read_run(args.source, args.raw)
    write_policy_folder(config, tensors, args.out)
    log.info("%s: the weights of step %d", args.out, step)
    return 0


def _export_original(source: Path, out: Path, raw: bool) -> Path:
    from p2p.checkpoints.weights import read_run
    from p2p.model.original import export_checkpoint
    from p2p.model.weights import WEIGHTS_NAME, write_policy_folder

    if (source / WEIGHTS_NAME).is_file():
        return export_checkpoint(source, out)
    config, tensors, step = read_run(source, raw)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        return export_checkpoint(write_policy_folder(config, tensors, Path(scratch) / "policy"), out, step)
