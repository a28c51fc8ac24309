"""The weights that a run starts from: a policy folder, or random ones with ImageNet weights in the image encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from p2p.model.original_file import load_tensors
from p2p.model.policy import Policy
from p2p.model.weights import check_tensors, read_policy_folder, require_finite
from p2p.recipe import Recipe

log = logging.getLogger(__name__)

# torchvision's EfficientNet_B0_Weights.IMAGENET1K_V1, as it lies in torch's cache once it was downloaded.
IMAGENET_FILE = "efficientnet_b0_rwightman-7f5810bc.pth"
_TORCHVISION_PREFIX = "features."
_ENCODER_PREFIX = "image_tokenizer.encoder."


def build_policy(recipe: Recipe, meta: bool) -> Policy:
    """The policy with its start weights; on the meta device it gets them from process 0 when it is sharded."""
    if meta:
        with torch.device("meta"):
            return Policy(recipe.policy)
    torch.manual_seed(recipe.seed)
    policy = Policy(recipe.policy)
    policy.load_state_dict(start_tensors(recipe, policy.state_dict()), strict=False)
    return policy


def check_start(recipe: Recipe) -> None:
    """Raises ValueError when the start weights that the recipe names are missing or do not fit."""
    if recipe.init_from is not None or recipe.image_weights is not None:
        with torch.device("meta"):
            expected = Policy(recipe.policy).state_dict()
        start_tensors(recipe, expected)


def start_tensors(recipe: Recipe, expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors that replace random ones, by the policy's names; `expected` has all names and shapes."""
    if recipe.init_from is not None:
        tensors = read_policy_folder(recipe.init_from).state_dict()
        check_tensors(expected, tensors, f"init_from {recipe.init_from}")
        return tensors
    if recipe.policy.image_encoder != "efficientnet_b0":
        return {}
    path = (
        Path(recipe.image_weights)
        if recipe.image_weights
        else Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
    )
    if recipe.image_weights is None and not path.is_file():
        log.warning(
            "no ImageNet weights for the image encoder (image_weights is not set, and %s is not there): it starts at "
            "random and has to learn to see from the recordings alone, which costs updates and quality",
            path,
        )
        return {}
    return image_tensors(path, expected)


def image_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors out of torchvision's EfficientNet-B0 weights (its first six stages).

    Raises:
        ValueError: when the file is missing, is none of such weights, or holds numbers that are not finite.
    """
    if not path.exists():
        raise ValueError(f"image_weights is {str(path)!r}: no such file; expected torchvision's {IMAGENET_FILE}")
    try:
        stored = load_tensors(path)
    except ValueError as error:
        raise ValueError(f"image_weights {error}") from error
    named = {
        _ENCODER_PREFIX + name.removeprefix(_TORCHVISION_PREFIX): tensor
        for name, tensor in stored.items()
        if name.startswith(_TORCHVISION_PREFIX)
    }
    wanted = {name: tensor for name, tensor in expected.items() if name.startswith(_ENCODER_PREFIX)}
    tensors = {name: tensor for name, tensor in named.items() if name in wanted}
    check_tensors(wanted, tensors, f"image_weights {path}")
    require_finite(tensors, f"image_weights {path}")
    return tensors
