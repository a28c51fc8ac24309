"""Instructions: embedded once, in force at once, harmless when they cannot be embedded."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from p2p.text import NullEmbedder, TableEmbedder
from p2p_serve.text import TextSource


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.npz"
    np.savez(path, left=np.ones((1, 16)), right=np.full(16, 2.0), wide=np.ones((1, 17)))
    return path


class CountingTable(TableEmbedder):
    """Counts how often it is asked."""

    num_asked = 0

    def embed(self, instruction: str) -> np.ndarray | None:
        self.num_asked += 1
        return super().embed(instruction)


def test_an_instruction_is_in_force_until_the_next_and_embedded_once(table: Path) -> None:
    embedder = CountingTable(table)
    source = TextSource(embedder, (1, 16))
    assert source.current.embedding is None
    for name, value in (("left", 1.0), ("right", 2.0), ("left", 1.0)):
        source.set(f"  {name}\n")
        assert source.current.text == name
        assert source.current.embedding is not None
        assert (source.current.embedding == value).all()
        assert source.current.embedding.dtype == np.float32
    assert embedder.num_asked == 2


def test_an_empty_line_means_no_instruction(table: Path) -> None:
    source = TextSource(TableEmbedder(table), (1, 16))
    source.set("left")
    source.set("  ")
    assert (source.current.text, source.current.embedding) == ("", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("up", "has no embedding of 'up'; it knows 'left'"),
        ("wide", "use the embedder that it was trained with"),
        ("x" * 3000, "text of 3000 characters"),
        ("\udcff", r"an instruction is '\\udcff', which is not valid UTF-8"),
    ],
)
def test_what_cannot_be_used_leaves_the_one_in_force(table: Path, text: str, message: str) -> None:
    source = TextSource(TableEmbedder(table), (1, 16))
    source.set("left")
    with pytest.raises(ValueError, match=message):
        source.set(text)
    assert source.current.text == "left"


def test_the_refusal_names_the_embedder_that_the_policy_was_trained_with(table: Path) -> None:
    source = TextSource(TableEmbedder(table), (1, 384), trained_with="minilm")
    with pytest.raises(ValueError, match=r"shape \(1, 16\), the policy reads \(1, 384\).* --text-embedder minilm"):
        source.set("left")


def test_without_an_embedder_it_says_so_once_and_only_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = TextSource(NullEmbedder(), (1, 768))
    source.set("")
    assert "no text embedder" not in caplog.text
    source.set("left")
    source.set("right")
    assert caplog.text.count("no text embedder is loaded") == 1
    assert source.current.embedding is None
