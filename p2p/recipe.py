"""Recipes: everything that fixes a training run, read strictly from YAML plus `key=value` overrides.

A recipe file holds only what differs from the defaults below; `p2p.train.run` turns it into a run.
Nothing here imports torch, so that a mistyped key is reported at once.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.config import Z_WEIGHT, PolicyConfig, from_dict, nearest, read_yaml, require, to_dict
from p2p.plain_yaml import parse_yaml

PRECISIONS = ("amp_bf16", "fp32")
SCHEDULES = ("constant", "linear", "cosine")
MAX_COUNT = 10**9  # of chunks, updates, epochs: beyond any run
_DURATION = re.compile(r"([1-9][0-9]{0,11})(ba|ep)")
RECIPES = Path(__file__).with_name("recipes")


def parse_duration(text: str, where: str) -> tuple[int, str]:
    """'600ba' -> (600, 'ba'), '2ep' -> (2, 'ep'): a number of optimizer updates or of epochs."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{where} is {gate.shown(text)}; write a number of updates such as 600ba, or of epochs such as 2ep"
        )
    return int(match.group(1)), match.group(2)


def _check_probability(section: str, config: Any, *names: str) -> None:
    for name in names:
        gate.number(getattr(config, name), f"{section}.{name}", 0, 1)


def _check_counts(section: str, config: Any, low: int, *names: str, high: int = MAX_COUNT) -> None:
    for name in names:
        if getattr(config, name) is not None:
            gate.whole_number(getattr(config, name), f"{section}{name}", low, high)


@dataclass(frozen=True)
class CorruptionConfig:
    """Damage to the past actions that the transformer sees, in training only (labels stay as they are).

    It takes away the short cut of copying the last action. `replace` and `nothing` are probabilities
    per timestep: its past action becomes that of another timestep of the batch, or "nothing".
    `drop_history` is the probability per chunk that all its past actions become "nothing".
    """

    replace: float = 0.0
    nothing: float = 0.0
    drop_history: float = 0.0

    def __post_init__(self) -> None:
        _check_probability("data.corruption", self, "replace", "nothing", "drop_history")
        require(
            self.replace + self.nothing <= 1,
            f"data.corruption.replace {self.replace} and .nothing {self.nothing} add up to more than 1",
        )

    @property
    def active(self) -> bool:
        return self.replace + self.nothing + self.drop_history > 0


@dataclass(frozen=True)
class DataConfig:
    """Where the chunks come from, and what is done to them.

    `train` and `val` are folders of shards or object-storage URLs; `val` may name several sets:
    {label: folder or URL}. Remote shards are kept in `cache` (default: <run folder>/cache), up to
    `cache_limit` (such as 500gb).
    """

    train: str | None = None
    val: str | dict[str, str] | None = None
    cache: str | None = None
    cache_limit: str | None = None
    shuffle: bool = True
    num_workers: int = 8
    prefetch_factor: int = 2
    augment: bool = False
    corruption: CorruptionConfig = CorruptionConfig()

    def __post_init__(self) -> None:
        _check_counts("data.", self, 0, "num_workers", high=1024)
        _check_counts("data.", self, 1, "prefetch_factor", high=1024)

    @property
    def val_sets(self) -> dict[str, str]:
        """Label to folder or URL; a single set is labelled `val`."""
        if self.val is None:
            return {}
        return {"val": self.val} if isinstance(self.val, str) else dict(self.val)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on all parameters; `clip` is the largest norm of the gradient (null: no clipping)."""

    lr: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optimizer.lr is {self.lr}; it must be above 0")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optimizer.betas is {self.betas}; write two numbers in [0, 1)",
        )
        require(self.eps > 0, f"optimizer.eps is {self.eps}; it must be above 0")
        require(self.weight_decay >= 0, f"optimizer.weight_decay is {self.weight_decay}; it must be 0 or more")
        require(
            self.clip is None or self.clip > 0,
            f"optimizer.clip is {self.clip}; write a norm above 0, or null for no clipping",
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run: `warmup` updates from 0, then constant, linear or cosine to `final` * lr."""

    shape: str = "constant"
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.shape in SCHEDULES, f"schedule.shape is {gate.shown(self.shape)}; choose one of {', '.join(SCHEDULES)}"
        )
        _check_counts("schedule.", self, 0, "warmup")
        _check_probability("schedule", self, "final")


@dataclass(frozen=True)
class LossConfig:
    """total = sum over heads of CE / ln(V) + z_weight * sum over heads of Z."""

    z_weight: float = Z_WEIGHT

    def __post_init__(self) -> None:
        require(self.z_weight >= 0, f"loss.z_weight is {self.z_weight}; it must be 0 or more")


@dataclass(frozen=True)
class ParallelConfig:
    """Applied to the model from outside: sharding (FSDP2), activation checkpointing, torch.compile.

    `reshard_after_forward` frees the gathered parameters between forward and backward (less memory,
    more traffic). `activation_checkpointing` recomputes each layer in backward. `compile`: null compiles on GPUs.
    """

    reshard_after_forward: bool = True
    activation_checkpointing: bool = False
    compile: bool | None = None
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        gate.number(self.timeout_s, "parallel.timeout_s", 1, 30 * 24 * 3600)


@dataclass(frozen=True)
class EvalConfig:
    """Validation: every `interval` updates (null: at each save), over at most `max_batches` of `batch_size` chunks."""

    interval: str | None = None
    max_batches: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.interval is not None:
            require(
                parse_duration(self.interval, "eval.interval")[1] == "ba",
                f"eval.interval is {self.interval!r}; write a number of updates such as 500ba",
            )
        _check_counts("eval.", self, 1, "max_batches", "batch_size")


