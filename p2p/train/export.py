"""`p2p export RUN_OR_CHECKPOINT --out DIR`: the weights of a training run as a policy folder.

Needs neither Composer nor the number of processes that trained: it reads the checkpoint's tensors one by one.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p.train.checkpoints import CONFIG, METADATA, missing_part, newest_local, step_name

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MODEL_PREFIX = "state.model.policy."
AVERAGE_PREFIX = "state.callbacks.WeightAverage.average.policy."


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
    from p2p.model.weights import write_policy_folder

    if args.original:
        log.info("%s", _export_original(args.source, args.out, args.raw))
        return 0
    config, tensors, step = read_run(args.source, raw=args.raw)
    write_policy_folder(config, tensors, args.out)
    log.info("%s: the weights of step %d", args.out, step)
    return 0


def _export_original(source: Path, out: Path, raw: bool) -> Path:
    import tempfile

    from p2p.model.original import export_checkpoint
    from p2p.model.weights import WEIGHTS_NAME, write_policy_folder

    if (source / WEIGHTS_NAME).is_file():
        return export_checkpoint(source, out)
    config, tensors, step = read_run(source, raw)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        return export_checkpoint(write_policy_folder(config, tensors, Path(scratch) / "policy"), out, step)


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a run folder, a folder of checkpoints or a checkpoint folder stands for."""
    if (source / METADATA).is_file():
        problem = missing_part(source)
        if problem is not None:
            raise ValueError(f"{source} is not a complete checkpoint: {problem}")
        return source
    for folder in (source / "checkpoints", source):
        step = newest_local(folder)
        if step is not None:
            return folder / step_name(step)
    raise ValueError(f"{source}: no complete checkpoint; expected a run folder (runs/NAME) or a step-* folder in it")


def read_run(source: Path, raw: bool) -> tuple[Any, dict[str, Tensor], int]:
    """Config, tensors by the policy's names, and the step, of a run or checkpoint; the average where there is one."""
    from p2p.config import load_policy_config

    checkpoint = find_checkpoint(source)
    config = load_policy_config(checkpoint / CONFIG)
    return config, read_tensors(checkpoint, raw), int(checkpoint.name.removeprefix("step-"))


def read_tensors(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """Full tensors of the policy, whatever number of processes wrote them."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    stored = dcp.FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata) and key.startswith((MODEL_PREFIX, AVERAGE_PREFIX))
    }
    if not wanted:
        raise ValueError(f"{checkpoint} holds no policy")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(wanted, checkpoint_id=str(checkpoint), no_dist=True)
    tensors = {key[len(MODEL_PREFIX) :]: t for key, t in wanted.items() if key.startswith(MODEL_PREFIX)}
    if not raw:
        tensors |= {key[len(AVERAGE_PREFIX) :]: t for key, t in wanted.items() if key.startswith(AVERAGE_PREFIX)}
    return tensors
