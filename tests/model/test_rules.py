"""Masks, rotation, sampling, sizes and names against the reference data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p.config import PolicyConfig
from p2p.model import Policy
from p2p.model.layers import rope_theta, rotate, rotation
from p2p.model.mask import TokenLayout
from p2p.model.original import is_stored_as_bf16, original_name, rename_to_original
from p2p.model.sampling import sample_from_logits
from tests.masks import dense_mask

RECIPES = {"150M": (1024, 10), "300M": (1024, 20), "600M": (2048, 9), "1200M": (2048, 22)}
PARTS = {
    "image_tokenizer.efficientnet_b0.features[0:6]": r"image_tokenizer\.encoder\..*",
    "image_tokenizer.mlp (Linear+LayerNorm)": r"image_tokenizer\.(projection|norm)\..*",
    "position/marker tokens of the transformer": r"[a-z_]*",
    "transformer layers": r"layers\..*",
    "text_embed_mlp": r"text_projection\..*",
    "action_decoder": r"decoder\..*",
    "action input embeddings": r"action_embedding\..*",
    "action output heads": r"heads\..*",
}


@pytest.mark.parametrize(
    ("name", "layout", "num_timesteps", "history", "num_sinks"),
    [
        ("tiny_T6_hist6", TokenLayout(1, 1, 1, 8), 6, 6, 0),
        ("hidden_T6_hist3_sink1_think2", TokenLayout(1, 1, 2, 8), 6, 3, 1),
        ("hidden_T6_hist6_sink1_think2", TokenLayout(1, 1, 2, 8), 6, 6, 1),
        ("T4_img4_txt2_think0_hist1_sink2", TokenLayout(2, 4, 0, 8), 4, 1, 2),
    ],
)
def test_dense_masks(
    shared_fixtures: Path, name: str, layout: TokenLayout, num_timesteps: int, history: int, num_sinks: int
) -> None:
    expected = np.load(shared_fixtures / "mask_case" / "masks.npz")[name]
    assert (dense_mask(layout, num_timesteps, history, num_sinks).numpy() == expected).all()


def test_rotation(shared_fixtures: Path) -> None:
    case = {k: torch.from_numpy(v) for k, v in np.load(shared_fixtures / "mask_case" / "rope.npz").items()}
    head_dim = case["x"].shape[-1]
    torch.testing.assert_close(rope_theta(head_dim), case["theta"], rtol=1e-6, atol=0)
    for positions in (case["pos"], case["pos"].double()):
        table = rotation(positions, head_dim)
        torch.testing.assert_close(torch.stack(table, dim=-1), case["cache_rows"], rtol=0, atol=2e-4)
        torch.testing.assert_close(rotate(case["x"], table), case["y"], rtol=0, atol=5e-4)
    exact = rotation(case["pos"], head_dim)
    torch.testing.assert_close(torch.stack(exact, dim=-1), case["cache_rows"], rtol=0, atol=1e-6)


def test_sampling(shared_fixtures: Path) -> None:
    cases = np.load(shared_fixtures / "sampling_case" / "sampling.npz")
    names = [name.removesuffix(".idx") for name in cases.files if name.endswith(".idx")]
    assert len(names) == 60
    for name in names:
        match = re.fullmatch(r"V\d+_temp([\d.]+)_topp(.*)", name)
        assert match
        top_p = None if match[2] == "None" else float(match[2])
        logits, uniforms = (torch.from_numpy(cases[f"{name}.{part}"]) for part in ("logits", "u"))
        drawn = sample_from_logits(logits, uniforms, float(match[1]), top_p).numpy()
        rows = np.arange(len(drawn)) != 3  # equal logits: under top_p their order is the sort's own
        assert (drawn[rows] == cases[f"{name}.idx"][rows]).all(), name


def test_padded_classes_change_nothing() -> None:
    logits, uniforms = torch.randn(500, 4), torch.rand(500)
    padded = torch.cat([logits, torch.full((500, 19), -torch.inf)], dim=1)
    for top_p in (None, 0.8):
        expected = sample_from_logits(logits, uniforms, 0.9, top_p)
        got = sample_from_logits(padded, uniforms, 0.9, top_p, num_choices=torch.full((500,), 4))
        assert torch.equal(got, expected)


def test_greedy_takes_the_most_probable() -> None:
    logits = torch.randn(50, 20)
    assert torch.equal(sample_from_logits(logits, torch.rand(50), greedy=True), logits.argmax(-1))


@pytest.mark.parametrize("size", RECIPES)
def test_parameters_by_part_and_every_tensor(shared_fixtures: Path, size: str) -> None:
    reference = json.loads((shared_fixtures / "weights_layout" / f"state_dict_{size}.json").read_text())
    dim, num_layers = RECIPES[size]
    with torch.device("meta"):
        policy = Policy(PolicyConfig(dim=dim, num_layers=num_layers))
    counts = {
        part: sum(p.numel() for name, p in policy.named_parameters() if re.fullmatch(pattern, name))
        for part, pattern in PARTS.items()
    }
    assert counts == reference["by_module"]
    assert sum(p.numel() for p in policy.parameters()) == reference["total_trainable_params"]
    ours: dict[str, Tensor] = rename_to_original(policy.state_dict())
    listed = reference["keys"]
    assert {name: list(t.shape) for name, t in ours.items()} == {name: e["shape"] for name, e in listed.items()}
    narrow = {original_name(name) for name in policy.state_dict() if is_stored_as_bf16(name)}
    assert narrow == {name for name, e in listed.items() if e["dtype"] == "bfloat16"}
