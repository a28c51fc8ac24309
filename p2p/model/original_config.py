"""The architecture of the original's checkpoints: read from its YAML, told by its tensors, written for it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.config import PolicyConfig, SamplingConfig
from p2p.plain_yaml import MAX_BYTES, parse_yaml

_MAX_DIM, _MAX_LAYERS, _MAX_TOKENS, _MAX_TIMESTEPS, _MAX_SIDE = 1 << 16, 1 << 10, 1 << 12, 1 << 16, 1 << 12
_ENVIRONMENT = re.compile(rb"\$\{[^{}\n]*\}")
ENCODER_CHANNELS, ENCODER_REDUCTION = 112, 16  # EfficientNet-B0 features[0:6]
TEXT_TOKENIZER = "gemma"
DECODER_LAYERS, DECODER_HEADS = 3, 8

_DEFAULTS: dict[str, Any] = {  # of the original, for what its YAML leaves out
    "policy_model.n_kv_sink_tokens": 1,
    "policy_model.n_thinking_tokens": 1,
    "inference.mouse_sampling_approach": "mean",
    "inference.sampling_temperature": 1.0,
    "shared.n_seq_timesteps": 3,
    "shared.text_tokenizer_config.text_embedding_shape": [1, 1],
}

# What tensors tell, with the name of the setting in the original's YAML and in a recipe.
_TOLD = {
    "dim": ("policy_model.transformer_dim", "policy.dim"),
    "num_layers": ("policy_model.n_transformer_layers", "policy.num_layers"),
    "num_heads": ("policy_model.n_q_head", "policy.num_heads"),
    "num_image_tokens": ("shared.tokenizer", "policy.num_image_tokens"),
    "num_text_tokens": ("shared.text_tokenizer_config.text_embedding_shape[0]", "policy.num_text_tokens"),
    "text_dim": ("shared.text_tokenizer_config.text_embedding_shape[1]", "policy.text_dim"),
    "num_thinking_tokens": ("policy_model.n_thinking_tokens", "policy.num_thinking_tokens"),
    "num_sink_tokens": ("policy_model.n_kv_sink_tokens", "policy.num_sink_tokens"),
    "num_action_slots": ("2 + shared.action_mapping.max_keys + max_mouse_keys", "2 + max_keys + max_mouse_buttons"),
    "num_cells": ("shared.frame_height / 16 * frame_width / 16", "policy.frame_height / 16 * frame_width / 16"),
}


@dataclass(frozen=True)
class Told:
    """A number that a tensor's shape fixes."""

    value: int
    tensor: str


# ------------------------------------------------------------------ from YAML


