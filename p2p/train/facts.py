"""What a checkpoint says of the run that wrote it, and whether the recipe as typed now may go on from it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from p2p import gate
from p2p.config import PolicyConfig, to_dict
from p2p.data.order import ORDER
from p2p.recipe import Recipe

log = logging.getLogger(__name__)

# Without effect on shapes or on what a token means.
_FREE_OF_POLICY = ("policy.dropout", "policy.sampling.")
# With another value the run is no longer the one that was begun, though the weights fit.
_OF_THE_COURSE = (
    "global_batch",
    "seed",
    "data.shuffle",
    "policy.num_timesteps",
    "policy.attention_history",
    "policy.carry_text",
    "policy.text_embedder",
)
DATA = "data"
_ORDER = "order"


def make_facts(recipe: Recipe, data: str, step: int, num_processes: int) -> dict[str, Any]:
    """The facts of a checkpoint's manifest: step, processes, the whole recipe, and which data (`data_identity`).

    `order` is that of the chunks in an epoch. `finite` stands for: every weight, average and moment was looked at
    before it was written.
    """
    return {
        "step": step,
        "processes": num_processes,
        "finite": True,
        DATA: data,
        _ORDER: ORDER,
        "recipe": to_dict(recipe),
    }


def data_identity(streams: Any) -> str:
    """A hash of the recordings in a dataset and of how they lie in its shards: what the order of the chunks depends on.

    The same shards in another place, or fetched from a store, give the same.
    """
    digest = hashlib.sha256()
    for stream in streams:
        table = stream.table.recordings
        recordings = list(zip(table.ids(), table.num_frames.tolist(), strict=True))
        shards = [int(number) for number in stream.table.first_samples]
        digest.update(json.dumps([recordings, shards]).encode())
    return digest.hexdigest()


def check_same_run(facts: Mapping[str, Any], recipe: Recipe, data: str, where: str) -> bool:
    """Whether the course of the run stays as it was begun; what may change is reported in one line.

    Raises:
        ValueError: when the architecture differs, or, without `resume_changed`, what the course depends on: it names
            the settings, what the checkpoint has and what the recipe says.
    """
    kept = gate.mapping(facts.get("recipe"), f"{where}: recipe")
    gate.mapping(kept.get("policy"), f"{where}: recipe.policy")
    changes = list(_changes(kept, to_dict(recipe), where))
    architecture = [line for name, line in changes if _kind(name) == "architecture"]
    if architecture:
        raise ValueError(
            f"{where} is of another architecture: {'; '.join(architecture)}. Set them back, or give the run another "
            "name or run_folder (init_from=POLICY starts from weights that fit)"
        )
    course = [line for name, line in changes if _kind(name) == "course"]
    if facts.get(DATA) not in (None, data):
        course.append(f"data.train: other recordings or shards than in the checkpoint ({recipe.data.train})")
    if recipe.data.shuffle and facts.get(_ORDER) != ORDER:
        course.append("the order of the chunks in an epoch: the checkpoint was written by an older version of p2p")
    if course and not recipe.resume_changed:
        raise ValueError(
            f"{where} is of a run with other settings: {'; '.join(course)}. Set them back, give the run another name "
            "or run_folder, or write resume_changed=true to go on all the same, from the next epoch on"
        )
    free = [line for name, line in changes if _kind(name) == "free"]
    if free or course:
        log.info("changed since %s: %s", where, "; ".join([*course, *free]))
    return not course


def facts_of_policy(policy: PolicyConfig) -> dict[str, Any]:
    """What is known of a checkpoint without a manifest: the architecture, from its config.yaml."""
    return {"recipe": {"policy": to_dict(policy)}}


def _kind(name: str) -> str:
    if name in _OF_THE_COURSE:
        return "course"
    return "architecture" if name.startswith("policy.") and not name.startswith(_FREE_OF_POLICY) else "free"


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], where: str, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """(name, line) of the settings that both have and that differ.

    Raises:
        Refused: when the checkpoint has something else where settings stand.
    """
    for key, value in now.items():
        name = prefix + key
        if key not in before or name in ("resume", "resume_changed"):
            continue
        if isinstance(value, dict) and name != "data.val":
            yield from _changes(gate.mapping(before[key], f"{where}: recipe.{name}"), value, where, f"{name}.")
        elif before[key] != value:
            yield name, f"{name} is {gate.shown(value)}, the checkpoint has {gate.shown(before[key])}"
