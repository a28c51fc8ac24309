"""Policy folders and checkpoints: whole or not at all, refused with reasons, read in bounded memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from p2p.config import PolicyConfig, load_policy_config
from p2p.model import Policy, load_policy, save_policy
from p2p.model.original import config_from_original, config_to_original, export_checkpoint, import_checkpoint

TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=4, attention_history=(2, 4), decoder_num_heads=8,
    num_thinking_tokens=3, num_sink_tokens=2, num_image_tokens=2, num_text_tokens=2,
)  # fmt: skip


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A folder as the original trainer leaves it."""
    torch.manual_seed(0)
    return export_checkpoint(save_policy(Policy(TINY), tmp_path / "policy"), tmp_path / "original", 7).parent


def edit_config(folder: Path, key: str, value: object) -> None:
    settings = OmegaConf.load(folder / "model_config.yaml")
    OmegaConf.update(settings, key, value)
    OmegaConf.save(settings, folder / "model_config.yaml")


def edit_state(folder: Path, edit) -> None:  # type: ignore[no-untyped-def]
    path = next(folder.glob("*.ckpt"))
    content = torch.load(path, weights_only=True)
    edit(content["state_dict"])
    torch.save(content, path)


def import_from(folder: Path, out: Path) -> Path:
    return import_checkpoint(next(folder.glob("*.ckpt")), out)


def test_a_policy_goes_through_both_layouts_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = Policy(TINY)
    folder = save_policy(policy, tmp_path / "policy")
    assert load_policy_config(folder / "config.yaml") == TINY
    again = load_policy(import_from(export_checkpoint(folder, tmp_path / "original").parent, tmp_path / "again"))
    assert again.config == TINY
    for name, tensor in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training


def test_the_settings_of_the_original_come_back(tmp_path: Path) -> None:
    OmegaConf.save(OmegaConf.create(config_to_original(TINY)), tmp_path / "model_config.yaml")
    assert config_from_original(tmp_path / "model_config.yaml") == TINY


def test_saving_again_replaces_the_weights(tmp_path: Path) -> None:
    save_policy(Policy(TINY), tmp_path / "policy")
    second = Policy(dataclasses.replace(TINY, num_layers=1, attention_history=(4,)))
    save_policy(second, tmp_path / "policy")
    assert load_policy(tmp_path / "policy").config.num_layers == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy"]
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
    ]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    from p2p.model.weights import write_policy_folder

    with pytest.raises(ValueError, match=r"x has type torch\.complex64"):
        write_policy_folder(TINY, {"x": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_on_request(tmp_path: Path) -> None:
    policy = load_policy(save_policy(Policy(TINY), tmp_path / "policy"), dtype=torch.bfloat16)
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("policy_model.n_kv_head", 2, "n_kv_head is 2, n_q_head is 4"),
        ("policy_model.attention_history_len", [4], "expected 2 numbers"),
        ("policy_model.attention_history_len", [2, 3], "whose maximum is 4"),
        ("policy_model.action_decoder.embed_dim", 64, "embed_dim is 64"),
        ("policy_model.transformer_dim", 64, "embed_dim is 32"),
        ("policy_model.n_thinking_tokens", 1, r"n_thinking_tokens is 1, the tensors have 3 \(bc_trans"),
        ("policy_model.n_transformer_layers", 3, "expected 3 numbers"),
        ("policy_model.n_kv_sink_tokens", 0, r"n_kv_sink_tokens is 0, the tensors have 2 \(.*k_sinks"),
        ("shared.tokenizer.type", "mlp", "expected conv or vit"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    original: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    edit_config(original, key, value)
    with pytest.raises(ValueError, match=message):
        import_from(original, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_settings_without_effect_are_ignored(original: Path, tmp_path: Path) -> None:
    for key, value in (("n_transformer_layers", 7), ("n_q_head", 2)):
        edit_config(original, f"policy_model.action_decoder.{key}", value)
    edit_config(original, "policy_model.sparse_moe.num_experts", 16)
    config = load_policy(import_from(original, tmp_path / "imported")).config
    assert (config.decoder_num_layers, config.decoder_num_heads) == (3, 8)


def test_missing_and_unexpected_keys_name_the_nearest(original: Path, tmp_path: Path) -> None:
    edit_state(original, lambda s: s.__setitem__("key_action_embeddings.weight", s.pop("key_action_embedding.weight")))
    with pytest.raises(ValueError, match=r"missing: key_action_embedding.weight \(nearest: key_action_embeddings"):
        import_from(original, tmp_path / "imported")


def test_copies_of_the_image_tokenizer_that_differ_are_refused(original: Path, tmp_path: Path) -> None:
    name = "bc_transformer.image_tokenizer.mlp.0.bias"
    edit_state(original, lambda s: s.__setitem__(name, s[name] + 1))
    with pytest.raises(ValueError, match=r"mlp\.0\.bias and .* differ"):
        import_from(original, tmp_path / "imported")


def test_a_damaged_checkpoint_is_refused(original: Path, tmp_path: Path) -> None:
    path = next(original.glob("*.ckpt"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"not end with the directory of a zip file.*download complete"):
        import_from(original, tmp_path / "imported")


def test_pickled_code_is_never_run(original: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "sprung",))

    path = next(original.glob("*.ckpt"))
    torch.save({"state_dict": {}, "trap": Trap()}, path)
    with pytest.raises(ValueError, match="weights_only"):
        import_from(original, tmp_path / "imported")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "no policy folder: model.safetensors is missing"),
        ("config.yaml", None, "no policy folder: config.yaml is missing"),
        ("model.safetensors", b"not weights", "not a readable safetensors file"),
        ("config.yaml", b"dimm: 32\n", "unknown key 'dimm'; did you mean 'dim'"),
        ("config.yaml", b"dim: [\n", "not valid YAML"),
        ("config.yaml", b"dim: 64\n", "the weights do not fit the configuration"),
    ],
)
def test_a_broken_policy_folder_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    folder = save_policy(Policy(TINY), tmp_path / "policy")
    (folder / "manifest.json").unlink()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_policy(folder)


IMPORT_IN_A_PROCESS = """
import resource, sys
from p2p.model.original import import_checkpoint
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_checkpoint(sys.argv[1], sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_import_reads_no_optimizer_state_and_holds_the_weights_once(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, dim=512, num_layers=8, num_heads=8, attention_history=4)
    folder = save_policy(Policy(config), tmp_path / "policy")
    original = export_checkpoint(folder, tmp_path / "original")
    content = torch.load(original, weights_only=True)
    moments = {
        i: {"exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.ones_like(t)}
        for i, t in enumerate(content["state_dict"].values())
    }
    content["optimizer_states"] = [{"state": moments, "param_groups": []}]
    torch.save(content, original)
    weights = (folder / "model.safetensors").stat().st_size
    assert original.stat().st_size > 2.9 * weights
    command = [sys.executable, "-c", IMPORT_IN_A_PROCESS, str(original), str(tmp_path / "imported")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 1.3 * weights, f"peak {peak / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"
