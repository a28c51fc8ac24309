"""The state of one session on its device: a frame in, the ids of an action out.

The answer waits only for the frame's own tokens and the decoder; the action tokens enter the cache after
it, in `finish_step`, or with the next frame. `StepEngine` computes step by step, `CapturedEngine`
(p2p/model/captured.py) replays one CUDA graph; `Session` (p2p/model/session.py) is what a caller wants.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p.config import SamplingConfig
from p2p.model.cache import Stepper
from p2p.model.decode import DecoderRunner
from p2p.model.network import Network


@dataclass(frozen=True)
class StepTiming:
    """Seconds that the last step spent in the transformer and in the decoder, and its decoder passes."""

    model_s: float
    sampling_s: float
    num_passes: int


class Engine(ABC):
    """Plays one session with a policy, which it puts into evaluation mode; `sampling` says how ids are drawn."""

    def __init__(self, policy: Network, sampling: SamplingConfig | None = None):
        self.policy = policy.eval()
        self.config, self.device = policy.config, policy.out_token.device
        self.sampling = sampling or policy.config.sampling
        self.last_timing = StepTiming(0.0, 0.0, 0)
        self._silence = torch.zeros(1, self.config.num_text_tokens, self.config.text_dim, device=self.device)

    def step(
        self,
        frame: NDArray[np.uint8] | Tensor,
        text: NDArray[np.float32] | Tensor | None,
        uniforms: NDArray[np.float32] | NDArray[np.float64] | Tensor,
    ) -> NDArray[np.int64]:
        """Answer one frame.

        Args:
            frame: uint8 [3, Y, X] or [Y, X, 3].
            text: float [n_text, text_dim], the embedded instruction; None: no instruction.
            uniforms: float [A] in (0, 1), one number for each id that is drawn.

        Returns:
            int64 [A], the ids of the action.
        """
        numbers = torch.as_tensor(uniforms, dtype=torch.float32)[None]
        ids: NDArray[np.int64] = self._answer(self._frame(frame), self._text(text), numbers)[0].numpy()
        return ids

    @abstractmethod
    def _answer(self, frame: Tensor, text: Tensor, uniforms: Tensor) -> Tensor:
        """One step: ids [1, A] on the CPU.

        frame uint8 [1, 3, Y, X] and uniforms [1, A] as they came; text [1, n_text, text_dim] on the device.
        """

    @abstractmethod
    def finish_step(self) -> None:
        """Put the last action into the cache now, while nobody waits."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the session."""

    def _frame(self, frame: NDArray[np.uint8] | Tensor) -> Tensor:
        pixels = torch.as_tensor(frame)
        expected = (3, self.config.frame_height, self.config.frame_width)
        if pixels.shape[-1] == 3 and pixels.shape[0] != 3:
            pixels = pixels.permute(2, 0, 1)
        if tuple(pixels.shape) != expected or pixels.dtype != torch.uint8:
            raise ValueError(
                f"frame is {pixels.dtype} {tuple(pixels.shape)}; this policy wants uint8 {expected} "
                f"or with the colours last. Resize it with p2p.data.resize"
            )
        return pixels[None]

    def _text(self, text: NDArray[np.float32] | Tensor | None) -> Tensor:
        if text is None:
            return self._silence
        given = torch.as_tensor(text, device=self.device).float()[None]
        if given.shape != self._silence.shape:
            raise ValueError(f"text has shape {list(given.shape[1:])}, expected {list(self._silence.shape[1:])}")
        return given


class StepEngine(Engine):
    """Computes each step anew, and needs fewer decoder passes where the last action is a good guess of the next.

    Args:
        guess_previous: check the previous action as a guess in one pass instead of drawing id by id.
            The result is the same.
    """

    def __init__(self, policy: Network, sampling: SamplingConfig | None = None, guess_previous: bool = True):
        super().__init__(policy, sampling)
        self.guess_previous = guess_previous
        self.last_y_out: Tensor | None = None
        self._stepper, self._decoder = Stepper(policy), DecoderRunner(policy)
        self._nothing = torch.from_numpy(self.config.action_space.nothing)[None].to(self.device)
        self._previous = self._nothing

    def _answer(self, frame: Tensor, text: Tensor, uniforms: Tensor) -> Tensor:
        started = time.perf_counter()
        y_out = self._stepper.observe(frame.to(self.device), text)
        observed = time.perf_counter()
        guess = self._previous if self.guess_previous else None
        decoded = self._decoder.decode(y_out, uniforms.to(self.device), self.sampling, guess)
        self._stepper.act(decoded.ids)
        self._previous, self.last_y_out = decoded.ids, y_out
        ids = decoded.ids.cpu()
        self.last_timing = StepTiming(observed - started, time.perf_counter() - observed, decoded.num_passes)
        return ids

    def finish_step(self) -> None:
        self._stepper.remember()

    def reset(self) -> None:
        self._stepper.reset()
        self._previous = self._nothing
