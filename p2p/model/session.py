"""A session: one policy at play, from pictures to keys and mouse. The server, notebooks and tests play through it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p2p import gate
from p2p.actions import Action
from p2p.config import SamplingConfig
from p2p.data.resize import resize
from p2p.model.captured import CapturedEngine
from p2p.model.engine import Engine, StepEngine, StepTiming
from p2p.model.network import Network
from p2p.text import Embedder, Embedding, make_embedder

_NUM_WARM_UP_STEPS = 3
_SMALLEST_UNIFORM = np.float32(2**-24)


class Session:
    """One session of a policy: it remembers the frames and actions of the last `config.num_timesteps` steps.

    Sessions of one policy share its weights and nothing else; each keeps `cache_bytes(policy)` of its own.

    Args:
        policy: on the device that is to be used; it is put into evaluation mode. `for_inference` makes it quicker.
        seed: of all that is drawn; None: fresh numbers.
        sampling: how ids are drawn; default: as the policy's configuration says.
        mouse_sampling: how a bin of motion becomes pixels, instead of what `sampling` says: "mean", "conservative" or
            "truncated_normal".
        clear_every: forget the history after this many frames; 0: never.
        embedder: for instructions in words; default: the one that the policy was trained with.

    Raises:
        ValueError: for a way of sampling or a number that does not exist.
    """

    def __init__(
        self,
        policy: Network,
        seed: int | None = None,
        sampling: SamplingConfig | None = None,
        mouse_sampling: str | None = None,
        clear_every: int = 0,
        embedder: Embedder | None = None,
    ) -> None:
        config, sampling = policy.config, sampling or policy.config.sampling
        if mouse_sampling is not None:
            sampling = dataclasses.replace(sampling, mouse_sampling=mouse_sampling)
        if seed is not None:
            gate.whole_number(seed, "seed", 0, 2**64 - 1)
        self._clear_every = gate.whole_number(clear_every, "clear_every", 0, 2**62)
        self._config, self._space = config, config.action_space
        self._mouse_sampling = sampling.mouse_sampling
        self._engine = _engine(policy, sampling)
        self._seed, self._rng = seed, np.random.default_rng(seed)
        self._embedder = embedder
        self._told: tuple[str, Embedding | None] = ("", None)
        self._num_steps = 0

    @property
    def last_timing(self) -> StepTiming:
        """Where the time of the last `act` went."""
        return self._engine.last_timing

    def act(self, frame: NDArray[np.uint8], text: str | ArrayLike | None = None) -> Action:
        """The answer to a frame: what is held until the next one, and the mouse's motion in pixels.

        Args:
            frame: uint8 [Y, X, 3], RGB; one of another size than the policy's is stretched.
            text: the instruction in force: words, or their embedding float [n_text, text_dim]; None or "": none.

        Raises:
            ValueError: for a frame or a text that is none, or words that cannot be embedded.
        """
        if self._clear_every and self._num_steps >= self._clear_every:
            self.forget()
        uniforms = np.maximum(self._rng.random(self._space.num_slots, dtype=np.float32), _SMALLEST_UNIFORM)
        ids = self._engine.step(self.fit(frame), self._embedding(text), uniforms)
        self._num_steps += 1
        return self._space.decode(ids, self._mouse_sampling, self._rng)

    def finish_step(self) -> None:
        """Put the last action into the history now, while nobody waits; otherwise the next `act` does it."""
        self._engine.finish_step()

    def forget(self) -> None:
        """Forget the history, as at the beginning of an episode; what is drawn goes on."""
        self._engine.reset()
        self._num_steps = 0

    def restart(self) -> None:
        """Begin anew, as a new session with the same seed would."""
        self.forget()
        self._rng = np.random.default_rng(self._seed)

    def warm_up(self) -> None:
        """Make the first answers as quick as the later ones; forgets the history, and draws nothing."""
        frame = np.zeros((self._config.frame_height, self._config.frame_width, 3), dtype=np.uint8)
        for _ in range(_NUM_WARM_UP_STEPS):
            self._engine.step(frame, None, np.full(self._space.num_slots, 0.5, dtype=np.float32))
            self._engine.finish_step()
        self.forget()

    def fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame as the policy sees it, uint8 [Y, X, 3] of the policy's size; the frame itself if it has that size.

        Raises:
            ValueError: when it is not uint8 [Y, X, 3].
        """
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; give uint8 [height, width, 3], RGB")
        image = resize(frame, self._config.frame_height, self._config.frame_width)
        return image if image.flags.writeable else image.copy()  # torch takes no view of bytes

    def _embedding(self, text: str | ArrayLike | None) -> Embedding | None:
        if text is None or isinstance(text, str):
            return self._embed((text or "").strip())
        values = np.asarray(text, dtype=np.float32)
        gate.finite(values, "text")
        return values

    def _embed(self, words: str) -> Embedding | None:
        """The embedding of an instruction in words; the last one is kept."""
        if words and words != self._told[0]:
            if not self._config.num_text_tokens:
                raise ValueError(f"text {gate.shown(words)}: this policy reads no instruction; leave it out")
            self._embedder = self._embedder or make_embedder(self._config.text_embedder)
            self._told = (words, self._embedder.embed(words))
        return self._told[1] if words else None


def _engine(policy: Network, sampling: SamplingConfig) -> Engine:
    return (CapturedEngine if policy.out_token.device.type == "cuda" else StepEngine)(policy, sampling)
