"""Configuration: frozen, self-checking dataclasses, and the strict reader that fills them.

A policy folder's `config.yaml` holds a `PolicyConfig`; a recipe holds one under `policy:`.
Every key of a YAML file or an override must be a field: an unknown one is an error that names the
nearest field. Nothing here imports torch; YAML is read with omegaconf only when a file is read.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from p2p.actions import ACTION_SPACE_VERSION, ActionSpace

ConfigT = TypeVar("ConfigT")

IMAGE_ENCODERS = ("efficientnet_b0", "vit", "small_cnn")
MOUSE_SAMPLINGS = ("truncated_normal", "mean", "conservative")


def _require(condition: bool, message: str) -> None:
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
        _require(self.temperature >= 0, f"sampling.temperature is {self.temperature}; write 0 or more")
        _require(
            self.top_p is None or 0 < self.top_p <= 1,
            f"sampling.top_p is {self.top_p}; write a number in (0, 1], or null for none",
        )
        _require(
            self.mouse_sampling in MOUSE_SAMPLINGS,
            f"sampling.mouse_sampling is {self.mouse_sampling!r}; choose one of {', '.join(MOUSE_SAMPLINGS)}",
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
    frame_height: int = 192
    frame_width: int = 192
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
        for name in ("dim", "num_layers", "num_heads", "num_timesteps", "num_image_tokens", "decoder_num_layers"):
            _require(getattr(self, name) >= 1, f"policy.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_text_tokens", "num_thinking_tokens", "num_sink_tokens"):
            _require(getattr(self, name) >= 0, f"policy.{name} is {getattr(self, name)}; it must be 0 or more")
        for heads, name in ((self.num_heads, "num_heads"), (self.decoder_num_heads, "decoder_num_heads")):
            _require(
                self.dim % heads == 0 and (self.dim // heads) % 2 == 0,
                f"policy.dim {self.dim} must be an even multiple of policy.{name} {heads}",
            )
        _require(
            self.image_encoder in IMAGE_ENCODERS,
            f"policy.image_encoder is {self.image_encoder!r}; choose one of {', '.join(IMAGE_ENCODERS)}",
        )
        _require(self.text_embedder != "", "policy.text_embedder is empty; write a name such as gemma or minilm")
        self._check_frame_size()
        if isinstance(self.attention_history, tuple):
            _require(
                len(self.attention_history) == self.num_layers,
                f"policy.attention_history has {len(self.attention_history)} entries; "
                f"write one number, or {self.num_layers} (policy.num_layers)",
            )
        _require(
            all(0 <= h <= self.num_timesteps for h in self.histories),
            f"policy.attention_history is {self.attention_history}; "
            f"every entry must be in 0..{self.num_timesteps} (policy.num_timesteps)",
        )
        _require(0 <= self.dropout < 1, f"policy.dropout is {self.dropout}; it must be in [0, 1)")
        _require(
            self.action_space_version == ACTION_SPACE_VERSION,
            f"policy.action_space_version is {self.action_space_version}, this code speaks "
            f"{ACTION_SPACE_VERSION}; use the release of p2p that wrote the file",
        )
        _ = self.action_space  # checks max_keys and max_mouse_buttons

    def _check_frame_size(self) -> None:
        multiple = {"efficientnet_b0": 16, "vit": self.vit_patch_size, "small_cnn": 48}[self.image_encoder]
        _require(
            self.frame_height % multiple == 0 and self.frame_width % multiple == 0,
            f"policy.frame_height x frame_width is {self.frame_height} x {self.frame_width}; "
            f"the {self.image_encoder} image encoder needs multiples of {multiple}",
        )
        if self.image_encoder == "vit":
            num_patches = (self.frame_height // self.vit_patch_size) * (self.frame_width // self.vit_patch_size)
            _require(
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
        raise ValueError(f"{where}: expected a mapping with the keys of {cls.__name__}, got {values!r}")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(str(key), names)}")
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


def _nearest(key: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(sorted(names))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return {str(key): _convert(typing.get_args(hint)[1], entry, f"{where}.{key}") for key, entry in value.items()}
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
    raise ValueError(errors[-1] if len(errors) == 1 else f"{where}: {value!r} is none of {hint}")


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; interpolations such as ${oc.env:NAME,default} are resolved.

    Raises:
        ValueError: when the file is missing, is not YAML, or is not a mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # the YAML library's own errors share no public base class
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a YAML mapping, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def load_policy_config(path: Path) -> PolicyConfig:
    """Read the `config.yaml` of a policy folder."""
    return from_dict(PolicyConfig, read_yaml(path), str(path))


def save_policy_config(config: PolicyConfig, path: Path) -> None:
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(to_dict(config)), path)