class _Settings:
    """A model_config.yaml: `${NAME}`, a variable of the environment there, is empty text here, whatever it is."""

    def __init__(self, path: Path):
        self.path, self._values = path, _read_yaml(path)

    def get(self, key: str, default: Any = ...) -> Any:
        node: Any = self._values
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                default = _DEFAULTS.get(key, default)
                if default is ...:
                    raise gate.Refused(f"{self.path}: {key} is missing, and the original has no default for it")
                return default
            node = node[part]
        return node

    def whole(self, key: str, low: int, high: int, default: Any = ...) -> int:
        return gate.whole_number(self.get(key, default), f"{self.path}: {key}", low, high)

    def choice(self, key: str, choices: tuple[str, ...], default: Any = ...) -> str:
        value = self.get(key, default)
        if value not in choices:
            raise gate.Refused(f"{self.path}: {key} is {gate.shown(value)}; expected {' or '.join(choices)}")
        return str(value)

    def number(self, key: str, default: Any = ...) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise gate.Refused(f"{self.path}: {key} is {gate.shown(value)}; expected a number")
        return float(value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = gate.read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise gate.Refused(f"{path}: no such file; name the original's model_config.yaml or SIZE.yaml") from None
    return gate.mapping(parse_yaml(_ENVIRONMENT.sub(b"", data), str(path)), f"{path}: the content")


def config_from_original(path: str | Path) -> PolicyConfig:
    """Architecture of a model_config.yaml, or of the original's config/policy_model/SIZE.yaml.

    Unknown keys are ignored, missing ones have the original's defaults.

    Raises:
        ValueError: it is not readable, a setting is missing that has no default, or is one that the original could
            not have trained with.
    """
    settings = _Settings(Path(path))
    dim = settings.whole("policy_model.transformer_dim", 1, _MAX_DIM)
    heads = settings.whole("policy_model.n_q_head", 1, _MAX_DIM)
    num_timesteps = settings.whole("shared.n_seq_timesteps", 1, _MAX_TIMESTEPS)
    num_layers = settings.whole("policy_model.n_transformer_layers", 1, _MAX_LAYERS)
    _check_without_freedom(settings, dim, heads)
    try:
        return PolicyConfig(
            dim=dim,
            num_layers=num_layers,
            num_heads=heads,
            num_timesteps=num_timesteps,
            attention_history=_histories(settings, num_layers, num_timesteps),
            num_thinking_tokens=settings.whole("policy_model.n_thinking_tokens", 0, _MAX_TOKENS),
            num_sink_tokens=settings.whole("policy_model.n_kv_sink_tokens", 0, _MAX_TOKENS),
            max_keys=settings.whole("shared.action_mapping.max_keys", 1, 6, 4),
            max_mouse_buttons=settings.whole("shared.action_mapping.max_mouse_keys", 1, 3, 2),
            sampling=_sampling(settings),
            **_text(settings),
            **_image(settings),
        )
    except gate.Refused:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_without_freedom(settings: _Settings, dim: int, heads: int) -> None:
    """Settings of which the original accepts one value only."""
    for key, expected, why in (
        ("policy_model.n_kv_head", heads, f"n_q_head is {heads}; they must be equal, it knows no grouped queries"),
        ("policy_model.action_decoder.embed_dim", dim, f"it must equal transformer_dim {dim}"),
        ("policy_model.model_type", "dense", "only dense is known"),
    ):
        value = settings.get(key, expected)
        if value != expected:
            raise gate.Refused(f"{settings.path}: {key} is {gate.shown(value)}, {why}")


def _histories(settings: _Settings, num_layers: int, num_timesteps: int) -> tuple[int, ...]:
    key = "policy_model.attention_history_len"
    histories = settings.get(key)
    fits = isinstance(histories, list) and len(histories) == num_layers
    if fits:
        fits = max(gate.whole_number(h, f"{settings.path}: {key}", 0, _MAX_TIMESTEPS) for h in histories) == (
            num_timesteps
        )
    if not fits:
        raise gate.Refused(
            f"{settings.path}: {key} is {gate.shown(histories)}; expected {num_layers} numbers "
            f"(n_transformer_layers) whose maximum is {num_timesteps} (shared.n_seq_timesteps)"
        )
    return tuple(histories)


def _sampling(settings: _Settings) -> SamplingConfig:
    return SamplingConfig(
        temperature=settings.number("inference.sampling_temperature"),
        top_p=None if settings.get("policy_model.top_p", None) is None else settings.number("policy_model.top_p"),
        mouse_sampling=settings.choice(
            "inference.mouse_sampling_approach", ("truncated_normal", "mean", "conservative")
        ),
    )


def _text(settings: _Settings) -> dict[str, Any]:
    key = "shared.text_tokenizer_config.text_embedding_shape"
    shape = gate.sequence(settings.get(key), f"{settings.path}: {key}", 2)
    if len(shape) != 2:
        raise gate.Refused(f"{settings.path}: {key} is {shape}; expected two numbers, tokens and width")
    return {
        "num_text_tokens": gate.whole_number(shape[0], f"{settings.path}: {key}[0]", 0, _MAX_TOKENS),
        "text_dim": gate.whole_number(shape[1], f"{settings.path}: {key}[1]", 1, _MAX_DIM),
    }


def _image(settings: _Settings) -> dict[str, Any]:
    is_vit = settings.choice("shared.tokenizer.type", ("conv", "vit")) == "vit"
    height, width = (settings.whole(f"shared.frame_{side}", 1, _MAX_SIDE) for side in ("height", "width"))
    patch = settings.whole("shared.tokenizer.vit_tokenizer_config.patch_size", 1, _MAX_SIDE, 16)
    num_patches = (height // patch) * (width // patch)
    conv_tokens = "shared.tokenizer.conv_tokenizer_config.num_tokens"
    return {
        "frame_height": height,
        "frame_width": width,
        "image_encoder": "vit" if is_vit else "efficientnet_b0",
        "vit_patch_size": patch,
        "num_image_tokens": num_patches if is_vit else settings.whole(conv_tokens, 1, _MAX_TOKENS),
    }


# ------------------------------------------------------------------ from tensors

_MAIN_LAYERS = "bc_transformer._transformer.transformer_layers."
_SINKS = f"{_MAIN_LAYERS}0.self_attention.k_sinks"


def told_by_tensors(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Told]:
    """What the shapes of an original state_dict say of the architecture, by the keys of `_TOLD`.

    Raises:
        ValueError: a tensor that every such state_dict has is missing, has another number of axes, or is too large.
    """

    def told(tensor: str, axis: int, num_axes: int, low: int, high: int) -> Told:
        shape = shapes.get(tensor)
        if shape is None:
            close = difflib.get_close_matches(tensor, list(shapes)[:_MAX_TOKENS], n=1)
            nearest = f" (nearest: {close[0]})" if close else ""
            raise gate.Refused(f"{where}: missing: {tensor}{nearest}; expected a checkpoint of the original trainer")
        if len(shape) != num_axes:
            raise gate.Refused(f"{where}: {tensor} has the shape {list(shape)}; expected {num_axes} axes")
        return Told(gate.whole_number(shape[axis], f"{where}: axis {axis} of {tensor}", low, high), tensor)

    def tokens(name: str) -> Told:
        return told(f"bc_transformer.{name}", 1, 3, 0, _MAX_TOKENS)

    dim = told("key_action_embedding.weight", 1, 2, 1, _MAX_DIM)
    indices = {name[len(_MAIN_LAYERS) :].partition(".")[0] for name in shapes if name.startswith(_MAIN_LAYERS)}
    num_layers = gate.whole_number(len(indices), f"{where}: the number of layers", 1, _MAX_LAYERS)
    result = {
        "dim": dim,
        "num_layers": Told(num_layers, f"{_MAIN_LAYERS}*"),
        "num_image_tokens": tokens("img_pos_tokens"),
        "num_text_tokens": tokens("text_pos_tokens"),
        "num_thinking_tokens": tokens("thinking_pos_tokens"),
        "num_action_slots": tokens("action_pos_tokens"),
        "num_sink_tokens": Told(0, "no k_sinks"),
    }
    if _SINKS in shapes:
        result["num_sink_tokens"] = told(_SINKS, 2, 4, 0, _MAX_TOKENS)
        result["num_heads"] = told(_SINKS, 1, 4, 1, _MAX_DIM)
    if "bc_transformer.text_embed_mlp.weight" in shapes:
        result["text_dim"] = told("bc_transformer.text_embed_mlp.weight", 1, 2, 1, _MAX_DIM)
    if any(name.startswith("image_tokenizer.efficientnet_preprocess.") for name in shapes):
        features = told("image_tokenizer.mlp.0.weight", 1, 2, 1, ENCODER_CHANNELS * _MAX_SIDE**2)
        result["num_cells"] = Told(features.value // ENCODER_CHANNELS, features.tensor)
    return result


def inferred_config(told: Mapping[str, Told], where: str) -> tuple[PolicyConfig, str]:
    """The architecture where no configuration is given, and one line that says what was told and what assumed.

    Raises:
        ValueError: what the tensors tell is no architecture, or leaves a size open that cannot be assumed.
    """
    default = PolicyConfig()
    values = {key: entry.value for key, entry in told.items() if key not in ("num_cells", "num_action_slots")}
    side = math.isqrt(told["num_cells"].value) if "num_cells" in told else 0
    if side == 0 or side**2 != told["num_cells"].value:
        raise gate.Refused(f"{where}: its tensors do not tell the size of the frames; name its --config or a --recipe")
    values |= {"frame_height": side * ENCODER_REDUCTION, "frame_width": side * ENCODER_REDUCTION}
    slots = told["num_action_slots"].value
    keys, buttons = slots - 2 - default.max_mouse_buttons, default.max_mouse_buttons
    assumed = {"frames": "square", "keys and buttons": f"{keys} and {buttons}"}
    if "num_heads" not in told:
        values["num_heads"] = default.num_heads
        assumed["heads"] = str(default.num_heads)
    try:
        config = PolicyConfig(**values, max_keys=keys, max_mouse_buttons=buttons)  # type: ignore[arg-type]
    except ValueError as error:
        raise gate.Refused(
            f"{where}: its tensors do not tell everything, and the defaults do not fit ({error}); "
            "name its --config or a --recipe"
        ) from error
    assumed |= {
        "timesteps and history": str(config.num_timesteps),
        "sampling": f"{config.sampling.mouse_sampling} at temperature {config.sampling.temperature:g}",
    }
    seen = ", ".join(f"{key} {entry.value}" for key, entry in told.items() if key != "num_cells")
    line = (
        f"told by the tensors: {seen}, frames {config.frame_height}x{config.frame_width}; not in them, so assumed: "
        f"{', '.join(f'{key} {value}' for key, value in assumed.items())} (--config FILE or --recipe NAME says more)"
    )
    return config, line


def check_told(config: PolicyConfig, told: Mapping[str, Told], where: str, source: str, is_yaml: bool) -> None:
    """Hold a given architecture against what the tensors tell.

    Raises:
        ValueError: naming each setting that differs, with both values.
    """
    cells = -(-config.frame_height // ENCODER_REDUCTION) * -(-config.frame_width // ENCODER_REDUCTION)
    given = {key: cells if key == "num_cells" else getattr(config, key) for key in told}
    differing = [
        f"{_TOLD[key][0 if is_yaml else 1]} is {given[key]}, the tensors have {entry.value} ({entry.tensor})"
        for key, entry in told.items()
        if given[key] != entry.value
    ]
    if differing:
        advice = (
            "The file that comes with a download may be outdated: give `p2p import` the original's "
            "config/policy_model/SIZE.yaml with --config, or a recipe with --recipe"
            if is_yaml
            else "Name the recipe that it was trained with, or leave --recipe out"
        )
        raise ValueError(f"{source} and {where} disagree: {'; '.join(differing)}. {advice}")


# ------------------------------------------------------------------ for the original


def config_to_original(config: PolicyConfig) -> dict[str, Any]:
    """The settings of a model_config.yaml that fix the architecture.

    Raises:
        ValueError: naming a setting that the original cannot express.
    """
    _check_expressible(config)
    return {
        "shared": {
            "n_seq_timesteps": config.num_timesteps,
            "frame_height": config.frame_height,
            "frame_width": config.frame_width,
            "tokenizer": {
                "type": "conv",
                "conv_tokenizer_config": {"num_tokens": config.num_image_tokens},
                "vit_tokenizer_config": {"patch_size": config.vit_patch_size},
            },
            "text_tokenizer_config": {
                "text_tokenizer_name": config.text_embedder,
                "text_embedding_shape": [config.num_text_tokens, config.text_dim],
            },
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
            "sampling_temperature": 0.0 if config.sampling.greedy else config.sampling.temperature,
            "mouse_sampling_approach": config.sampling.mouse_sampling,
        },
    }


def _check_expressible(config: PolicyConfig) -> None:
    for name, value, only in (
        ("policy.image_encoder", config.image_encoder, "efficientnet_b0"),
        ("policy.decoder_num_layers", config.decoder_num_layers, DECODER_LAYERS),
        ("policy.decoder_num_heads", config.decoder_num_heads, DECODER_HEADS),
        ("policy.text_embedder", config.text_embedder, TEXT_TOKENIZER),
        ("the longest of policy.attention_history", max(config.histories), config.num_timesteps),
    ):
        if value != only:
            raise ValueError(
                f"{name} is {value}; the original can only load {only}, so this policy cannot be written for it. "
                "A policy folder (without --original) holds it"
            )
