"""Instructions: where they come from, and how one becomes the numbers that the policy reads."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Embedding = NDArray[np.float32]
GEMMA = "google/embeddinggemma-300m"
GEMMA_NUM_TOKENS = 128
MAX_INSTRUCTION_CHARACTERS = 2000
_CACHE_SIZE = 256


class Embedder(Protocol):
    """Turns an instruction into float32 [n_text, D]; None stands for no instruction."""

    def embed(self, instruction: str) -> Embedding | None: ...


class NullEmbedder:
    """Knows no language: every instruction becomes none, and it says so once."""

    def __init__(self) -> None:
        self._said = False

    def embed(self, instruction: str) -> Embedding | None:
        if not self._said:
            log.warning("no text embedder is loaded, so instructions have no effect; start with --text-embedder gemma")
            self._said = True
        return None


class TableEmbedder:
    """Embeddings computed beforehand: an .npz file with one array [n_text, D] per instruction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with np.load(path, allow_pickle=False) as table:
                self._table: dict[str, Embedding] = {
                    name: np.atleast_2d(table[name]).astype(np.float32) for name in table.files
                }
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as an .npz table of embeddings: {error}") from error

    def embed(self, instruction: str) -> Embedding | None:
        if instruction not in self._table:
            known = ", ".join(repr(name) for name in list(self._table)[:10])
            raise ValueError(f"{self._path} has no embedding of {instruction!r}; it knows {known}")
        return self._table[instruction]


class GemmaEmbedder:
    """The transformer of EmbeddingGemma alone: the mean of the last hidden state over the attention mask.

    Args:
        source: a name on the Hub or a folder; loaded at the first instruction.
    """

    def __init__(self, source: str = GEMMA) -> None:
        self._source = source
        self._loaded: Callable[[str], Embedding] | None = None

    def embed(self, instruction: str) -> Embedding | None:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded(instruction)

    def _load(self) -> Callable[[str], Embedding]:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ValueError("the gemma text embedder needs transformers: pip install 'transformers<5'") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source)
            model = AutoModel.from_pretrained(self._source, torch_dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the weights of {self._source} cannot be loaded ({reason}); they are gated: accept their licence on "
                "the Hub and log in (hf auth login), or name a local folder with --text-embedder gemma:FOLDER"
            ) from error

        def run(instruction: str) -> Embedding:
            tokens = tokenizer(
                instruction, return_tensors="pt", padding="max_length", truncation=True, max_length=GEMMA_NUM_TOKENS
            )
            with torch.inference_mode():
                hidden = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])[0]
            mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            result: Embedding = mean.numpy().astype(np.float32)
            return result

        return run


def make_embedder(name: str) -> Embedder:
    """'null', 'gemma', 'gemma:FOLDER', or the path of an .npz table.

    Raises:
        ValueError: for any other name, or a table that cannot be read.
    """
    if name == "null":
        return NullEmbedder()
    if name == "gemma" or name.startswith("gemma:"):
        return GemmaEmbedder(name.partition(":")[2] or GEMMA)
    if name.endswith(".npz"):
        return TableEmbedder(Path(name))
    raise ValueError(f"text embedder {name!r}: expected null, gemma, gemma:FOLDER, or a path that ends in .npz")


@dataclass(frozen=True)
class Instruction:
    """What the policy is told: the words (empty: nothing) and their embedding float32 [n_text, D], if any."""

    text: str = ""
    embedding: Embedding | None = None


class TextSource:
    """The instruction in force; set from any thread, read by the player once a frame.

    Args:
        shape: (n_text, D) that the policy reads; an embedding of another shape is refused.
    """

    def __init__(self, embedder: Embedder, shape: tuple[int, int]) -> None:
        self._embedder = embedder
        self._shape = shape
        self._cache: OrderedDict[str, Embedding | None] = OrderedDict()
        self.current = Instruction()

    def set(self, text: str) -> None:
        """Put an instruction in force, or none for an empty line; slow for one that was never seen.

        Raises:
            ValueError: when it is too long or cannot be embedded; the one in force stays.
        """
        text = text.strip()
        if not text:
            self.current = Instruction()
            log.info("instruction: none")
            return
        if len(text) > MAX_INSTRUCTION_CHARACTERS:
            raise ValueError(f"an instruction of {len(text)} characters; at most {MAX_INSTRUCTION_CHARACTERS}")
        embedding = self._embed(text)
        self.current = Instruction(text, embedding)
        log.info("instruction: %s%s", text, "" if embedding is not None else " (without effect)")

    def _embed(self, text: str) -> Embedding | None:
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        embedding = self._embedder.embed(text)
        if embedding is not None and embedding.shape != self._shape:
            raise ValueError(
                f"the embedding of {text!r} has the shape {embedding.shape}, the policy reads {self._shape}; "
                "use the embedder that it was trained with"
            )
        self._cache[text] = embedding
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return embedding
