"""Policy folders: `model.safetensors`, `config.yaml` and a manifest of both, verified before anything is loaded.

A folder appears whole. In one that exists the three files are replaced, the manifest first, so that a reader meets a
set that belongs together or an error that says it does not.
"""

from __future__ import annotations

import difflib
import io
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from p2p import gate
from p2p.config import PolicyConfig, from_dict, save_policy_config, yaml_mapping
from p2p.files import new_folder, sync, temporary_path, write_file
from p2p.manifest import MANIFEST, Manifest, compare, describe, describe_open, read_manifest
from p2p.model.policy import Policy
from p2p.model.tensor_file import read_safetensors, write_safetensors
from p2p.plain_yaml import MAX_BYTES as MAX_YAML_BYTES

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"

KIND = "policy"
_MAX_PROBLEMS = 12  # that an error lists
_MAX_COMPARED = 1000  # names, in search of the nearest

log = logging.getLogger(__name__)


def save_policy(policy: Policy, folder: str | Path) -> Path:
    """Write a policy folder; whoever sees the folder sees it whole."""
    return write_policy_folder(policy.config, policy.state_dict(), folder)


def write_policy_folder(config: PolicyConfig, tensors: Mapping[str, Tensor], folder: str | Path) -> Path:
    """As `save_policy`, from named tensors (the names of `Policy.state_dict()`), kept in their types.

    Raises:
        OSError: naming the folder, when it cannot be written; what was there before is there still.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; a policy folder was to be written there. Choose another name")
    try:
        if folder.exists():
            _replace_files(config, tensors, folder)
        else:
            with new_folder(folder) as scratch:
                _write_files(config, tensors, scratch)
    except OSError as error:  # it names a temporary file, or none
        raise OSError(error.errno, f"the policy could not be written: {error.strerror}", str(folder)) from error
    return folder


def _replace_files(config: PolicyConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    scratch = temporary_path(folder / KIND)  # within the folder: what is beside it may be another file system
    try:
        scratch.mkdir()
        _write_files(config, tensors, scratch)
        for name in (MANIFEST, WEIGHTS_NAME, CONFIG_NAME):  # the folder stays, with what else is in it
            os.replace(scratch / name, folder / name)
        sync(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_files(config: PolicyConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    save_policy_config(config, folder / CONFIG_NAME)
    sync(folder / CONFIG_NAME)
    records = {
        CONFIG_NAME: describe(folder / CONFIG_NAME),
        WEIGHTS_NAME: write_safetensors(tensors, folder / WEIGHTS_NAME),
    }
    write_file(folder / MANIFEST, Manifest(KIND, records).encode())


def read_policy_folder(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Policy:
    """Load a policy folder, in evaluation mode.

    Args:
        folder: holds model.safetensors and config.yaml, and their manifest.json unless they are older or were copied
            without it.
        device: where the weights go. On the CPU they stay mapped from the file where types agree.
        dtype: of the floating-point weights; default float32.

    Raises:
        ValueError: a file is missing or not the one that the manifest names, or the weights do not fit the
            configuration or are not finite.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} is no policy folder: {name} is missing. Make one with `p2p export` or `p2p import`"
            )
    manifest = _manifest(folder)
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    content = gate.read_regular(config_path, MAX_YAML_BYTES)
    with gate.open_regular(weights_path) as file:
        if manifest is not None:
            compare(config_path, describe_open(io.BytesIO(content)), manifest)
            compare(weights_path, describe_open(file), manifest)
        config = from_dict(PolicyConfig, yaml_mapping(content, str(config_path)), str(config_path))
        tensors = read_safetensors(file, str(weights_path), str(device))
    return build_policy(config, tensors, where=str(weights_path), dtype=dtype).to(device)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder, KIND)
    except FileNotFoundError:
        log.info("%s has no %s (an older p2p wrote it, or it was copied without): not verified", folder, MANIFEST)
        return None


def build_policy(
    config: PolicyConfig, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None
) -> Policy:
    """A policy in evaluation mode around the given tensors (not copied where types agree).

    Raises:
        ValueError: when they do not fit the configuration, or are not finite.
    """
    with torch.device("meta"):
        policy = Policy(config)
    check_tensors(policy.state_dict(), tensors, where)
    dtype = dtype or torch.float32
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    require_finite(cast, where)
    policy.load_state_dict(cast, assign=True)
    return policy.eval()


def names_of_not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that hold NaN or infinity.

    One pass over all numbers: a sum is finite only where every term is. Where it is not, which can also be an overflow,
    the terms are looked at.
    """
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floating:
        return []
    sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in floating.values()]).isfinite().tolist()
    suspects = [name for name, finite in zip(floating, sums, strict=True) if not finite]
    return [name for name in suspects if not floating[name].isfinite().all()]


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError naming the first tensor with a NaN or an infinity, and how many it has."""
    bad = names_of_not_finite(tensors)
    if bad:
        first = tensors[bad[0]]
        count = int(first.numel() - first.isfinite().sum())
        raise ValueError(
            f"{where}: {count:,} of {first.numel():,} numbers of {bad[0]} are not finite "
            f"(NaN or infinite), and so in {len(bad) - 1} more of {len(tensors)} tensors; the policy cannot be used"
        )


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Compare names, shapes and types: where the policy has floating-point numbers, any such type will do.

    Raises:
        ValueError: lists missing and unexpected names, each with the nearest of the other side, and
            shapes and types that differ.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    problems = describe_names("missing", missing, unexpected) + describe_names("unexpected", unexpected, missing)
    num_problems = len(missing) + len(unexpected)
    for name, tensor in expected.items():
        found = given.get(name, tensor)
        if found.shape != tensor.shape:
            problem = f"has shape {list(found.shape)}, the configuration makes it {list(tensor.shape)}"
        elif tensor.is_floating_point() != found.is_floating_point() or not (
            tensor.is_floating_point() or tensor.dtype == found.dtype
        ):
            problem = f"has type {found.dtype}, the configuration makes it {tensor.dtype}"
        else:
            continue
        num_problems += 1
        problems.append(f"{name} {problem}")
    if problems:
        lines = problems[:_MAX_PROBLEMS]
        if num_problems > len(lines):
            lines.append(f"... and {num_problems - len(lines)} more")
        raise ValueError(f"{where}: the weights do not fit the configuration:\n  " + "\n  ".join(lines))


def describe_names(what: str, names: Sequence[str], others: Sequence[str]) -> list[str]:
    """One line a name, with the nearest name of the other side; as many as an error lists."""
    lines = []
    for name in names[:_MAX_PROBLEMS]:
        close = difflib.get_close_matches(name, others[:_MAX_COMPARED], n=1, cutoff=0.6)
        nearest = f" (nearest: {gate.shown(close[0], quote=False)})" if close else ""
        lines.append(f"{what}: {gate.shown(name, quote=False)}{nearest}")
    return lines
