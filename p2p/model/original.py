"""The original trainer's files: Lightning checkpoints with a model_config.yaml, read and written.

The table of names below is the whole difference between the two layouts; shapes differ only by
leading axes of one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from p2p import files
from p2p.config import PolicyConfig
from p2p.model.original_config import (
    check_told,
    config_from_original,
    config_to_original,
    inferred_config,
    told_by_tensors,
)
from p2p.model.original_file import IMAGE_COPY, load_state_dict
from p2p.model.policy import Policy
from p2p.model.weights import (
    WEIGHTS_NAME,
    build_policy,
    check_tensors,
    describe_names,
    read_policy_folder,
    require_finite,
    write_policy_folder,
)

log = logging.getLogger(__name__)

CONFIG_NAME = "model_config.yaml"

# (pattern of our name, original name); tried in order, whole names only
_NAMES = (
    (r"image_tokenizer\.encoder\.(.*)", r"image_tokenizer.efficientnet_preprocess.\1"),
    (r"image_tokenizer\.projection\.(.*)", r"image_tokenizer.mlp.0.\1"),
    (r"image_tokenizer\.norm\.(.*)", r"image_tokenizer.mlp.1.\1"),
    (r"text_projection\.weight", r"bc_transformer.text_embed_mlp.weight"),
    (r"no_text", r"bc_transformer.text_embedding_for_no_text_input"),
    (r"text_position", r"bc_transformer.text_pos_tokens"),
    (r"image_position", r"bc_transformer.img_pos_tokens"),
    (r"thinking", r"bc_transformer.thinking_pos_tokens"),
    (r"out_token", r"bc_transformer.action_out_token"),
    (r"action_position", r"bc_transformer.action_pos_tokens"),
    (r"decoder\.position", r"bc_transformer.action_decoder.pos_tokens"),
    (r"decoder\.input_projection\.(.*)", r"bc_transformer.action_decoder.input_proj.\1"),
    (r"action_embedding\.keys\.(.*)", r"key_action_embedding.\1"),
    (r"action_embedding\.buttons\.(.*)", r"mouse_button_embedding.\1"),
    (r"action_embedding\.mouse_([xy])\.(.*)", r"mouse_delta_\1_embedding.\2"),
    (r"heads\.keys\.(.*)", r"keyboard_out_logits.\1"),
    (r"heads\.buttons\.(.*)", r"mouse_button_out_logits.\1"),
    (r"heads\.mouse_([xy])\.(.*)", r"mouse_delta_\1_out_logits.\2"),
)
_LAYER_PREFIXES = (
    (r"layers\.", "bc_transformer._transformer.transformer_layers."),
    (r"decoder\.layers\.", "bc_transformer.action_decoder.transformer_layers."),
)
_LAYER_NAMES = (
    (r"attention\.qkv\.weight", "self_attention.c_attn.weight"),
    (r"attention\.out\.weight", "self_attention.c_proj.weight"),
    (r"attention\.(.*)", r"self_attention.\1"),
    (r"attention_norm\.scale", "self_attention_norm.scale"),
    (r"(ffn.*)", r"\1"),
)
# no leading axis of one is added to these: the decoder's position tokens are [9, d] in the file
_WITHOUT_LEADING_AXIS = {"decoder.position"}
_STORED_AS_BF16 = re.compile(r".*(_sinks|position)|no_text|thinking|out_token|action_embedding\..*")
IMAGE_TOKENIZER = "image_tokenizer."
_PATCH_WEIGHT = "image_tokenizer.projection."


def original_name(name: str) -> str:
    """The original's name of one of our tensors."""
    for prefix, original_prefix in _LAYER_PREFIXES:
        match = re.fullmatch(prefix + r"(\d+)\.(.*)", name)
        if match:
            return f"{original_prefix}{match[1]}.{_substitute(match[2], _LAYER_NAMES)}"
    return _substitute(name, _NAMES)


