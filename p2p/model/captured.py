"""The whole step as one CUDA graph: nothing is launched from Python but the graph, nothing waited for but the ids.

The action of the previous frame enters the cache in the same pass as the new frame: reading the weights
once costs the same for twelve tokens as for four.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
from torch import Tensor

from p2p.config import SamplingConfig
from p2p.model.cache import NEVER, Cache, run_tokens
from p2p.model.decode import DecoderRunner
from p2p.model.engine import Engine, StepTiming
from p2p.model.network import Network

WARMUP_STEPS = 3


class CapturedEngine(Engine):
    """A policy's step on a GPU, captured once; inputs and outputs live in fixed places.

    On a CPU the same computation runs without a graph, so that it can be tested there.
    """

    def __init__(self, policy: Network, sampling: SamplingConfig | None = None):
        super().__init__(policy, sampling)
        config, device = self.config, self.device
        pinned = device.type == "cuda"
        self._cache, self._decoder = Cache(policy), DecoderRunner(policy)
        layout = policy.layout
        offsets = [*range(layout.first_action, layout.tokens_per_timestep), *range(layout.first_action)]
        self._offset = torch.tensor(offsets, device=device)
        self._is_new = torch.tensor([o < layout.first_action for o in offsets], device=device)
        shape = (1, 3, config.frame_height, config.frame_width)
        self._frame_device = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._frame_host = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        self._text_device = torch.zeros(1, config.num_text_tokens, config.text_dim, device=device)
        self._numbers = torch.zeros(1, config.num_action_slots + 1, dtype=torch.float64, device=device)
        self._numbers_host = torch.zeros(self._numbers.shape, dtype=torch.float64, pin_memory=pinned)
        self._previous = torch.zeros(1, config.num_action_slots, dtype=torch.int64, device=device)
        self._ids_host = torch.zeros(self._previous.shape, dtype=torch.int64, pin_memory=pinned)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_steps = 0
        if device.type == "cuda":
            with torch.cuda.device(device):  # whichever of several it is: stream and graph belong to the current one
                self._graph = self._capture()

    def reset(self) -> None:
        """Forget the session; the graph stays."""
        self._cache.reset()
        self._num_steps = 0

    def finish_step(self) -> None:
        """Nothing: the next step takes the action along."""

    @torch.inference_mode()
    def _answer(self, frame: Tensor, text: Tensor, uniforms: Tensor) -> Tensor:
        with torch.cuda.device(self.device) if self._graph is not None else nullcontext():
            return self._replay(frame, text, uniforms)

    def _replay(self, frame: Tensor, text: Tensor, uniforms: Tensor) -> Tensor:
        started = time.perf_counter()
        self._frame_host.copy_(frame)
        self._frame_device.copy_(self._frame_host, non_blocking=True)
        self._numbers_host[0, 0] = self._num_steps
        self._numbers_host[0, 1:] = uniforms[0]
        self._numbers.copy_(self._numbers_host, non_blocking=True)
        self._text_device.copy_(text, non_blocking=True)
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()
        self._ids_host.copy_(self._previous, non_blocking=True)
        if self._graph is not None:
            torch.cuda.current_stream(self.device).synchronize()
        self._num_steps += 1
        self.last_timing = StepTiming(time.perf_counter() - started, 0.0, self.config.num_action_slots)
        return self._ids_host.clone()

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            self._compute()
        self.reset()
        return graph

    def _compute(self) -> None:
        policy = self.policy
        now = self._numbers[0, 0].to(torch.int64)
        before = torch.where(now > 0, now - 1, NEVER)  # the first frame follows no action
        step = torch.where(self._is_new, now, before)
        observed = policy.observation_tokens(self._frame_device, self._text_device)
        x = torch.cat([policy.action_tokens(self._previous).to(observed.dtype), observed], dim=1)
        y_out = run_tokens(policy, self._cache, x, step, self._offset, has_out=True)[:, 0]
        uniforms = self._numbers[:, 1:].float()
        self._previous.copy_(self._decoder.decode(y_out, uniforms, self.sampling).ids)
