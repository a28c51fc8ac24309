"""The original's files: its four configurations, none at all, a stranger's checkpoint, and what it can load of ours."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from p2p.cli import main
from p2p.config import PolicyConfig, SamplingConfig
from p2p.model import Policy, load_policy, save_policy
from p2p.model.original import (
    config_from_original,
    export_checkpoint,
    import_checkpoint,
    is_stored_as_bf16,
    load_checkpoint,
    rename_from_original,
    rename_to_original,
)

TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=4, attention_history=(2, 4), num_thinking_tokens=3,
    num_sink_tokens=2, num_image_tokens=2, num_text_tokens=2,
)  # fmt: skip
SIZES = {"150M": (1024, 10), "300M": (1024, 20), "600M": (2048, 9), "1200M": (2048, 22)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    return export_checkpoint(save_policy(Policy(TINY), folder / "policy"), folder / "original", 7)


@pytest.fixture
def original(written: Path, tmp_path: Path) -> Path:
    """A checkpoint as the original trainer leaves it, with its configuration beside it."""
    return shutil.copytree(written.parent, tmp_path / "original") / written.name


def size_yaml(dim: int, num_layers: int) -> str:
    """config/policy_model/SIZE.yaml: environment variables, keys that nothing here knows, defaults left out."""
    return f"""
shared:
  output_path: /ephemeral/${{USER}}/checkpoints
  n_seq_timesteps: 200
  frame_height: 192
  frame_width: 192
  unheard_of: {{deep: [1, 2]}}
  tokenizer: {{type: conv, conv_tokenizer_config: {{num_tokens: 1}}}}
  text_tokenizer_config: {{text_tokenizer_name: gemma, text_embedding_shape: [1, 768]}}
policy_model:
  transformer_dim: {dim}
  n_transformer_layers: {num_layers}
  n_q_head: 16
  n_kv_head: 16
  n_kv_sink_tokens: 0
  attention_history_len: {[200] * num_layers}
  action_decoder: {{embed_dim: {dim}}}