def _substitute(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(f"no original name for {name}")


def original_shape(name: str, shape: torch.Size) -> tuple[int, ...]:
    """The original's shape of one of our tensors: tokens [n, d] are [1, n, d] there."""
    is_token = "." not in name
    return (1, *shape) if is_token and name not in _WITHOUT_LEADING_AXIS else tuple(shape)


# ------------------------------------------------------------------ reading


def import_checkpoint(
    checkpoint: str | Path, out: str | Path, config_path: str | Path | None = None, config: PolicyConfig | None = None
) -> Path:
    """Turn an original .ckpt into a policy folder.

    The file is mapped, never loaded: optimizer states are not read, and no tensor is copied. Types stay as they are
    in the file.

    Args:
        config_path: the original's YAML; default: the model_config.yaml beside the checkpoint, where there is one.
        config: the architecture itself, for example of a recipe; then no file is read. With neither, the
            architecture is the one that the tensors tell, and what they cannot tell is assumed and logged.

    Raises:
        ValueError: a file is missing or unreadable, or weights and configuration do not fit.
    """
    config, tensors = read_checkpoint(checkpoint, config_path, config)
    require_finite(tensors, str(checkpoint))
    return write_policy_folder(config, tensors, out)


def load_checkpoint(
    checkpoint: str | Path, config_path: str | Path | None = None, dtype: torch.dtype | None = None
) -> Policy:
    """A policy straight from an original .ckpt, in evaluation mode."""
    config, tensors = read_checkpoint(checkpoint, config_path)
    return build_policy(config, tensors, where=str(checkpoint), dtype=dtype)


def read_checkpoint(
    checkpoint: str | Path, config_path: str | Path | None = None, config: PolicyConfig | None = None
) -> tuple[PolicyConfig, dict[str, Tensor]]:
    """Configuration and tensors under our names and shapes, mapped from the file; arguments as `import_checkpoint`."""
    checkpoint = Path(checkpoint)
    beside = checkpoint.parent / CONFIG_NAME
    if config is None and (config_path is not None or beside.exists()):
        yaml_path = Path(config_path) if config_path is not None else beside
        config, source, is_yaml = config_from_original(yaml_path), str(yaml_path), True
    else:
        source, is_yaml = "the recipe", False
    state = load_state_dict(checkpoint)
    told = told_by_tensors({name: tuple(tensor.shape) for name, tensor in state.items()}, str(checkpoint))
    if config is None:
        config, line = inferred_config(told, str(checkpoint))
        log.warning("%s: no configuration; %s", checkpoint, line)
    else:
        check_told(config, told, str(checkpoint), source, is_yaml)
    return config, rename_from_original(config, state, str(checkpoint))


def rename_from_original(config: PolicyConfig, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our names and shapes for an original state_dict; refuses what does not fit the configuration."""
    with torch.device("meta"):
        expected = Policy(config).state_dict()
    state = _without_image_copy(state, where)
    originals = {name: original_name(name) for name in expected}
    if config.image_encoder == "vit":
        originals |= _patch_names(expected, state)
    missing = [original for original in originals.values() if original not in state]
    unexpected = [name for name in state if name not in set(originals.values())]
    if missing or unexpected:
        few, others = missing[:12], unexpected[:12]
        lines = describe_names("missing", few, unexpected[:1000]) + describe_names("unexpected", others, missing)
        raise ValueError(
            f"{where}: {len(missing)} keys missing, {len(unexpected)} unexpected; is the model_config.yaml "
            f"that of this checkpoint?\n  " + "\n  ".join(lines[:12])
        )
    tensors = {}
    for name, original in originals.items():
        tensor = state[original]
        if tuple(tensor.shape) == original_shape(name, expected[name].shape) or name.startswith(_PATCH_WEIGHT):
            tensor = tensor.reshape(expected[name].shape) if tensor.numel() == expected[name].numel() else tensor
        tensors[name] = tensor
    check_tensors(expected, tensors, where)
    return tensors


def _without_image_copy(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Drop the second copy of the image tokenizer; the two must agree."""
    result = dict(state)
    for name in [name for name in state if name.startswith(IMAGE_COPY)]:
        first, copy = IMAGE_TOKENIZER + name.removeprefix(IMAGE_COPY), result.pop(name)
        if first not in result:
            result[first] = copy
        elif result[first].data_ptr() != copy.data_ptr() and not torch.equal(result[first], copy):
            raise ValueError(f"{where}: {first} and {name} differ; they are one tensor in the original")
    return result


def _patch_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """The patch tokenizer has one weight and one bias, found by size: no released file fixes their names."""
    names = {}
    for name in (n for n in expected if n.startswith(_PATCH_WEIGHT)):
        found = [
            key
            for key, tensor in state.items()
            if key.startswith("image_tokenizer.") and tensor.numel() == expected[name].numel()
        ]
        if len(found) == 1:
            names[name] = found[0]
    return names


# ------------------------------------------------------------------ writing


def rename_to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original's state_dict, the image tokenizer under both names (one storage)."""
    state = {
        original_name(name): tensor.detach().reshape(original_shape(name, tensor.shape))
        for name, tensor in tensors.items()
    }
    copies = {name.removeprefix(IMAGE_TOKENIZER): t for name, t in state.items() if name.startswith(IMAGE_TOKENIZER)}
    return state | {IMAGE_COPY + name: t for name, t in copies.items()}


def is_stored_as_bf16(name: str) -> bool:
    """Whether the original keeps this tensor of ours in bfloat16."""
    return _STORED_AS_BF16.fullmatch(name) is not None


def rounded_by_the_original(tensors: Mapping[str, Tensor]) -> list[str]:
    """Our names of the tensors that lose digits when the original loads them, because it keeps them in bfloat16."""
    return [name for name, tensor in tensors.items() if is_stored_as_bf16(name) and not _fits_bf16(tensor)]


def _fits_bf16(tensor: Tensor) -> bool:
    return torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor)


def _narrow_where_lossless(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the original keeps in bfloat16 become so when nothing is lost by it."""
    return {
        name: t.to(torch.bfloat16) if t.dtype == torch.float32 and is_stored_as_bf16(name) and _fits_bf16(t) else t
        for name, t in tensors.items()
    }


def export_checkpoint(policy_folder: str | Path, out: str | Path, global_step: int = 0) -> Path:
    """Write a policy folder as `checkpoint-step=XXXXXXXX.ckpt` + model_config.yaml into the folder `out`.

    Raises:
        ValueError: naming a setting of the policy that the original cannot express.
    """
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    policy = read_policy_folder(policy_folder)  # refuses what does not fit
    settings = OmegaConf.to_yaml(OmegaConf.create(config_to_original(policy.config)))
    tensors = load_file(Path(policy_folder) / WEIGHTS_NAME)
    rounded = rounded_by_the_original(tensors)
    if rounded:
        log.warning(
            "%d small tensors (tokens, embeddings, sinks) hold more than bfloat16 does, in which the original keeps "
            "them: its logits will differ from this policy's by about 0.01",
            len(rounded),
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"checkpoint-step={global_step:08d}.ckpt"
    content = {
        "epoch": 0,
        "global_step": global_step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": rename_to_original(_narrow_where_lossless(tensors)),
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    files.write_file(out / CONFIG_NAME, settings.encode())
    with files.new_file(path) as file:
        torch.save(content, file)
    return path
