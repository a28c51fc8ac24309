"""Checkpoints of a tiny policy without a trainer: laid out as a run writes them, then bent as a test needs them."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from p2p.checkpoints.layout import METADATA, MODEL
from p2p.checkpoints.steps import step_name
from p2p.manifest import describe
from p2p.model.policy import Policy
from p2p.recipe import Recipe
from p2p.train.facts import make_facts
from p2p.train.publishing import WRITING, publish
from tests.tiny import tiny_config

DATA_FILE = "__0_0.distcp"
CONFIG = tiny_config(num_layers=1, num_timesteps=4, attention_history=2)


class Payload:
    """Unpickled, it creates a file; that it did not is what the tests look at."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def write_checkpoint(
    folder: Path,
    step: int,
    bend: Callable[[Path], object] | None = None,
    spoil: Callable[[dict[str, Any]], object] | None = None,
    keep: int | None = None,
) -> Path:
    """Checkpoint `step` of a folder of checkpoints. `spoil` changes the tensors before, `bend` the files after they
    were written; a manifest that fits the outcome comes last, as a stranger would write it."""
    torch.manual_seed(step)
    tensors = {MODEL + "policy." + name: tensor for name, tensor in Policy(CONFIG).state_dict().items()}
    if spoil is not None:
        spoil(tensors)
    scratch = folder / WRITING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, checkpoint_id=str(scratch), no_dist=True)
    if bend is not None:
        bend(scratch)
    facts = make_facts(Recipe(name="made", policy=CONFIG), "0" * 64, step, 1)
    publish(folder, CONFIG, facts, {DATA_FILE: describe(scratch / DATA_FILE)}, keep)
    return folder / step_name(step)


def edit_metadata(folder: Path, change: Callable[[Metadata], None]) -> None:
    """Rewrite `.metadata` as torch does, after a change."""
    metadata = pickle.loads((folder / METADATA).read_bytes())
    change(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


def replace_entry(folder: Path, name: str, value: Any) -> None:
    """Store another value under the name of an entry: appended to the data file, and pointed at."""
    encoded = io.BytesIO()
    torch.save(value, encoded)
    start = (folder / DATA_FILE).stat().st_size
    with open(folder / DATA_FILE, "ab") as file:
        file.write(encoded.getvalue())

    def point(metadata: Metadata) -> None:
        (place,) = (place for index, place in metadata.storage_data.items() if index.fqn == name)
        place.offset, place.length = start, len(encoded.getvalue())

    edit_metadata(folder, point)
