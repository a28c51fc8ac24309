"""The instruction in force: set by whoever may say what is to be done, read by the players."""

from __future__ import annotations

import logging
from collections import OrderedDict

from p2p import gate
from p2p.text import MAX_INSTRUCTION_CHARACTERS, Embedder, Embedding, Instruction

log = logging.getLogger(__name__)

_CACHE_SIZE = 256


class TextSource:
    """The instruction in force; set from any thread, read by the player once a frame.

    Args:
        shape: (n_text, D) that the policy reads; an embedding of another shape is refused.
        trained_with: the name of the policy's own embedder, for that refusal.
    """

    def __init__(self, embedder: Embedder, shape: tuple[int, int], trained_with: str = "") -> None:
        self._embedder = embedder
        self._shape = shape
        self._trained_with = trained_with
        self._cache: OrderedDict[str, Embedding | None] = OrderedDict()
        self.current = Instruction()

    def set(self, text: str) -> None:
        """Put an instruction in force, or none for an empty line; slow for one that was never seen.

        Raises:
            ValueError: when it is too long, no UTF-8, or cannot be embedded; the one in force stays.
        """
        text = text.strip()
        if not text:
            self.current = Instruction()
            log.info("instruction: none")
            return
        gate.text(text, "an instruction", MAX_INSTRUCTION_CHARACTERS)
        embedding = self._embed(text)
        self.current = Instruction(text, embedding)
        log.info("instruction: %s%s", gate.printable(text), "" if embedding is not None else " (without effect)")

    def _embed(self, text: str) -> Embedding | None:
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        embedding = self._embedder.embed(text)
        name = self._trained_with
        if embedding is not None and embedding.shape != self._shape:
            raise ValueError(
                f"the embedding of {gate.shown(text)} has the shape {embedding.shape}, the policy reads {self._shape}; "
                f"use the embedder that it was trained with{f', --text-embedder {name}' if name else ''}"
            )
        self._cache[text] = embedding
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return embedding
