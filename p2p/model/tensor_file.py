"""Safetensors files: written one tensor after another and hashed meanwhile; read after their header was checked.

The library writes from a second copy of all weights, and reads whatever a header of up to 100 MB describes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from p2p import gate
from p2p.manifest import FileRecord, HashedFile, new_hashed_file

MAX_HEADER_BYTES = 4 << 20  # the header of the largest policy that a configuration may describe has a tenth of it
_MAX_NAME_CHARACTERS = 200
_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> FileRecord:
    """Write the tensors without holding more than one converted tensor in memory; returns what a manifest says of it.

    Raises:
        ValueError: for a type that the file cannot hold.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise ValueError(f"{name} has type {tensor.dtype}, which {path} cannot hold")
        size = tensor.numel() * tensor.element_size()
        offsets = [offset, offset + size]
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with new_hashed_file(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors.values():
            _write_tensor(tensor, file)
    return file.record()


def _write_tensor(tensor: Tensor, file: HashedFile) -> None:
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)


def read_safetensors(file: BinaryIO, where: str, device: str) -> dict[str, Tensor]:
    """The tensors of an open file; on the CPU they are mapped from it.

    Raises:
        ValueError: when the header is too long, names a tensor twice, or does not describe the file's own bytes.
    """
    from safetensors import SafetensorError, safe_open

    _check_header(file, where)
    try:
        # By its descriptor: the path may lead to another file by now.
        with safe_open(f"/proc/self/fd/{file.fileno()}", "pt", device=device) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OverflowError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise gate.Refused(
            f"{where}: not a readable safetensors file: {gate.shown(str(error), quote=False)}"
        ) from error


def _check_header(file: BinaryIO, where: str) -> None:
    """What the library lets pass: headers without end, names that stand twice, names that are none."""
    file.seek(0)
    num_left = os.fstat(file.fileno()).st_size - 8
    length = int.from_bytes(file.read(8), "little")
    if length > min(num_left, MAX_HEADER_BYTES):
        raise gate.Refused(
            f"{where}: not a readable safetensors file: its header has {length:,} bytes, "
            f"at most {max(0, min(num_left, MAX_HEADER_BYTES)):,} are expected"
        )
    header = gate.mapping(gate.parse_json(file.read(length), f"{where}: its header"), f"{where}: its header")
    for name in header:
        gate.text(name, f"{where}: the name of a tensor", _MAX_NAME_CHARACTERS)
