"""`p2p export RUN_OR_CHECKPOINT --out DIR`: the weights of a training run as a policy folder.

Needs neither Composer nor the number of processes that trained: it reads the checkpoint's tensors one by one.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p.gate import Refused, shown
from p2p.train.checkpoints import CONFIG, check_checkpoint, newest_local, step_name, step_of
from p2p.train.layout import AVERAGE, METADATA, MODEL, read_layout

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MODEL_PREFIX = MODEL + "policy."
AVERAGE_PREFIX = AVERAGE + "policy."


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


def find_checkpoint(source: Path) -> tuple[Path, int]:
    """The checkpoint that a run folder, a folder of checkpoints or a checkpoint folder stands for, and its step.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    if (source / METADATA).is_file():
        try:
            manifest, _ = check_checkpoint(source)
            step = step_of(source, manifest)
        except Refused as error:
            raise ValueError(f"{source} is not a usable checkpoint: {error}") from error
        if manifest is None:
            log.warning("%s has no manifest (an older p2p wrote it): damage would go unnoticed", source)
        return source, step
    for folder in (source / "checkpoints", source):
        newest = newest_local(folder)
        if newest is not None:
            return folder / step_name(newest), newest
    raise ValueError(f"{source}: no complete checkpoint; expected a run folder (runs/NAME) or a step-* folder in it")


def read_run(source: Path, raw: bool) -> tuple[Any, dict[str, Tensor], int]:
    """Config, tensors by the policy's names, and the step, of a run or checkpoint; the average where there is one.

    Raises:
        ValueError: when there is no usable checkpoint, or its weights are not finite or do not fit its configuration.
    """
    import torch

    from p2p.config import load_policy_config
    from p2p.model.policy import Policy
    from p2p.model.weights import check_tensors

    checkpoint, step = find_checkpoint(source)
    config = load_policy_config(checkpoint / CONFIG)
    tensors = read_tensors(checkpoint, raw)
    with torch.device("meta"):
        check_tensors(Policy(config).state_dict(), tensors, str(checkpoint))
    return config, tensors, step


def read_tensors(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """Full tensors of the policy, whatever number of processes wrote them.

    Raises:
        ValueError: when there are none, they cannot be read, or are not finite.
    """
    import torch

    from p2p.model.weights import names_of_not_finite
    from p2p.train.reading import NotFinite, load_into

    layout = read_layout(checkpoint)
    wanted: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=getattr(torch, entry.dtype))
        for name, entry in layout.items()
        if entry.dtype and name.startswith((MODEL_PREFIX, AVERAGE_PREFIX))
    }
    if not wanted:
        raise ValueError(f"{checkpoint} holds no policy")
    load_into(wanted, checkpoint, layout, alone=True)
    tensors = {name[len(MODEL_PREFIX) :]: t for name, t in wanted.items() if name.startswith(MODEL_PREFIX)}
    if not raw:
        tensors |= {name[len(AVERAGE_PREFIX) :]: t for name, t in wanted.items() if name.startswith(AVERAGE_PREFIX)}
    bad = names_of_not_finite(tensors)
    if bad:
        raise NotFinite(f"{checkpoint}: {len(bad)} tensors are not finite, such as {shown(bad[0])}; not exported")
    return tensors
