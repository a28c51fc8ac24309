"""Writes the losses and gradients of one update: OUT.pt MICROBATCH [OUT.pt MICROBATCH ...], on any number of processes.

The global batch is six chunks, made by hand; each process takes its share. Chunks differ in how many
frames are labelled, one has none, so that averaging averages would be wrong.
"""

from __future__ import annotations

import warnings

import torch
from composer import Trainer
from composer.core import Callback, DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader, Dataset

from p2p.model.policy import Policy
from p2p.recipe import OptimizerConfig, ParallelConfig
from p2p.train.callbacks import GradientNorm
from p2p.train.composer_policy import ComposerPolicy, count_chunks, split_batch
from p2p.train.optim import build_optimizer
from p2p.train.parallel import fsdp_config, parallelize
from tests.tiny import tiny_config

NUM_CHUNKS, T = 6, 3
CONFIG = tiny_config(
    num_timesteps=T,
    attention_history=(2, 1),
    frame_height=64,
    frame_width=64,
    image_encoder="efficientnet_b0",
    num_sink_tokens=1,
)


class Chunks(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        space = CONFIG.action_space
        shape = (NUM_CHUNKS, T)
        labelled = torch.rand(shape, generator=generator) < 0.5
        labelled[1] = False
        labelled[4] = True
        self.columns = {
            "frames": torch.randint(256, (*shape, 3, 64, 64), generator=generator, dtype=torch.uint8),
            "actions": torch.stack([torch.randint(v, shape, generator=generator) for v in space.num_choices], -1),
            "text": torch.randn(*shape, 1, 768, generator=generator),
            "user_mask": labelled,
            "valid_mask": torch.ones(shape, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return NUM_CHUNKS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()} | {"recording": "r", "start": index}


class FrozenBatchNorm(Callback):
    def batch_start(self, state, logger) -> None:
        for module in state.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


class KeepGradients(Callback):
    def after_train_batch(self, state, logger) -> None:
        self.gradients = {
            name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone()
            for name, p in state.model.named_parameters()
        }


def measure(out: str, microbatch: int) -> None:
    warnings.simplefilter("ignore")
    dist.initialize_dist("cpu", 60)
    rank, world = dist.get_global_rank(), dist.get_world_size()
    torch.manual_seed(0)
    if rank == 0:
        policy = Policy(CONFIG)
    else:
        with torch.device("meta"):
            policy = Policy(CONFIG)
    for module in policy.modules():  # no stochastic depth
        if hasattr(module, "drop_probability"):
            module.drop_probability = 0.0
    parallelize(policy, ParallelConfig(activation_checkpointing=world > 1))
    model = ComposerPolicy(policy)
    dataset = Chunks()
    sampler = torch.utils.data.DistributedSampler(dataset, world, rank, shuffle=False)
    loader = DataLoader(dataset, batch_size=NUM_CHUNKS // world, sampler=sampler)
    keep, norm = KeepGradients(), GradientNorm(None)
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader, split_batch=split_batch, get_num_samples_in_batch=count_chunks),
        optimizers=build_optimizer(model.parameters(), OptimizerConfig()),
        max_duration="1ba",
        callbacks=[FrozenBatchNorm(), norm, keep],
        progress_bar=False,
        parallelism_config=fsdp_config(ParallelConfig(), dist.get_world_size()),
        precision="fp32",
        device="cpu",
        device_train_microbatch_size=microbatch,
        seed=0,
    )
    trainer.fit()
    sharded = [type(p).__name__ == "DTensor" for p in trainer.state.model.parameters()]
    placements = {str(p.placements) for p in trainer.state.model.parameters()}
    if rank == 0:
        losses = {k: float(v) for k, v in trainer.state.total_loss_dict.items()}
        result = {"losses": losses, "gradients": keep.gradients, "norm": float(norm.last_norm)}
        result |= {"all_sharded": all(sharded), "placements": placements, "world": world}
        result["local"] = sum(p.to_local().numel() for p in trainer.state.model.parameters())
        result["global"] = sum(p.numel() for p in trainer.state.model.parameters())
        torch.save(result, out)
    trainer.close()


def main(argv: list[str]) -> int:
    for out, microbatch in zip(argv[::2], argv[1::2], strict=True):
        measure(out, int(microbatch))
    return 0
