"""The policy in a training checkpoint: its configuration and tensors, whatever number of processes wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2p.checkpoints.layout import AVERAGE, METADATA, MODEL, read_layout
from p2p.checkpoints.reading import NotFinite, load_into
from p2p.checkpoints.steps import CONFIG, check_checkpoint, newest_local, step_name, step_of
from p2p.config import PolicyConfig, load_policy_config
from p2p.gate import Refused, shown
from p2p.model.policy import Policy
from p2p.model.weights import check_tensors, names_of_not_finite

MODEL_PREFIX = MODEL + "policy."
AVERAGE_PREFIX = AVERAGE + "policy."


def find_checkpoint(source: Path) -> tuple[Path, int]:
    """The checkpoint that a run folder, a folder of checkpoints or a checkpoint folder stands for, and its step.

    Raises:
        ValueError: when there is none, or it is damaged.
    """
    if (source / METADATA).is_file():
        try:
            manifest, _ = check_checkpoint(source)
            return source, step_of(source, manifest)
        except Refused as error:
            raise ValueError(f"{source} is not a usable checkpoint: {error}") from error
    for folder in (source / "checkpoints", source):
        newest = newest_local(folder)
        if newest is not None:
            return folder / step_name(newest), newest
    raise ValueError(f"{source}: no complete checkpoint; expected a run folder (runs/NAME) or a step-* folder in it")


def read_run(source: Path, raw: bool = False) -> tuple[PolicyConfig, dict[str, Tensor], int]:
    """Config, tensors by the policy's names, and the step, of a run or checkpoint; the average where there is one, but
    not when `raw`.

    Raises:
        ValueError: when there is no usable checkpoint, or its weights are not finite or do not fit its configuration.
    """
    checkpoint, step = find_checkpoint(source)
    config = load_policy_config(checkpoint / CONFIG)
    tensors = read_tensors(checkpoint, raw)
    with torch.device("meta"):
        check_tensors(Policy(config).state_dict(), tensors, str(checkpoint))
    return config, tensors, step


def read_tensors(checkpoint: Path, raw: bool = False) -> dict[str, Tensor]:
    """Full tensors of the policy.

    Raises:
        ValueError: when there are none, they cannot be read, or are not finite.
    """
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
