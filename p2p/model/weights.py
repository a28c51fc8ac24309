"""Policy folders: `model.safetensors` + `config.yaml`, written atomically, read without copies.

This file and those of the original's layout (`original*.py`) are the only ones of the model that touch the disk.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from p2p.config import PolicyConfig, load_policy_config, save_policy_config
from p2p.model.policy import Policy

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"

_SAFETENSORS_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_policy(policy: Policy, folder: str | Path) -> Path:
    """Write a policy folder; whoever sees the folder sees it whole."""
    return write_policy_folder(policy.config, policy.state_dict(), folder)


def write_policy_folder(config: PolicyConfig, tensors: Mapping[str, Tensor], folder: str | Path) -> Path:
    """As `save_policy`, from named tensors (the names of `Policy.state_dict()`), kept in their types."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a policy folder was to be written there. Choose another name")
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        os.chmod(scratch, 0o755)
        write_safetensors(tensors, scratch / WEIGHTS_NAME)
        save_policy_config(config, scratch / CONFIG_NAME)
        if folder.exists():  # the folder stays, its two files are replaced
            for name in (WEIGHTS_NAME, CONFIG_NAME):
                os.replace(scratch / name, folder / name)
        else:
            os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def load_policy(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Policy:
    """Load a policy folder, in evaluation mode.

    Args:
        folder: holds model.safetensors and config.yaml.
        device: where the weights go. On the CPU they stay mapped from the file where types agree.
        dtype: of the floating-point weights; default float32.

    Raises:
        ValueError: a file is missing, or the weights do not fit the configuration.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is no policy folder: {name} is missing. Make one with `p2p export` or `p2p import`"
            )
    config = load_policy_config(folder / CONFIG_NAME)
    try:
        with safe_open(str(folder / WEIGHTS_NAME), "pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_NAME}: not a readable safetensors file: {error}") from error
    return build_policy(config, tensors, where=str(folder / WEIGHTS_NAME), dtype=dtype).to(device)


def build_policy(
    config: PolicyConfig, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None
) -> Policy:
    """A policy in evaluation mode around the given tensors (not copied where types agree)."""
    with torch.device("meta"):
        policy = Policy(config)
    check_tensors(policy.state_dict(), tensors, where)
    dtype = dtype or torch.float32
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    policy.load_state_dict(cast, assign=True)
    return policy.eval()


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes.

    Raises:
        ValueError: lists missing and unexpected names, each with the nearest of the other side, and
            shapes that differ.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    problems = describe_names("missing", missing, unexpected) + describe_names("unexpected", unexpected, missing)
    for name, tensor in expected.items():
        if name in given and given[name].shape != tensor.shape:
            problems.append(
                f"{name} has shape {list(given[name].shape)}, the configuration makes it {list(tensor.shape)}"
            )
    if problems:
        shown = problems[:12] + ([f"... and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise ValueError(f"{where}: the weights do not fit the configuration:\n  " + "\n  ".join(shown))


def describe_names(what: str, names: Iterable[str], others: list[str]) -> list[str]:
    """One line a name, with the nearest name of the other side."""
    lines = []
    for name in names:
        close = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        lines.append(f"{what}: {name}" + (f" (nearest: {close[0]})" if close else ""))
    return lines


# ------------------------------------------------------------------ safetensors, one tensor at a time


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the safetensors format without holding more than one converted tensor in memory.

    The library's own writer first makes bytes of all tensors, that is a second copy of the weights.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise ValueError(f"{name} has type {tensor.dtype}, which {path} cannot hold")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors.values():
            _write_tensor(tensor, file)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(tensor: Tensor, file: BinaryIO) -> None:
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
