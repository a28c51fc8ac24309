"""Counts what a computation would cost on a GPU: bytes moved, kernels launched, waits for the device, compilations.

Works on fake CUDA tensors (no_gpu/): operations outside of compiled graphs are counted as torch dispatches them, one
kernel each, their inputs and outputs read and written once; compiled graphs as Inductor counts its own code, after
Triton compiled it to sm_90. Private names of torch 2.7 throughout, which is why this is a benchmark and no product.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch._inductor.config as inductor
from no_gpu import num_copies
from torch import Tensor
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from torch._higher_order_ops.flex_attention import flex_attention, flex_attention_backward
from torch._inductor import metrics
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Operations that touch no memory of the device.
FREE = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.lift_fresh.default,
}
# Operations whose result's shape or value the CPU has to know: it waits until everything before is computed.
WAITS = {aten.nonzero.default, aten._local_scalar_dense.default, aten.masked_select.default, aten.equal.default}
FILLS = {aten.zero_.default, aten.fill_.Scalar, aten.zeros.default, aten.ones.default, aten.full.default}
FILLS |= {aten.new_full.default, aten.new_zeros.default, aten.zeros_like.default, aten.ones_like.default}
# Statistics first, then what is done with them: the inputs pass twice.
_TWICE = (
    aten.cudnn_batch_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_functional.default,
    aten._batch_norm_with_update.default,
    aten.cudnn_batch_norm_backward.default,
    aten.native_batch_norm_backward.default,
    aten.batch_norm_backward.default,
)
READS = dict.fromkeys(_TWICE, 2)
_LAUNCH = re.compile(
    r"^\s+(?:buf\d+ = )?(?:[\w.]+\.run\(|extern_kernels\.\w+\(|(?:torch\.ops|aten)\.\w+)", re.MULTILINE
)


@dataclass
class Count:
    """Bytes moved, kernels launched, host waits by what caused them, blocking copies from the host."""

    moved: float = 0.0
    kernels: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[str] = field(default_factory=Counter)  # bytes


@dataclass(frozen=True)
class Compiled:
    """One graph that was compiled: where, forward or backward, its cost per call."""

    name: str
    moved: float
    kernels: int


class GpuCounter(TorchDispatchMode):
    """Counts into `self.count` while `measured` is open."""

    def __init__(self, inductor_compiles: bool = True, triton_compiles: bool = True) -> None:
        super().__init__()
        if not triton_compiles:
            PyCodeCache.load_by_key_path = _not_loaded
        self._inductor_compiles = inductor_compiles
        self.count = Count()
        self.compiled: list[Compiled] = []
        self._codes: list[str] = []
        self._paused = 0
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._set_up_inductor()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Functions are compiled although this mode is on."""
        return True

    @contextlib.contextmanager
    def measured(self) -> Iterator[Count]:
        """Fake tensors inside; the count of what was done."""
        before, self.count = self.count, Count()
        with self.fake, self, torch.autograd.set_multithreading_enabled(False):
            hidden = num_copies()
            yield self.count
            if num_copies() > hidden:
                self.count.copies["below the dispatcher"] += num_copies() - hidden
        self.count = before

    @property
    def graph_breaks(self) -> dict[str, int]:
        """Reasons and how often a compiled function had to go back to Python."""
        return dict(counters["graph_break"])

    # ------------------------------------------------------------------ operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or TracingContext.try_get() is not None:
            return func(*args, **kwargs)
        if func in WAITS and args[0].device.type == "cuda":
            return self._wait(func, args)
        if func is aten.index.Tensor and args[0].device.type == "cuda" and any(_is_mask(index) for index in args[1]):
            return self._masked(args)
        result = func(*args, **kwargs)
        self._look(func, args, kwargs, result)
        return result

    def _wait(self, func: Any, args: Any) -> Any:
        self.count.waits[str(func)] += 1
        x = args[0]
        if func is aten.nonzero.default:
            return x.new_zeros((x.numel(), x.dim()), dtype=torch.int64)
        if func is aten.masked_select.default:
            return x.new_zeros(x.numel())
        return False if x.dtype == torch.bool or func is aten.equal.default else 0

    def _masked(self, args: Any) -> Any:
        """As if the mask let everything pass."""
        self.count.waits["boolean index"] += 1
        x, (mask, *_) = args
        return x.reshape(mask.numel(), *x.shape[mask.dim() :]).clone()

    def _look(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._look_at_copies(func, inputs, outputs, kwargs)
        written = [x for x in _written(func, args, kwargs) if all(x is not output for output in outputs)]
        if func in FREE or func.is_view or not any(x.device.type == "cuda" for x in [*outputs, *written]):
            return
        read = [] if func in FILLS else inputs[1:] if func is aten.copy_.default else inputs
        self.count.kernels += 1
        moved = READS.get(func, 1) * sum(map(_bytes, {id(x): x for x in read}.values()))
        moved += sum(map(_bytes, [*outputs, *written]))
        self.count.moved += moved
        self.count.by_operation[str(func)] += moved

    def _look_at_copies(self, func: Any, inputs: list[Tensor], outputs: list[Tensor], kwargs: Any) -> None:
        if func is aten.copy_.default and len(inputs) == 2:
            target, source = inputs
        elif func is aten._to_copy.default:
            target, source = outputs[0], inputs[0]
        else:
            return
        if source.device.type == "cuda" and target.device.type == "cpu":
            self.count.waits[f"{func} to the host"] += 1
        elif source.device.type == "cpu" and target.device.type == "cuda" and not kwargs.get("non_blocking"):
            self.count.copies[f"{func} {list(source.shape)}"] += 1

    # ------------------------------------------------------------------ compiled graphs

    @property
    def compiler(self) -> Callable[..., Any]:
        """The backend for torch.compile."""
        return self.backend if self._inductor_compiles else self.without_code

    def backend(self, module: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        """For torch.compile: Inductor compiles, what is run afterwards is the graph itself, on fake tensors."""
        given = [node.meta["example_value"] for node in module.graph.nodes if node.op == "placeholder"]
        modes = {x.fake_mode for x in given if isinstance(x, FakeTensor)}
        mode = next(iter(modes - {self.fake}), self.fake)  # torch.compile's own mode knows what may vary
        given = [_in_mode(x, mode) for x in given]
        TracingContext.get().fake_mode = mode
        with _disable_current_modes():
            return compile_fx(module, given, inner_compile=self._compile)

    def without_code(self, module: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        """As `backend`, but nothing is compiled: how often torch.compile asks for it is seen all the same."""
        self.compiled.append(Compiled("forward", 0.0, 0))

        def run(*arguments: Any) -> Any:
            with _disable_current_modes(), self.fake:
                return module(*arguments)

        return run

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is not counted."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _compile(self, module: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        kept = copy.deepcopy(module)
        metrics.reset()
        self._codes.clear()
        with _disable_current_modes():
            compile_fx_inner(module, inputs, **options)
        launches = sum(len(_LAUNCH.findall(code.partition("def call(")[2])) for code in self._codes)
        side = "backward" if options.get("is_backward") else "forward"
        compiled = Compiled(side, float(metrics.num_bytes_accessed), launches)
        self.compiled.append(compiled)

        def run(arguments: list[Any]) -> Any:
            self.count.moved += compiled.moved
            self.count.kernels += compiled.kernels
            with _disable_current_modes(), self.fake, torch.no_grad():
                return kept(*arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def _set_up_inductor(self) -> None:
        inductor.compile_threads = 1
        inductor.fx_graph_cache = False  # what comes out of it is not counted
        inductor.shape_padding = False  # it decides by timing kernels
        GraphLowering.save_output_code = self._codes.append
        run = UniformValueConstantFolder.run

        def run_on_cpu(folder: UniformValueConstantFolder) -> Any:
            with _OnCpu():
                return run(folder)

        UniformValueConstantFolder.run = run_on_cpu
        torch.compile = functools.partial(torch.compile, backend=self.compiler)


for _operator in (flex_attention, flex_attention_backward):

    @_operator.py_impl(GpuCounter)
    def _(mode: GpuCounter, *args: Any, operator: Any = _operator, **kwargs: Any) -> Any:
        mode.count.kernels += 1
        return operator(*args, **kwargs)


class _OnCpu(TorchDispatchMode):
    """Inductor computes the constants of a graph on its device, which here computes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


def _not_loaded(key: str, path: str, *args: Any, **kwargs: Any) -> SimpleNamespace:
    """In place of a module of generated code: loading one compiles its kernels."""
    return SimpleNamespace(call=lambda arguments: None, __file__=path, key=key)


def _in_mode(x: Any, mode: FakeTensorMode) -> Any:
    if not isinstance(x, FakeTensor) or x.fake_mode is mode:
        return x
    with mode:
        same = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    return same.requires_grad_(x.requires_grad)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _bytes(x: Tensor) -> int:
    """What a tensor takes in the device's memory; an expanded one only what is stored."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) if x.device.type == "cuda" else 0


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation changes in place."""
    named = zip(func._schema.arguments, args, strict=False)
    changed = [x for argument, x in named if argument.alias_info is not None and argument.alias_info.is_write]
    return [x for x in tree_leaves(changed) if isinstance(x, Tensor)]
