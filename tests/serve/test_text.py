"""Instructions: embedded once, in force at once, harmless when they cannot be embedded."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from p2p_serve.text import NullEmbedder, TableEmbedder, TextSource, make_embedder


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
        ("x" * 3000, "an instruction of 3000 characters"),
    ],
)
def test_what_cannot_be_used_leaves_the_one_in_force(table: Path, text: str, message: str) -> None:
    source = TextSource(TableEmbedder(table), (1, 16))
    source.set("left")
    with pytest.raises(ValueError, match=message):
        source.set(text)
    assert source.current.text == "left"


def test_without_an_embedder_it_says_so_once_and_only_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = TextSource(NullEmbedder(), (1, 768))
    source.set("")
    assert "no text embedder" not in caplog.text
    source.set("left")
    source.set("right")
    assert caplog.text.count("no text embedder is loaded") == 1
    assert source.current.embedding is None


def test_unknown_embedders_and_unreadable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text embedder 'bert': expected null, gemma"):
        make_embedder("bert")
    (tmp_path / "broken.npz").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"broken\.npz: cannot be read"):
        make_embedder(str(tmp_path / "broken.npz"))
    with pytest.raises(ValueError, match=r"absent\.npz: cannot be read"):
        make_embedder(str(tmp_path / "absent.npz"))


class TestGemma:
    """The real architecture and a real tokenizer, small and with random weights."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        transformers = pytest.importorskip("transformers")
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = {word: index for index, word in enumerate(["<pad>", "<unk>", "go", "left", "right", "now"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        folder = tmp_path_factory.mktemp("gemma")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
        ).save_pretrained(folder)
        torch.manual_seed(0)
        config = transformers.Gemma3TextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
        transformers.Gemma3TextModel(config).save_pretrained(folder)
        return folder

    def test_the_embedding_is_the_mean_of_the_last_hidden_states(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel

        embedding = make_embedder(f"gemma:{folder}").embed("go left now")
        assert embedding is not None
        assert embedding.shape == (1, 32)
        model = AutoModel.from_pretrained(folder).eval()
        with torch.inference_mode():  # without padding: it must not count
            hidden = model(input_ids=torch.tensor([[2, 3, 5]]))[0]
        np.testing.assert_allclose(embedding, hidden.mean(dim=1).numpy(), atol=1e-5)

    def test_a_long_instruction_is_cut_at_128_tokens(self, folder: Path) -> None:
        embedder = make_embedder(f"gemma:{folder}")
        long = embedder.embed("go " * 128 + "left " * 50)
        np.testing.assert_array_equal(long, embedder.embed("go " * 128))

    def test_weights_that_are_not_there_are_explained_when_text_is_asked_for(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        embedder = make_embedder(f"gemma:{tmp_path / 'absent'}")
        source = TextSource(embedder, (1, 768))
        source.set("")
        with pytest.raises(ValueError, match=r"cannot be loaded .* they are gated"):
            source.set("go left")
