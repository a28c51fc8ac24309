"""The numbers a run computes in: the recipe's wish, and what the device can do.

On a GPU Composer's amp_bf16 does it. Composer refuses it on a CPU, where bfloat16 pays only with matrix units for it
(Intel's AMX): there the policy's forward runs in torch's autocast, and without such units in float32, which is several
times faster than bfloat16 in software. Weights, gradients and the optimizer are float32 in every case.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

CPU_FLAGS = Path("/proc/cpuinfo")
_BF16_MATRIX_UNITS = "amx_bf16"


@dataclass(frozen=True)
class Precision:
    """`composer` is the Trainer's precision; `autocast_cpu`: the forward runs in bfloat16; `said` names it in words."""

    composer: str
    autocast_cpu: bool
    said: str

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the policy's forward; what Composer does on a GPU is left alone."""
        return torch.autocast("cpu", torch.bfloat16) if self.autocast_cpu else nullcontext()


FLOAT32 = Precision("fp32", False, "float32")


def choose_precision(wanted: str, has_gpu: bool, has_bf16_units: bool) -> Precision:
    """What a recipe's `precision` (amp_bf16 or fp32) becomes on this machine."""
    if wanted == "fp32":
        return FLOAT32
    if has_gpu:
        return Precision("amp_bf16", False, "bfloat16 (autocast)")
    if has_bf16_units:
        return Precision("fp32", True, f"bfloat16 (autocast; this CPU has matrix units for it, {_BF16_MATRIX_UNITS})")
    return Precision("fp32", False, f"float32 (this CPU has no matrix units for bfloat16, {_BF16_MATRIX_UNITS})")


def precision_here(wanted: str) -> Precision:
    """`choose_precision` for the machine that this process runs on."""
    return choose_precision(wanted, torch.cuda.is_available(), cpu_has_bf16_units())


def cpu_has_bf16_units() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware, as Linux tells it."""
    try:
        return _BF16_MATRIX_UNITS in CPU_FLAGS.read_text().split()
    except OSError:
        return False
