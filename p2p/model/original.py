"""The original trainer's files: Lightning checkpoints with a model_config.yaml, read and written.

The table of names below is the whole difference between the two layouts; shapes differ only by
leading axes of one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2p.config import PolicyConfig, SamplingConfig, read_yaml
from p2p.model.policy import Policy
from p2p.model.weights import (
    WEIGHTS_NAME,
    build_policy,
    check_tensors,
    describe_names,
    load_policy,
    write_policy_folder,
)

IMAGE_COPY = "bc_transformer."  # the image tokenizer stands in the file a second time under this prefix

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


# ------------------------------------------------------------------ configuration


def config_from_original(path: Path) -> PolicyConfig:
    """Architecture of a model_config.yaml.

    Raises:
        ValueError: a setting is missing, or is one that the original could not have trained with.
    """
    values = read_yaml(path)

    def get(key: str, default: Any = ...) -> Any:
        node: Any = values
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                if default is not ...:
                    return default
                raise ValueError(f"{path}: {key} is missing; the file must be the model_config.yaml of the checkpoint")
            node = node[part]
        return node

    _check_original(get, path)
    tokenizer_type = get("shared.tokenizer.type")
    height, width = get("shared.frame_height"), get("shared.frame_width")
    patch = get("shared.tokenizer.vit_tokenizer_config.patch_size", 16)
    is_vit = tokenizer_type == "vit"
    num_patches = (height // patch) * (width // patch)
    text_shape = get("shared.text_tokenizer_config.text_embedding_shape")
    sampling = SamplingConfig(
        temperature=float(get("inference.sampling_temperature", 1.0)),
        top_p=get("policy_model.top_p", None),
        mouse_sampling=get("inference.mouse_sampling_approach", "truncated_normal"),
    )
    return PolicyConfig(
        dim=get("policy_model.transformer_dim"),
        num_layers=get("policy_model.n_transformer_layers"),
        num_heads=get("policy_model.n_q_head"),
        num_timesteps=get("shared.n_seq_timesteps"),
        attention_history=tuple(get("policy_model.attention_history_len")),
        frame_height=height,
        frame_width=width,
        image_encoder="vit" if is_vit else "efficientnet_b0",
        vit_patch_size=patch,
        num_image_tokens=num_patches if is_vit else get("shared.tokenizer.conv_tokenizer_config.num_tokens"),
        num_text_tokens=text_shape[0],
        text_dim=text_shape[1],
        num_thinking_tokens=get("policy_model.n_thinking_tokens"),
        num_sink_tokens=get("policy_model.n_kv_sink_tokens", 0),
        max_keys=get("shared.action_mapping.max_keys", 4),
        max_mouse_buttons=get("shared.action_mapping.max_mouse_keys", 2),
        sampling=sampling,
    )


def _check_original(get: Callable[..., Any], path: Path) -> None:
    q_heads, kv_heads = get("policy_model.n_q_head"), get("policy_model.n_kv_head")
    if kv_heads != q_heads:
        raise ValueError(
            f"{path}: policy_model.n_kv_head is {kv_heads}, n_q_head is {q_heads}; they must be equal, "
            f"the original knows no grouped queries. Is this the configuration of the checkpoint?"
        )
    dim, embed_dim = get("policy_model.transformer_dim"), get("policy_model.action_decoder.embed_dim", None)
    if embed_dim not in (None, dim):
        raise ValueError(
            f"{path}: policy_model.action_decoder.embed_dim is {embed_dim}; it must equal transformer_dim {dim}"
        )
    histories = get("policy_model.attention_history_len")
    num_layers, num_timesteps = get("policy_model.n_transformer_layers"), get("shared.n_seq_timesteps")
    if not isinstance(histories, list) or len(histories) != num_layers or max(histories) != num_timesteps:
        raise ValueError(
            f"{path}: policy_model.attention_history_len is {histories}; expected {num_layers} numbers "
            f"(n_transformer_layers) whose maximum is {num_timesteps} (shared.n_seq_timesteps)"
        )
    if get("policy_model.model_type", "dense") != "dense":
        raise ValueError(f"{path}: policy_model.model_type is {get('policy_model.model_type')}; only dense is known")
    tokenizer_type = get("shared.tokenizer.type")
    if tokenizer_type not in ("conv", "vit"):
        raise ValueError(f"{path}: shared.tokenizer.type is {tokenizer_type!r}; expected conv or vit")


def config_to_original(config: PolicyConfig) -> dict[str, Any]:
    """The settings of a model_config.yaml that fix the architecture."""
    if config.image_encoder == "small_cnn":
        raise ValueError(
            "the original knows no small_cnn image encoder; only efficientnet_b0 and vit can be written back"
        )
    is_vit = config.image_encoder == "vit"
    return {
        "shared": {
            "n_seq_timesteps": config.num_timesteps,
            "frame_height": config.frame_height,
            "frame_width": config.frame_width,
            "tokenizer": {
                "type": "vit" if is_vit else "conv",
                "conv_tokenizer_config": {"num_tokens": 1 if is_vit else config.num_image_tokens},
                "vit_tokenizer_config": {"patch_size": config.vit_patch_size},
            },
            "text_tokenizer_config": {"text_embedding_shape": [config.num_text_tokens, config.text_dim]},
            "action_mapping": {"max_keys": config.max_keys, "max_mouse_keys": config.max_mouse_buttons},
        },
        "policy_model": {
            "model_type": "dense",
            "transformer_dim": config.dim,
            "n_transformer_layers": config.num_layers,
            "n_q_head": config.num_heads,
            "n_kv_head": config.num_heads,
            "n_thinking_tokens": config.num_thinking_tokens,
            "n_kv_sink_tokens": config.num_sink_tokens,
            "attention_history_len": list(config.histories),
            "action_decoder": {
                "embed_dim": config.dim,
                "n_q_head": config.decoder_num_heads,
                "n_kv_head": config.decoder_num_heads,
                "n_transformer_layers": config.decoder_num_layers,
            },
            "top_p": config.sampling.top_p,
        },
        "inference": {
            "sampling_temperature": config.sampling.temperature,
            "mouse_sampling_approach": config.sampling.mouse_sampling,
        },
    }


# ------------------------------------------------------------------ reading


def import_checkpoint(checkpoint: str | Path, out: str | Path, config_path: str | Path | None = None) -> Path:
    """Turn an original .ckpt into a policy folder.

    The file is mapped, never loaded: optimizer states are not read, and each tensor is written before
    the next is touched. Types stay as they are in the file.

    Args:
        config_path: the model_config.yaml; default: the one beside the checkpoint.

    Raises:
        ValueError: a file is missing or unreadable, or weights and configuration do not fit.
    """
    config, tensors = read_checkpoint(checkpoint, config_path)
    return write_policy_folder(config, tensors, out)


def load_checkpoint(
    checkpoint: str | Path, config_path: str | Path | None = None, dtype: torch.dtype | None = None
) -> Policy:
    """A policy straight from an original .ckpt, in evaluation mode."""
    config, tensors = read_checkpoint(checkpoint, config_path)
    return build_policy(config, tensors, where=str(checkpoint), dtype=dtype)


def read_checkpoint(
    checkpoint: str | Path, config_path: str | Path | None = None
) -> tuple[PolicyConfig, dict[str, Tensor]]:
    """Configuration and tensors under our names and shapes, mapped from the file."""
    checkpoint = Path(checkpoint)
    config_path = Path(config_path) if config_path else checkpoint.parent / "model_config.yaml"
    if not checkpoint.is_file():
        raise ValueError(f"{checkpoint}: no such checkpoint file")
    if not config_path.is_file():
        raise ValueError(f"{config_path}: no such file; name the checkpoint's model_config.yaml with --config")
    config = config_from_original(config_path)
    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file; all mean the same here
        raise ValueError(
            f"{checkpoint}: not a checkpoint that can be read with weights_only ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Is the download complete?"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{checkpoint}: holds no state_dict of tensors; expected a Lightning checkpoint")
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
    lines = describe_names("missing", missing, unexpected) + describe_names("unexpected", unexpected, missing)
    if lines:
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
    for name in [name for name in state if name.startswith(IMAGE_COPY + "image_tokenizer.")]:
        first, copy = name.removeprefix(IMAGE_COPY), result.pop(name)
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
    return state | {IMAGE_COPY + name: t for name, t in state.items() if name.startswith("image_tokenizer.")}


def is_stored_as_bf16(name: str) -> bool:
    """Whether the original keeps this tensor of ours in bfloat16."""
    return _STORED_AS_BF16.fullmatch(name) is not None


def _narrow_where_lossless(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the original keeps in bfloat16 become so when nothing is lost by it."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32 and is_stored_as_bf16(name):
            narrow = tensor.to(torch.bfloat16)
            result[name] = narrow if torch.equal(narrow.float(), tensor) else tensor
    return result


def export_checkpoint(policy_folder: str | Path, out: str | Path, global_step: int = 0) -> Path:
    """Write a policy folder as `checkpoint-step=XXXXXXXX.ckpt` + model_config.yaml into the folder `out`."""
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    policy = load_policy(policy_folder)  # refuses what does not fit
    settings = config_to_original(policy.config)
    state = rename_to_original(_narrow_where_lossless(load_file(Path(policy_folder) / WEIGHTS_NAME)))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"checkpoint-step={global_step:08d}.ckpt"
    content = {
        "epoch": 0,
        "global_step": global_step,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    torch.save(content, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)
    OmegaConf.save(OmegaConf.create(settings), out / "model_config.yaml")
    return path
