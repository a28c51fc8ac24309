"""Configuration: frozen, self-checking dataclasses, and the strict reader that fills them.

A policy folder's `config.yaml` holds a `PolicyConfig`; a recipe holds one under `policy:`.
Every key of a YAML file or an override must be a field: an unknown one is an error that names the
nearest field. Files are a stranger's: every number has bounds, and so has what the numbers make together, so that
a configuration can be checked, and its network built without memory, in a moment. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from p2p import gate
from p2p.actions import ACTION_SPACE_VERSION, ActionSpace
from p2p.plain_yaml import MAX_BYTES, parse_yaml

Z_WEIGHT = 1e-4  # of the z-loss in the training loss
FRAME_SIZE = 192  # height and width of the pictures that are recorded and sent to a policy

ConfigT = TypeVar("ConfigT")

IMAGE_ENCODERS = ("efficientnet_b0", "vit", "small_cnn")
MOUSE_SAMPLINGS = ("truncated_normal", "mean", "conservative")
MAX_TEMPERATURE = 1000.0
MAX_TEXT_CHARACTERS = 4096

# The lowest and highest value of each number of a PolicyConfig; the released models lie far inside.
_LIMITS = {
    "dim": (1, 16384),
    "num_layers": (1, 256),
    "num_heads": (1, 256),
    "num_timesteps": (1, 16384),
    "frame_height": (1, 2048),
    "frame_width": (1, 2048),
    "vit_patch_size": (1, 512),
    "num_image_tokens": (1, 4096),
    "num_text_tokens": (0, 1024),
    "text_dim": (1, 16384),
    "num_thinking_tokens": (0, 1024),
    "num_sink_tokens": (0, 1024),
    "decoder_num_layers": (1, 64),
    "decoder_num_heads": (1, 256),
    "max_keys": (1, 6),
    "max_mouse_buttons": (1, 3),
}
# What they make together. The largest released model has 1.2e9 parameters, chunks of 2,400 tokens, a cache of 0.8 GB,
# masks of 6 MB and frames of 22 MB.
MAX_PARAMETERS = 10**11
MAX_CHUNK_TOKENS = 1 << 16
MAX_CACHE_BYTES = 8 << 30  # keys and values of one player, float32
MAX_MASK_BYTES = 1 << 30  # of all layers that differ in their history
MAX_FRAME_BYTES = 1 << 30  # of one chunk


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class SamplingConfig:
    """How an action is drawn from the logits when the policy plays."""

    temperature: float = 1.0
    top_p: float | None = None
    greedy: bool = False
    mouse_sampling: str = "truncated_normal"

    def __post_init__(self) -> None:
        gate.number(self.temperature, "sampling.temperature", 0, MAX_TEMPERATURE)
        if self.top_p is not None:
            gate.number(self.top_p, "sampling.top_p", 1e-6, 1)
        require(
            self.mouse_sampling in MOUSE_SAMPLINGS,
            f"sampling.mouse_sampling is {gate.shown(self.mouse_sampling)}; choose one of {', '.join(MOUSE_SAMPLINGS)}",
        )


@dataclass(frozen=True)
class PolicyConfig:
    """The architecture of a policy: everything that fixes the names and shapes of its weights.

    The defaults are the released 150M model. `attention_history` is the number of earlier timesteps
    that each layer's queries may see: one number for all layers, or one per layer. `text_embedder` is the embedder
    of its instructions (p2p/text.py), and the name under which recordings and shards keep their embeddings.
    With `carry_text`, an instruction that began before a chunk reaches into it, as it does in play.
    """

    dim: int = 1024
    num_layers: int = 10
    num_heads: int = 16
    num_timesteps: int = 200
    attention_history: int | tuple[int, ...] = 200
    frame_height: int = FRAME_SIZE
    frame_width: int = FRAME_SIZE
    image_encoder: str = "efficientnet_b0"
    vit_patch_size: int = 16
    num_image_tokens: int = 1
    num_text_tokens: int = 1
    text_dim: int = 768
    text_embedder: str = "gemma"
    carry_text: bool = False
    num_thinking_tokens: int = 1
    num_sink_tokens: int = 0
    decoder_num_layers: int = 3
    decoder_num_heads: int = 8
    dropout: float = 0.1
    max_keys: int = 4
    max_mouse_buttons: int = 2
    action_space_version: int = ACTION_SPACE_VERSION
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            gate.whole_number(getattr(self, name), f"policy.{name}", low, high)
        for heads, name in ((self.num_heads, "num_heads"), (self.decoder_num_heads, "decoder_num_heads")):
            require(
                self.dim % heads == 0 and (self.dim // heads) % 2 == 0,
                f"policy.dim {self.dim} must be an even multiple of policy.{name} {heads}",
            )
        require(
            self.image_encoder in IMAGE_ENCODERS,
            f"policy.image_encoder is {gate.shown(self.image_encoder)}; choose one of {', '.join(IMAGE_ENCODERS)}",
        )
        require(
            isinstance(self.text_embedder, str) and _NAME.fullmatch(self.text_embedder) is not None,
            f"policy.text_embedder is {gate.shown(self.text_embedder)}; write a name such as gemma or minilm",
        )
        gate.number(self.dropout, "policy.dropout", 0, 1)
        require(self.dropout < 1, f"policy.dropout is {self.dropout}; it must be in [0, 1)")
        require(
            self.action_space_version == ACTION_SPACE_VERSION,
            f"policy.action_space_version is {gate.shown(self.action_space_version)}, this code speaks "
            f"{ACTION_SPACE_VERSION}; use the release of p2p that wrote the file",
        )
        self._check_frame_size()
        self._check_histories()
        self._check_size()

    def _check_histories(self) -> None:
        if isinstance(self.attention_history, tuple):
            require(
                len(self.attention_history) == self.num_layers,
                f"policy.attention_history has {len(self.attention_history)} entries; "
                f"write one number, or {self.num_layers} (policy.num_layers)",
            )
        for history in set(self.histories):
            gate.whole_number(history, "policy.attention_history", 0, self.num_timesteps)

    def _check_size(self) -> None:
        """What the numbers make together stays within what a machine can hold."""
        tokens, steps = self.tokens_per_timestep, self.num_timesteps
        layer = 4 * self.dim**2 + 3 * self.dim * self.hidden_dim + 2 * self.num_sink_tokens * self.dim
        image = 0 if self.image_encoder == "vit" else self.frame_height * self.frame_width * self.num_image_tokens
        reach = sum(min(history + 16, steps) for history in set(self.histories))  # queries go in groups of 16 steps
        seen = sum(min(history, steps - 1) + 2 for history in self.histories)
        for what, amount, limit in (
            ("parameters", (self.num_layers + self.decoder_num_layers) * layer + image * self.dim // 2, MAX_PARAMETERS),
            ("tokens in a chunk", tokens * steps, MAX_CHUNK_TOKENS),
            ("bytes of keys and values", 8 * seen * tokens * self.dim, MAX_CACHE_BYTES),
            ("bytes of attention masks", steps * tokens**2 * reach, MAX_MASK_BYTES),
            ("bytes of frames in a chunk", 3 * steps * self.frame_height * self.frame_width, MAX_FRAME_BYTES),
        ):
            require(
                amount <= limit,
                f"policy: its sizes make {amount:,} {what}, at most {limit:,} are allowed; "
                f"make policy.dim, num_layers, num_timesteps, attention_history, the tokens or the frames smaller",
            )

    def _check_frame_size(self) -> None:
        multiple = {"efficientnet_b0": 16, "vit": self.vit_patch_size, "small_cnn": 48}[self.image_encoder]
        require(
            self.frame_height % multiple == 0 and self.frame_width % multiple == 0,
            f"policy.frame_height x frame_width is {self.frame_height} x {self.frame_width}; "
            f"the {self.image_encoder} image encoder needs multiples of {multiple}",
        )
        if self.image_encoder == "vit":
            num_patches = (self.frame_height // self.vit_patch_size) * (self.frame_width // self.vit_patch_size)
            require(
                self.num_image_tokens == num_patches,
                f"policy.num_image_tokens is {self.num_image_tokens}; the vit image encoder gives one token "
                f"per patch: write {num_patches}",
            )

    @property
    def action_space(self) -> ActionSpace:
        return ActionSpace(max_keys=self.max_keys, max_mouse_buttons=self.max_mouse_buttons)

    @property
    def histories(self) -> tuple[int, ...]:
        """One attention history per layer."""
        if isinstance(self.attention_history, tuple):
            return self.attention_history
        return (self.attention_history,) * self.num_layers

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layers: 8 * ceil(int(8 * dim / 3) / 8)."""
        return 8 * -(-int(8 * self.dim / 3) // 8)

    @property
    def num_action_slots(self) -> int:
        return self.action_space.num_slots

    @property
    def tokens_per_timestep(self) -> int:
        """S: text, image, thinking, out and action tokens of one timestep."""
        num_observed = self.num_text_tokens + self.num_image_tokens + self.num_thinking_tokens
        return num_observed + 1 + self.num_action_slots


# ------------------------------------------------------------------ strict reading


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build the dataclass `cls` from nested mappings; `where` names the file or section in errors.

    Raises:
        ValueError: for an unknown key (names the nearest field) or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping with the keys of {cls.__name__}, got {gate.shown(values)}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"{where}: unknown key {gate.shown(key)}{nearest(str(key), names)}")
        kwargs[key] = _convert(hints[key], value, f"{where}: {key}")
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain dict of a config (tuples become lists), the inverse of `from_dict`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def nearest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key[:100], names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(names))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {gate.shown(value)}")
        return tuple(_convert(typing.get_args(hint)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {gate.shown(value)}")
        entry_hint = typing.get_args(hint)[1]
        return {
            _text(str(key), where): _convert(entry_hint, entry, f"{where}.{gate.shown(str(key), quote=False)}")
            for key, entry in value.items()
        }
    return _convert_scalar(hint, value, where)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[-1] if len(errors) == 1 else f"{where}: {gate.shown(value)} is none of {hint}")


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        value = float(value)
    if hint is float and isinstance(value, str):  # a number in quotes
        try:
            value = float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {gate.shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {value} is no finite number")
    return _text(value, where) if isinstance(value, str) else value


def _text(value: str, where: str) -> str:
    gate.text(value, where, MAX_TEXT_CHARACTERS)
    if not value.isprintable():
        raise ValueError(f"{where}: {gate.shown(value)} holds control characters")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain data (p2p/plain_yaml.py).

    Raises:
        ValueError: when the file is missing, is no regular file, is not such YAML, or is not a mapping.
    """
    try:
        data = gate.read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    return yaml_mapping(data, str(path))


def yaml_mapping(data: bytes, where: str) -> dict[str, Any]:
    """As `read_yaml`, of a file's content."""
    content = parse_yaml(data, where)
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a YAML mapping, got {type(content).__name__}")
    return content


def load_policy_config(path: Path) -> PolicyConfig:
    """Read the `config.yaml` of a policy folder or a checkpoint."""
    return from_dict(PolicyConfig, read_yaml(path), str(path))


def save_policy_config(config: PolicyConfig, path: Path) -> None:
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(to_dict(config)), path)
