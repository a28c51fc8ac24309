"""A CUDA device that computes nothing, so that torch traces and compiles for an H100 on a machine without one.

Two small libraries answer what torch and Triton ask of the CUDA runtime and driver (built here by the C compiler, which
Inductor needs anyway); with them in place the program starts itself anew. Tensors have to be fake ones.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_MARK = "P2P_NO_GPU"
HERE = Path(__file__).parent


def restart_with_device(caches: Path) -> None:
    """Replace this process by itself with the libraries loaded; returns at once in the new one.

    Compiled kernels are kept under `caches`.
    """
    if os.environ.get(_MARK):
        return
    folder = Path(tempfile.mkdtemp(prefix="p2p-no-gpu-"))
    triton = importlib.util.find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        raise SystemExit("count_gpu: this torch came without triton; install one with CUDA (it needs no card for this)")
    include = Path(triton.submodule_search_locations[0]) / "backends" / "nvidia" / "include"
    _build(HERE / "cudart.c", folder / "cudart.so", f"-I{include}")
    _build(HERE / "cuda.c", folder / "libcuda.so.1")
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    environment = {
        **os.environ,
        _MARK: str(folder),
        "LD_PRELOAD": str(folder / "cudart.so"),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def num_copies() -> int:
    """Copies to the device so far that torch made without asking its dispatcher."""
    return ctypes.c_int.in_dll(ctypes.CDLL(None), "no_gpu_copies").value


def _build(source: Path, target: Path, *options: str) -> None:
    command = [os.environ.get("CC", "gcc"), "-w", "-shared", "-fPIC", "-O1", *options, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