stage3_finetune: {{training_dataset: {{local_prefix: "${{USER}}/${{HOME}}"}}}}
wandb: {{exp_name: "${{USER}}-policy"}}
"""


@pytest.mark.parametrize("size", SIZES)
def test_the_configurations_of_the_four_sizes_fit_their_weights(
    size: str, tmp_path: Path, shared_fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "7")
    (tmp_path / "size.yaml").write_text(size_yaml(*SIZES[size]))
    config = config_from_original(tmp_path / "size.yaml")
    keys = json.loads((shared_fixtures / "weights_layout" / f"state_dict_{size}.json").read_text())["keys"]
    state = {k: torch.empty(v["shape"], dtype=getattr(torch, v["dtype"]), device="meta") for k, v in keys.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("bc_transformer.image_tokenizer.")}
    assert len(rename_from_original(config, state, size)) == len(state)
    assert (config.num_timesteps, config.num_thinking_tokens) == (200, 1)
    assert config.sampling == SamplingConfig(mouse_sampling="mean")


def test_what_the_environment_holds_reaches_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDE", "192")
    text = size_yaml(64, 1).replace("frame_height: 192", "frame_height: ${SIDE}")
    (tmp_path / "size.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"size.yaml: shared.frame_height is None; expected a whole number"):
        config_from_original(tmp_path / "size.yaml")


def test_what_a_configuration_leaves_out_has_the_original_s_defaults(tmp_path: Path) -> None:
    text = size_yaml(64, 1).replace("  n_kv_sink_tokens: 0\n", "").replace("n_seq_timesteps: 200", "fast_dev_run: no")
    text = (
        text.replace("[200]", "[3]")
        .replace(", text_embedding_shape: [1, 768]", "")
        .replace("n_q_head: 16", "n_q_head: 4")
    )
    (tmp_path / "size.yaml").write_text(text.replace("  n_kv_head: 16\n", ""))
    config = config_from_original(tmp_path / "size.yaml")
    assert (config.num_sink_tokens, config.num_thinking_tokens, config.num_timesteps) == (1, 1, 3)
    assert (config.num_text_tokens, config.text_dim) == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "the tag"),
        ("- 1\n", "expected an object"),
        ("#" * 300_000, "longer than 262144 bytes"),
        (size_yaml(64, 1).replace("dim: 64", "dim: 1e9"), "transformer_dim is 1000000000.0"),
        (size_yaml(64, 1).replace("layers: 1", "layers: 1000000000"), "layers is 1000000000; expected .* in 1..1024"),
        (size_yaml(64, 1).replace("[200]", "[true]"), "attention_history_len is True"),
        (size_yaml(64, 1).replace("frame_width: 192", "frame_width: -192"), "frame_width is -192"),
        (size_yaml(64, 1) + "inference: {sampling_temperature: .nan}", "sampling_temperature: .nan is no finite"),
    ],
)  # fmt: skip
def test_a_hostile_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        config_from_original(tmp_path / "model_config.yaml")


# ------------------------------------------------------------------ without its configuration


@pytest.fixture
def parity(tmp_path: Path, shared_fixtures: Path) -> Path:
    """The reference checkpoint alone, without its configuration."""
    path = tmp_path / "alone" / "parity.ckpt"
    path.parent.mkdir()
    path.symlink_to(shared_fixtures / "parity_tiny" / "checkpoint-step=00000010.ckpt")
    return path


def test_a_checkpoint_alone_tells_its_architecture(
    parity: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = load_policy(import_checkpoint(parity, tmp_path / "policy")).config
    assert (config.dim, config.num_layers, config.num_sink_tokens, config.num_thinking_tokens) == (64, 2, 0, 1)
    assert (config.frame_height, config.frame_width, config.num_image_tokens) == (192, 192, 1)
    assert (config.num_text_tokens, config.text_dim, config.max_keys, config.max_mouse_buttons) == (1, 768, 4, 2)
    (record,) = [record.getMessage() for record in caplog.records if record.name == "p2p.model.original"]
    told, assumed = record.split("not in them, so assumed: ")
    assert "dim 64, num_layers 2" in told
    assert "heads 16, timesteps and history 200, sampling truncated_normal" in assumed
    assert "\n" not in record


def test_a_recipe_says_what_a_checkpoint_alone_cannot(parity: Path, tmp_path: Path, shared_fixtures: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "name: tiny\npolicy: {dim: 64, num_layers: 2, num_heads: 4, num_timesteps: 6, attention_history: 6}\n"
    )
    arguments = ["import", str(parity), "--out", str(tmp_path / "policy"), "--recipe", str(tmp_path / "tiny.yaml")]
    assert main(arguments) == 0
    reference = load_file(shared_fixtures / "parity_tiny" / "io.safetensors")
    heads = ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")
    actions = torch.cat([reference[f"in.{head}"] for head in heads], -1)
    with torch.no_grad():
        logits = load_policy(tmp_path / "policy")(reference["in.frames"], actions, reference["in.text_embeddings"])
    for head, ours in zip(heads, logits, strict=True):
        torch.testing.assert_close(ours, reference[f"logits.{head}"], atol=1e-4, rtol=0)


def test_a_recipe_by_name_that_does_not_fit_names_both(
    parity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(parity), "--out", str(tmp_path / "policy"), "--recipe", "150M"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "policy.dim is 1024, the tensors have 64 (key_action_embedding.weight)" in line
    assert "policy.num_layers is 10, the tensors have 2" in line
    assert not (tmp_path / "policy").exists()


def test_sinks_tell_the_heads(original: Path, tmp_path: Path) -> None:
    (original.parent / "model_config.yaml").unlink()
    config = load_policy(import_checkpoint(original, tmp_path / "imported")).config
    told = {"num_timesteps": 200, "attention_history": 200, "sampling": SamplingConfig()}
    assert config == dataclasses.replace(TINY, **told)  # type: ignore[arg-type]


# ------------------------------------------------------------------ a stranger's checkpoint


class Pickled:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def with_state(state: object, **more: object) -> Callable[[Path], None]:
    return lambda path: torch.save({"state_dict": state, **more}, path)


def with_pickle(data: bytes) -> Callable[[Path], None]:
    """The checkpoint with another data.pkl in it."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, entry in content.items():
                archive.writestr(name, data if name.endswith("data.pkl") else entry)

    return write


