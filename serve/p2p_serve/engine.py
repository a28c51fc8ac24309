"""One player's state: a frame in, an action out.

The answer waits only for the frame's own tokens and the decoder; the action tokens enter the cache after
it, in `finish_step`, or with the next frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from p2p.config import SamplingConfig
from p2p.model import Policy
from p2p.model.cache import Player
from p2p.model.decode import Decoded, DecoderRunner
from p2p_serve.captured import CapturedStep


@dataclass(frozen=True)
class StepTiming:
    """Seconds that the last step spent in the transformer and in the decoder, and its decoder passes."""

    model_s: float
    sampling_s: float
    num_passes: int


class Engine:
    """Plays one session with a policy.

    Args:
        policy: in evaluation mode, on the device that is to be used.
        temperature, top_p, greedy: how ids are drawn; see `p2p.model.sampling`.
        seed: of the random numbers when a step is given none; None: fresh ones.
        guess_previous: check the previous action as a guess in one pass instead of drawing id by id.
            The result is the same.
    """

    def __init__(
        self,
        policy: Policy,
        temperature: float = 1.0,
        top_p: float | None = None,
        greedy: bool = False,
        seed: int | None = None,
        guess_previous: bool = True,
    ):
        self.policy = policy.eval()
        self.config = policy.config
        self.sampling = SamplingConfig(temperature, top_p, greedy, self.config.sampling.mouse_sampling)
        self.guess_previous = guess_previous
        self.device = policy.out_token.device
        self.last_timing = StepTiming(0.0, 0.0, 0)
        self.last: Decoded | None = None
        self.last_y_out: Tensor | None = None
        self._captured = CapturedStep(policy, self.sampling) if self.device.type == "cuda" else None
        self._player = Player(policy)
        self._decoder = DecoderRunner(policy)
        self._random = np.random.default_rng(seed)
        self._silence = torch.zeros(1, self.config.num_text_tokens, self.config.text_dim, device=self.device)
        self._previous = torch.from_numpy(self.config.action_space.nothing.copy())[None].to(self.device)

    def step(
        self,
        frame: npt.NDArray[np.uint8] | Tensor,
        text: npt.NDArray[np.float32] | Tensor | None = None,
        uniforms: npt.NDArray[np.float32] | Tensor | None = None,
    ) -> npt.NDArray[np.int64]:
        """Answer one frame.

        Args:
            frame: uint8 [3, Y, X] or [Y, X, 3].
            text: float [n_text, text_dim], the embedded instruction; None: no instruction.
            uniforms: float [A] in (0, 1), for a result that can be repeated.

        Returns:
            int64 [A], the ids of the action.
        """
        started = time.perf_counter()
        if self._captured is not None:
            drawn = self._captured.step(self._frame(frame), self._text(text), self._uniforms(uniforms))
            self.last_timing = StepTiming(time.perf_counter() - started, 0.0, self.config.num_action_slots)
            return cast(npt.NDArray[np.int64], drawn[0].numpy())
        y_out = self._player.observe(self._frame(frame), self._text(text))
        observed = time.perf_counter()
        guess = self._previous if self.guess_previous else None
        decoded = self._decoder.decode(y_out, self._uniforms(uniforms), self.sampling, guess)
        self._player.act(decoded.ids)
        self._previous = decoded.ids
        ids: npt.NDArray[np.int64] = decoded.ids[0].cpu().numpy()
        self.last, self.last_y_out = decoded, y_out
        self.last_timing = StepTiming(observed - started, time.perf_counter() - observed, decoded.num_passes)
        return ids

    def finish_step(self) -> None:
        """Put the last action into the cache now, while nobody waits."""
        self._player.remember()

    def reset(self) -> None:
        """Forget the session."""
        self._player.reset()
        if self._captured is not None:
            self._captured.reset()
        self._previous = torch.from_numpy(self.config.action_space.nothing.copy())[None].to(self.device)

    def _frame(self, frame: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        pixels = torch.as_tensor(frame, device=None if self._captured is None else "cpu")
        expected = (3, self.config.frame_height, self.config.frame_width)
        if pixels.shape[-1] == 3 and pixels.shape[0] != 3:
            pixels = pixels.permute(2, 0, 1)
        if tuple(pixels.shape) != expected or pixels.dtype != torch.uint8:
            raise ValueError(
                f"frame is {pixels.dtype} {tuple(pixels.shape)}; this policy wants uint8 {expected} "
                f"or with the colours last. Resize it with p2p.data.resize"
            )
        return pixels[None]

    def _text(self, text: npt.NDArray[np.float32] | Tensor | None) -> Tensor:
        if text is None:
            return self._silence
        given = torch.as_tensor(text, device=self.device).float()[None]
        if given.shape != self._silence.shape:
            raise ValueError(f"text has shape {list(given.shape[1:])}, expected {list(self._silence.shape[1:])}")
        return given

    def _uniforms(self, uniforms: npt.NDArray[np.float32] | Tensor | None) -> Tensor:
        drawn = self._random.random((self.config.num_action_slots,)) if uniforms is None else uniforms
        return torch.as_tensor(drawn, dtype=torch.float32, device="cpu" if self._captured else self.device)[None]
