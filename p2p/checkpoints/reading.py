"""Reads a checkpoint of torch.distributed.checkpoint without trusting it: no pickled code runs, nothing is left unread.

torch's own reader unpickles `.metadata`, and its planner unpickles every value that is no tensor. Here the metadata is
read by `layout`, tensors by torch's reader of weights alone, and of the other values only plain numbers are taken.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from p2p import gate
from p2p.checkpoints.layout import Entry, Layout, Piece

_MAX_NUMBER_BYTES = 1 << 20
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile)


def load_into(state: dict[str, Any], folder: Path, layout: Layout, alone: bool = False) -> None:
    """Fill the tensors and numbers of a nested state from a checkpoint; all processes call it together, or one `alone`.

    Raises:
        ValueError: on every process, when one cannot read what it needs; the state is then half filled.
        OSError: when that is the file system's fault.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=_Reader(folder, layout), planner=_NumbersOnly(), no_dist=alone)
    except dcp.CheckpointException as error:
        raise cause_of(error, folder) from error


def cause_of(error: dcp.CheckpointException, folder: Path) -> OSError | ValueError:
    """What stopped the first process that failed, as an error that says what and where."""
    rank, (cause, _) = min(error.failures.items(), key=lambda each: each[0])
    for interruption in (each for each, _ in error.failures.values() if not isinstance(each, Exception)):
        raise interruption  # Ctrl-C, or another end of the process, in the middle of it
    if isinstance(cause, OSError):
        return OSError(cause.errno, cause.strerror or str(cause), str(cause.filename or folder))
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return ValueError(f"{folder}: process {rank}: {gate.shown(reason, quote=False)}")


class _NumbersOnly(dcp.DefaultLoadPlanner):
    """Takes plain whole numbers from a checkpoint where the default unpickles anything."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        where = gate.shown(read_item.dest_index.fqn)
        if len(value.getbuffer()) > _MAX_NUMBER_BYTES:
            raise gate.Refused(f"{where}: {len(value.getbuffer())} bytes for a number")
        number = gate.whole_number(_load(value, where), where, -1, 1 << 62)
        again = io.BytesIO()
        torch.save(number, again)
        again.seek(0)
        super().load_bytes(read_item, again)


class _Reader(dcp.StorageReader):
    """The pieces of a checkpoint folder, at the places that its layout names."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def read_metadata(self) -> Metadata:
        return metadata_of(self.layout)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        self.places = {
            MetadataIndex(name, piece.offsets if entry.dtype else None): (entry, piece)
            for name, entry in self.layout.items()
            for piece in entry.pieces
        }

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self.places[item.storage_index][1].file, []).append(item)
        for name, items in wanted.items():
            with gate.open_regular(self.folder / name) as file:
                for item in items:
                    self._read(file, *self.places[item.storage_index], item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, file: BinaryIO, entry: Entry, piece: Piece, item: ReadItem, planner: LoadPlanner) -> None:
        file.seek(piece.start)
        content = io.BytesIO(file.read(piece.num_bytes))
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, content)
            return
        where = gate.shown(item.dest_index.fqn)
        _check_stored(content, where)
        tensor = _load(content, where)
        target = planner.resolve_tensor(item).detach()
        dtype = getattr(torch, str(entry.dtype))
        if not isinstance(tensor, Tensor) or tensor.shape != piece.sizes or {tensor.dtype, target.dtype} != {dtype}:
            raise gate.Refused(f"{where}: not the tensor of {list(piece.sizes)} {entry.dtype} that was expected")
        for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            tensor = tensor.narrow(dimension, start, length)
        target.copy_(tensor)
        planner.commit_tensor(item, target)


def _check_stored(content: io.BytesIO, where: str) -> None:
    """A tensor's file is a zip; packed contents could unpack to any size."""
    try:
        with zipfile.ZipFile(content) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise gate.Refused(f"{where}: not a stored tensor") from error
    if any(each.compress_type != zipfile.ZIP_STORED for each in entries):
        raise gate.Refused(f"{where}: a packed tensor, which torch does not write")
    content.seek(0)


def _load(content: io.BytesIO, where: str) -> Any:
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise gate.Refused(f"{where}: neither a tensor nor a number; nothing else is read") from error


def metadata_of(layout: Layout) -> Metadata:
    """torch's own description of a checkpoint, from a checked one."""
    described: dict[str, Any] = {}
    for name, entry in layout.items():
        if entry.dtype is None:
            described[name] = BytesStorageMetadata()
            continue
        chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in entry.pieces]
        properties = TensorProperties(dtype=getattr(torch, entry.dtype))
        described[name] = TensorStorageMetadata(properties, torch.Size(entry.size), chunks)
    return Metadata(described, {name: entry.path for name, entry in layout.items()})


# ------------------------------------------------------------------ finite


class NotFinite(ValueError):  # noqa: N818  a verdict on numbers
    """A loss, a gradient or a weight is NaN or infinite; the message says where."""
