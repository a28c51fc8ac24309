"""What of Composer's state a checkpoint holds, written and read: weights, optimizer, averages, position in the data.

Composer's own loading also unpickles random generators and evaluates the algorithms that a checkpoint names; neither is
needed here (seeds and settings are functions of the update's number and of the recipe), so neither is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from p2p import gate
from p2p.checkpoints.layout import MODEL, Layout
from p2p.checkpoints.reading import NotFinite, cause_of, load_into
from p2p.manifest import FileRecord, HashedFile
from p2p.model.weights import names_of_not_finite

_PARTS = ("model", "optimizers", "callbacks", "timestamp", "dataset_state")


def save_state(state: State, folder: Path) -> tuple[str, FileRecord]:
    """Write the shards of the state, each process its own (all call it together); returns its file's name and hash.

    The state may change from here on. The files are not synced yet.

    Raises:
        NotFinite: on every process, naming tensors that hold NaN or infinity; nothing is written then.
        OSError: on every process, when one cannot write.
    """
    parts = _parts(state)
    _check_finite(parts, f"the state of update {int(state.timestamp.batch.value)}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    writer = _Writer(folder)
    try:
        with warnings.catch_warnings(), _no_crc():
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            dcp.save({"state": parts}, storage_writer=writer, planner=planner)
    except dcp.CheckpointException as error:
        raise cause_of(error, folder) from error
    own = f"__{dist.get_global_rank()}_0.distcp"
    return own, writer.fs.records[own]


@contextlib.contextmanager
def _no_crc() -> Iterator[None]:
    """torch.save leaves the CRC-32 of each tensor out, which costs as much as the writing: there is the SHA-256."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class _Writer(dcp.FileSystemWriter):
    """Hashes what it writes in the same pass."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)
        self.fs: _HashingFileSystem = _HashingFileSystem()

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        """As torch's; what the file system said is reported where torch says that it is at a wrong position."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise cause from None


class _HashingFileSystem(FileSystem):
    """`records` describe the files that were written, by name."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with open(path, "wb") as file:
            stream = HashedFile(file)
            yield stream
            self.records[Path(path).name] = stream.record()


def load_state(state: State, logger: Logger, folder: Path, layout: Layout, same_course: bool) -> None:
    """Bring a run to where a checkpoint was written; all processes call it together.

    The settings of the optimizer stay the recipe's. Without the `same_course` of data, the next epoch begins.

    Raises:
        ValueError: when the checkpoint holds other tensors than this run has, cannot be read, or is not finite.
    """
    parts = _parts(state)
    _check_names(parts["model"], layout, folder)
    settings = {name: each.pop("param_groups") for name, each in parts["optimizers"].items()}
    numbers = {name: value for name, value in parts["timestamp"]["Timestamp"].items() if type(value) is int}
    parts["timestamp"]["Timestamp"] = numbers  # what remains are durations, which nothing needs
    own_order = dict(parts["dataset_state"]["train"])
    load_into({"state": parts}, folder, layout)
    _check_finite(parts, str(folder))
    if not same_course:
        epoch = parts["dataset_state"]["train"]["epoch"] + 1
        parts["dataset_state"]["train"] = {**own_order, "epoch": epoch, "sample_in_epoch": 0}
        numbers |= {"epoch": numbers["epoch"] + 1, "batch_in_epoch": 0, "sample_in_epoch": 0, "token_in_epoch": 0}
    for name, each in parts["optimizers"].items():
        each["param_groups"] = settings[name]
    state.load_state_dict(parts, logger, strict=True)


def _parts(state: State) -> dict[str, Any]:
    everything = state.state_dict()
    return {name: everything[name] for name in _PARTS}


def _check_names(model: Mapping[str, Any], layout: Layout, folder: Path) -> None:
    held = {name.removeprefix(MODEL) for name in layout if name.startswith(MODEL)}
    different = sorted(held ^ set(model))
    if different:
        raise ValueError(
            f"{folder} holds the weights of another architecture ({len(different)} differ, such as "
            f"{gate.shown(different[0])}): give the run another run_folder, or start from these weights with init_from"
        )


# ------------------------------------------------------------------ finite


def _check_finite(parts: Mapping[str, Any], where: str) -> None:
    """On every process alike.

    Raises:
        NotFinite: naming tensors.
    """
    bad = names_of_not_finite({name: _own_part(tensor) for name, tensor in _tensors(parts, "")})
    everywhere = sorted({name for names in dist.all_gather_object(bad) for name in names})
    if everywhere:
        raise NotFinite(f"{where} is not finite (NaN or infinite): {_few(everywhere)}")


def _own_part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _few(names: list[str]) -> str:
    shown = ", ".join(gate.shown(name, quote=False) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, f"{name}.{key}" if name else str(key))