@dataclass(frozen=True)
class Recipe:
    """One training run.

    `global_batch` is the number of chunks per update over all processes; each process takes an equal
    share, `microbatch` chunks at a time (null: all at once). `init_from` is a policy folder to start
    from; `image_weights` a file of ImageNet weights for the EfficientNet. `save_folder` may be an
    s3:// URL (default: <run folder>/checkpoints); `keep` checkpoints stay. With `resume`, a run that
    is typed again goes on from its newest usable checkpoint; with `resume_changed`, also when what its
    course depends on (data, seed, batch) was changed. `ema_half_life` (in updates) averages the weights;
    validation and export then use the average.
    """

    name: str
    policy: PolicyConfig = PolicyConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    parallel: ParallelConfig = ParallelConfig()
    eval: EvalConfig = EvalConfig()
    max_duration: str = "500000ba"
    global_batch: int = 80
    microbatch: int | None = None
    precision: str = "amp_bf16"
    seed: int = 0
    init_from: str | None = None
    image_weights: str | None = None
    run_folder: str | None = None
    save_folder: str | None = None
    save_interval: str = "500ba"
    keep: int = 3
    resume: bool = True
    resume_changed: bool = False
    ema_half_life: int | None = None
    log_interval: int = 10

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            f"name is {gate.shown(self.name)}; use letters, digits, dots, dashes and underscores",
        )
        parse_duration(self.max_duration, "max_duration")
        require(
            parse_duration(self.save_interval, "save_interval")[1] == "ba",
            f"save_interval is {self.save_interval!r}; write a number of updates such as 500ba",
        )
        _check_counts("", self, 1, "global_batch", "keep", "log_interval", "microbatch", "ema_half_life")
        _check_counts("", self, 0, "seed", high=2**32 - 1)
        require(
            self.precision in PRECISIONS,
            f"precision is {gate.shown(self.precision)}; choose one of {', '.join(PRECISIONS)}",
        )
        require(
            self.image_weights is None or self.policy.image_encoder == "efficientnet_b0",
            f"image_weights is {self.image_weights!r}, but they are for policy.image_encoder efficientnet_b0, "
            f"not {self.policy.image_encoder}",
        )

    @property
    def run_path(self) -> Path:
        """The local folder of the run: metrics.jsonl, checkpoints, policy."""
        return Path(self.run_folder) if self.run_folder else Path("runs") / self.name

    @property
    def is_remote_save(self) -> bool:
        return self.save_folder is not None and "://" in self.save_folder

    @property
    def checkpoint_path(self) -> Path:
        """The local folder of checkpoints (where they are staged when save_folder is remote)."""
        if self.save_folder is None or self.is_remote_save:
            return self.run_path / "checkpoints"
        return Path(self.save_folder)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides with dotted keys, such as `optimizer.lr=3e-5`.

    `path` may be the bare name of a recipe of this project, such as 150M.

    Raises:
        ValueError: for a missing file, an unknown key (names the nearest one) or a value that does not fit.
    """
    path = find_recipe(path)
    values = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    for name in ("max_duration", "save_interval"):
        number = values.get(name)
        if type(number) is int:
            unit = "ba (updates) or {0}ep (epochs)" if name == "max_duration" else "ba (updates)"
            raise ValueError(f"{path}: {name} is {number}; write {number}{unit.format(number)}")
    return from_dict(Recipe, values, str(path))


def find_recipe(path: Path | str) -> Path:
    """The file of a recipe: a path as it is; for a bare name the file in recipes/, here or of this package.

    Raises:
        ValueError: when no recipe has that name.
    """
    path = Path(path)
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    folders = [Path("recipes"), RECIPES]
    for folder in folders:
        if (folder / f"{path}.yaml").is_file():
            return folder / f"{path}.yaml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise ValueError(f"recipe {gate.shown(str(path))}: expected the path of a .yaml file, or one of {', '.join(known)}")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the whole recipe, defaults included, so that a run says what it was."""
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(to_dict(recipe)), path)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {gate.shown(override)}: expected key=value, such as optimizer.lr=3e-5")
    parts = key.split(".")
    _check_key(parts, override)
    section = values
    for part in parts[:-1]:
        if not isinstance(section.get(part), dict):
            section[part] = {}
        section = section[part]
    section[parts[-1]] = _parse_value(text, override)


def _check_key(parts: list[str], override: str) -> None:
    """Walk the dataclasses along the dotted key, so that the error speaks of the command line, not of the file."""
    cls: Any = Recipe
    for depth, part in enumerate(parts):
        names = [field.name for field in dataclasses.fields(cls)]
        if part not in names:
            section = f" in {'.'.join(parts[:depth])}" if depth else ""
            raise ValueError(
                f"override {gate.shown(override)}: unknown key {gate.shown(part)}{section}{nearest(part, names)}"
            )
        hint = typing.get_type_hints(cls)[part]
        if _is_mapping(hint):
            return
        if depth < len(parts) - 1 and not dataclasses.is_dataclass(hint):
            raise ValueError(
                f"override {gate.shown(override)}: {'.'.join(parts[: depth + 1])} is a value, not a section"
            )
        cls = hint


def _is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) is dict or any(_is_mapping(option) for option in typing.get_args(hint))


def _parse_value(text: str, override: str) -> Any:
    """The value as YAML reads it: 8, 1e-4, true, null, [1, 2], {a: b}, text."""
    try:
        return parse_yaml(text, "value")
    except ValueError as error:
        raise ValueError(f"override {gate.shown(override)}: {gate.shown(text)} is not a YAML value: {error}") from error