def compressed(path: Path) -> None:
    """A bomb: zeros that were compressed to a thousandth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200_000_000))


def overlapping(path: Path) -> None:
    """Many entries over the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        first = archive.infolist()[0]
        for i in range(5):
            twin = zipfile.ZipInfo(f"a/data/{i}")
            twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = (
                0,
                first.file_size,
                first.file_size,
                first.CRC,
            )
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    path.write_bytes(buffer.getvalue())


def two_directories(path: Path) -> None:
    """A second archive behind the first: two readers might take one each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
    path.write_bytes(path.read_bytes() + buffer.getvalue())


def huge_directory(path: Path) -> None:
    path.write_bytes(bytes(20 << 20) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 20 << 20, 0, 0))


def doubled_tuple_as_key() -> bytes:
    """A key whose hash takes 2**60 steps: each tuple holds the one before twice."""
    levels = b"".join(b"h%c" % i + b"h%c" % i + b"\x86q%c" % (i + 1) for i in range(60))
    return b"\x80\x02}K\x01\x85q\x00" + levels + b"K\x01s."


def many_values() -> bytes:
    return b"\x80\x02](" + b"]" * (4 << 20) + b"e."


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled code": (with_state({}, trap=Pickled(os.mkdir, "sprung")), "names 'posix mkdir'.*weights_only"),
    "code of a kind that weights_only runs": (with_state({}, trap=Pickled(bytearray, 1 << 40)), "bytearray"),
    "a storage out of nothing": (
        with_pickle(b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."),
        "calls something else",
    ),
    "a zip bomb": (compressed, "is compressed"),
    "entries over one another": (overlapping, "overlaps"),
    "two directories": (two_directories, "not where it says"),
    "a huge directory": (huge_directory, "at most 16777216 are read"),
    "a key without end": (with_pickle(doubled_tuple_as_key()), "uses a tuple twice"),
    "a tuple as key": (with_pickle(b"\x80\x02}K\x01\x85K\x01s."), "a key that is neither text nor a number"),
    "millions of values": (with_pickle(many_values()), "more than 1048576 operations"),
    "a long pickle": (with_pickle(bytes(17 << 20)), "at most 16777216 are read"),
    "no operand": (with_pickle(b"\x80\x02\x85."), "an operand is missing"),
    "no mark": (with_pickle(b"\x80\x02}u."), "a mark is missing"),
    "no state_dict": (lambda path: torch.save({"weights": {}}, path), "no state_dict of tensors"),
    "a state_dict that is no dict": (with_state([1, 2]), "no state_dict of tensors"),
    "a list instead of a checkpoint": (lambda path: torch.save([1], path), "no state_dict of tensors"),
    "entries that are no tensors": (with_state({"a": 1}), "no state_dict of tensors"),
    "a name that is no text": (with_state({1: torch.zeros(1)}), "expected text"),
    "a name that climbs": (with_state({"../a": torch.zeros(1)}), "not the plain name"),
    "a tensor of nothing, endlessly": (with_state({"a": torch.zeros(1).expand(1 << 40)}), "not a plain, contiguous"),
    "complex numbers": (with_state({"a": torch.zeros(1, dtype=torch.complex64)}), "names 'torch Complex"),
    "doubles": (with_state({"a": torch.zeros(1, dtype=torch.float64)}), "torch.float64"),
    "one storage many times": (
        with_state({str(i): t for t in [torch.zeros(1 << 16)] for i in range(9)}),
        "more bytes than the file",
    ),
    "strange tensors": (with_state({"a": torch.zeros(1)}), "missing: key_action_embedding.weight"),
    "nothing": (lambda path: path.write_bytes(b""), "does not end with the directory"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(
    kind: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = HOSTILE[kind]
    write(original)
    with pytest.raises(ValueError, match=message):
        import_checkpoint(original, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "sprung").exists()


HOSTILE_IN_A_PROCESS = """
import resource, sys
import torch
from p2p.model.original import import_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        import_checkpoint(path, path + ".out")
    except ValueError:
        pass
    else:
        raise SystemExit(path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_hostile_checkpoints_take_no_memory(original: Path, tmp_path: Path) -> None:
    content = original.read_bytes()
    paths = []
    for i, kind in enumerate(("a zip bomb", "millions of values", "a key without end", "a huge directory")):
        paths.append(tmp_path / f"{i}.ckpt")
        paths[-1].write_bytes(content)
        HOSTILE[kind][0](paths[-1])
    command = [sys.executable, "-c", HOSTILE_IN_A_PROCESS, *map(str, paths)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert grown < 60_000_000, f"{grown / 1e6:.0f} MB"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(original: Path, tmp_path: Path, number: float) -> None:
    content = torch.load(original, weights_only=True)
    content["state_dict"]["keyboard_out_logits.bias"][3] = number
    torch.save(content, original)
    with pytest.raises(ValueError, match=r"1 of 20 numbers of heads\.keys\.bias are not finite"):
        import_checkpoint(original, tmp_path / "imported")


# ------------------------------------------------------------------ for the original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_num_layers": 2}, "policy.decoder_num_layers is 2; the original can only load 3"),
        ({"decoder_num_heads": 4}, "policy.decoder_num_heads is 4; the original can only load 8"),
        ({"attention_history": (2, 3)}, "policy.attention_history is 3; the original can only load 4"),
        ({"image_encoder": "vit", "num_image_tokens": 144}, "policy.image_encoder is vit"),
        ({"image_encoder": "small_cnn"}, "policy.image_encoder is small_cnn"),
        ({"text_embedder": "minilm"}, "policy.text_embedder is minilm"),
    ],
)
def test_what_the_original_cannot_load_is_not_written(
    tmp_path: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = save_policy(Policy(dataclasses.replace(TINY, **change)), tmp_path / "policy")  # type: ignore[arg-type]
    assert main(["export", str(policy), "--original", "--out", str(tmp_path / "original")]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "original").exists()


def test_the_original_is_told_how_texts_are_embedded_and_how_to_be_greedy(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, sampling=SamplingConfig(greedy=True, mouse_sampling="conservative"))
    written = export_checkpoint(save_policy(Policy(config), tmp_path / "policy"), tmp_path / "original")
    settings = OmegaConf.load(written.parent / "model_config.yaml")
    assert settings.shared.text_tokenizer_config.text_tokenizer_name == "gemma"
    assert settings.inference == {"sampling_temperature": 0.0, "mouse_sampling_approach": "conservative"}


def inputs(config: PolicyConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (1, 4, 3, 192, 192), generator=generator, dtype=torch.uint8)
    text = torch.randn(1, 4, config.num_text_tokens, config.text_dim, generator=generator)
    return frames, torch.randint(0, 4, (1, 4, config.num_action_slots), generator=generator), text


def test_the_original_computes_what_the_policy_does_with_its_small_tensors_rounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    policy = Policy(TINY).eval()
    folder = save_policy(policy, tmp_path / "policy")
    written = export_checkpoint(folder, tmp_path / "original")
    imported = load_checkpoint(written)
    with torch.no_grad():
        exact = policy(*inputs(TINY))
        for one in (policy, imported):
            for name, tensor in one.state_dict().items():
                if is_stored_as_bf16(name):
                    tensor.copy_(tensor.bfloat16().float())
        rounded, again = policy(*inputs(TINY)), imported(*inputs(TINY))
    assert all(torch.equal(a, b) for a, b in zip(rounded, again, strict=True))
    difference = max((a - b).abs().max().item() for a, b in zip(rounded, exact, strict=True))
    assert 1e-4 < difference < 0.1
    num_rounded = sum(is_stored_as_bf16(name) for name in policy.state_dict())
    assert f"{num_rounded} small tensors (tokens, embeddings, sinks)" in caplog.text
    assert "differ from this policy's by about 0.01" in caplog.text


def test_a_vit_of_the_original_is_found_by_the_size_of_its_weight(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, image_encoder="vit", num_image_tokens=144)
    policy = Policy(config)
    state = rename_to_original(policy.state_dict())
    state = {name.replace("tokenizer.mlp.0.", "tokenizer.patches."): tensor for name, tensor in state.items()}
    tensors = rename_from_original(config, state, "vit")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in policy.state_dict().items())
