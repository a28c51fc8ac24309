"""A released checkpoint that came over the Hub's API gives the logits that it should."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from p2p.cli import main
from p2p.model import load_policy
from tests.hub.stand_in import HubStandIn
from tests.hub.test_download import MODELS, MakeHub


def serve_fixture(make_hub: MakeHub, folder: Path) -> HubStandIn:
    names = ("checkpoint-step=00000010.ckpt", "model_config.yaml", "action_mapping.json")
    return make_hub({MODELS: {f"150M/{name}": (folder / name).read_bytes() for name in names}})


def test_an_imported_download_computes_the_reference_logits(
    make_hub: MakeHub, tmp_path: Path, shared_fixtures: Path
) -> None:
    serve_fixture(make_hub, shared_fixtures / "parity_tiny")
    assert main(["download", "model", "150M", "--import", "--output", str(tmp_path)]) == 0
    reference = load_file(shared_fixtures / "parity_tiny" / "io.safetensors")
    policy = load_policy(tmp_path / "150M" / "policy").eval()
    actions = torch.cat(
        [reference[f"in.{head}"] for head in ("keys", "mouse_buttons", "mouse_delta_x", "mouse_delta_y")], -1
    )
    with torch.no_grad():
        logits = policy(reference["in.frames"], actions, reference["in.text_embeddings"])
    for ours, theirs in (
        (logits.keys, "keys"),
        (logits.buttons, "mouse_buttons"),
        (logits.mouse_x, "mouse_delta_x"),
        (logits.mouse_y, "mouse_delta_y"),
    ):
        torch.testing.assert_close(ours, reference[f"logits.{theirs}"], rtol=0, atol=1e-4)


def test_a_checkpoint_without_a_configuration_is_imported_by_what_its_tensors_tell(
    make_hub: MakeHub, tmp_path: Path, shared_fixtures: Path
) -> None:
    content = (shared_fixtures / "parity_tiny" / "checkpoint-step=00000010.ckpt").read_bytes()
    make_hub({MODELS: {"150M/checkpoint-step=00000010.ckpt": content}})
    assert main(["download", "model", "150M", "--import", "--output", str(tmp_path)]) == 0
    config = load_policy(tmp_path / "150M" / "policy").config
    assert (config.dim, config.num_layers, config.num_timesteps) == (64, 2, 200)
