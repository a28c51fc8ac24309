"""Shards the policies of recipes over eight pretended processes on the meta device: OUT.json RECIPE...

Uses the very functions that a run uses; a fake process group stands in for the other seven GPUs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from composer.core import Precision
from composer.distributed.fsdp2 import prepare_fully_shard
from composer.distributed.fsdp2_utils import generate_composer_model_policy
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from p2p.recipe import Recipe, load_recipe
from p2p.train.composer_policy import ComposerPolicy
from p2p.train.flops import meta_policy
from p2p.train.parallel import fsdp_config, parallelize

WORLD = 8


def shard(recipe: Recipe) -> dict[str, Any]:
    policy = meta_policy(recipe.policy)
    parallelize(policy, recipe.parallel)
    model = ComposerPolicy(policy)
    whole = {name: p.numel() for name, p in model.named_parameters()}
    config = fsdp_config(recipe.parallel, dist.get_world_size())["fsdp"]
    prepare_fully_shard(model, config, Precision.AMP_BF16, generate_composer_model_policy(model))
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    placements = {str(p.placements) for p in model.parameters()}
    local = sum(p.to_local().numel() for p in model.parameters())
    return {"parameters": sum(whole.values()), "units": units, "placements": sorted(placements), "local": local}


def main(argv: list[str]) -> int:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    out, *recipes = argv
    results = {Path(path).stem: shard(load_recipe(path)) for path in recipes}
    Path(out).write_text(json.dumps(results))
    dist.destroy_process_group()
    return 0
