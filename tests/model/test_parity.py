"""The released numbers: a real checkpoint of the original with its inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from p2p.actions import HEADS
from p2p.model import Policy, load_policy
from p2p.model.image import MBConv
from p2p.model.original import export_checkpoint, import_checkpoint, load_checkpoint, original_name

THEIR_HEADS = dict(zip(HEADS, ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y"), strict=True))


@pytest.fixture(scope="module")
def parity(shared_fixtures: Path) -> Path:
    return shared_fixtures / "parity_tiny"


@pytest.fixture(scope="module")
def checkpoint(parity: Path) -> Path:
    return parity / "checkpoint-step=00000010.ckpt"


@pytest.fixture(scope="module")
def io(parity: Path) -> dict[str, Tensor]:
    return load_file(parity / "io.safetensors")


@pytest.fixture(scope="module")
def policy(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(import_checkpoint(checkpoint, tmp_path_factory.mktemp("import") / "policy"))


def actions_of(io: dict[str, Tensor]) -> Tensor:
    return torch.cat([io[f"in.{name}"] for name in THEIR_HEADS.values()], dim=-1)


def assert_logits(policy: Policy, io: dict[str, Tensor], prefix: str, tolerance: float) -> None:
    with torch.no_grad():
        logits = policy(io["in.frames"], actions_of(io), io["in.text_embeddings"])
    for head, name in THEIR_HEADS.items():
        torch.testing.assert_close(getattr(logits, head), io[f"{prefix}logits.{name}"], atol=tolerance, rtol=0)


def test_imported_weights_give_the_logits_of_the_original(policy: Policy, io: dict[str, Tensor]) -> None:
    assert_logits(policy, io, "", 1e-4)


@pytest.mark.pinned
def test_cpu_autocast_stays_near_the_original(policy: Policy, io: dict[str, Tensor]) -> None:
    one_step = 2**-7  # the logits are bfloat16 numbers: above 16 neighbours are 0.125 apart, and processors round apart
    with torch.autocast("cpu", torch.bfloat16):
        logits = policy(io["in.frames"], actions_of(io), io["in.text_embeddings"])
    for head, name in THEIR_HEADS.items():
        expected = io[f"cpu_bf16_autocast.logits.{name}"]
        torch.testing.assert_close(getattr(logits, head).float(), expected, atol=0.1, rtol=one_step)


def test_training_mode_uses_batch_statistics_as_the_original(checkpoint: Path, io: dict[str, Tensor]) -> None:
    policy = load_checkpoint(checkpoint).train()
    for module in policy.modules():
        if isinstance(module, MBConv):
            module.drop_probability = 0.0
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    assert_logits(policy, io, "train_nodrop.", 1e-3)
    first_norm = policy.image_tokenizer.get_submodule("encoder.0.1")
    torch.testing.assert_close(first_norm.running_mean, io["train_nodrop.bn0_running_mean_after"])
    torch.testing.assert_close(first_norm.running_var, io["train_nodrop.bn0_running_var_after"])


def test_inner_activations_match(policy: Policy, io: dict[str, Tensor]) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args, output: seen.__setitem__(name, output)

    hooks = [
        policy.image_tokenizer.get_submodule("encoder").register_forward_hook(keep("features")),
        policy.image_tokenizer.register_forward_hook(keep("img_tokens")),
        policy.layers[0].register_forward_hook(keep("transformer_layer0_out")),
        policy.layers[1].register_forward_hook(keep("transformer_layer1_out")),
    ]
    with torch.no_grad():
        policy(io["in.frames"], actions_of(io), io["in.text_embeddings"])
    for hook in hooks:
        hook.remove()
    out = policy.layout.out
    out_rows = io["act.transformer_layer1_out"][:, out :: policy.layout.tokens_per_timestep]
    torch.testing.assert_close(seen["features"], io["act.features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen["img_tokens"], io["act.img_tokens"].flatten(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen["transformer_layer0_out"], io["act.transformer_layer0_out"], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen["transformer_layer1_out"], out_rows, atol=1e-4, rtol=0)


def test_a_checkpoint_written_back_holds_the_same_tensors(checkpoint: Path, policy: Policy, tmp_path: Path) -> None:
    imported = import_checkpoint(checkpoint, tmp_path / "policy")
    written = export_checkpoint(imported, tmp_path / "original", global_step=10)
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    after = torch.load(written, weights_only=True)["state_dict"]
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    again = load_policy(import_checkpoint(written, tmp_path / "again")).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in policy.state_dict().items())


def test_gradients_match_the_original(policy: Policy, parity: Path, io: dict[str, Tensor]) -> None:
    from p2p.model.losses import policy_loss

    grads = load_file(parity / "grads.safetensors")
    mask = io["in.user_action_mask"] & io["in.valid_frame_mask"]
    actions = actions_of(io)
    policy.zero_grad()
    logits = policy(io["in.frames"], actions, io["in.text_embeddings"])
    policy_loss(logits, actions, mask, policy.config.action_space)["total"].backward()
    checked_full = 0
    for name, parameter in policy.named_parameters():
        original, gradient = original_name(name), parameter.grad
        assert gradient is not None, name
        torch.testing.assert_close(gradient.norm(), grads[f"norm.{original}"][0], rtol=1e-3, atol=1e-7, msg=name)
        if f"full.{original}" in grads:
            expected = grads[f"full.{original}"].reshape(gradient.shape)
            assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-8, name
            checked_full += 1
    policy.zero_grad()
    assert checked_full == sum(name.startswith("full.") for name in grads)
