"""What a GPU asks of a training step, as far as it shows without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from p2p.config import PolicyConfig
from p2p.model.policy import Policy
from p2p.recipe import ParallelConfig
from p2p.train.composer_policy import COUNTS_KEY, ComposerPolicy, split_batch, split_eval_batch
from p2p.train.parallel import parallelize, sharding_units

CONFIG = PolicyConfig(
    dim=32, num_layers=2, num_heads=2, decoder_num_heads=2, decoder_num_layers=1, num_timesteps=4, attention_history=4,
    image_encoder="small_cnn", frame_height=48, frame_width=48, text_dim=8, dropout=0.0,
)  # fmt: skip


def make_batch(num_chunks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = (num_chunks, CONFIG.num_timesteps)
    return {
        "frames": torch.randint(256, (*shape, 3, 48, 48), dtype=torch.uint8),
        "actions": torch.zeros(*shape, CONFIG.num_action_slots, dtype=torch.int64),
        "text": torch.zeros(*shape, 1, 8),
        "user_mask": torch.rand(shape) < 0.6,
        "valid_mask": torch.ones(shape, dtype=torch.bool),
        "recording": ["r"] * num_chunks,
        "start": torch.zeros(num_chunks, dtype=torch.int64),
    }


def test_a_step_never_asks_its_device_for_a_number_or_a_size() -> None:
    # Tensors of the meta device have none to give; a GPU would first have to finish all that was begun before.
    with torch.device("meta"):
        model = ComposerPolicy(Policy(CONFIG))
    for split in (split_batch, split_eval_batch):
        for part in split(make_batch(3), 2):
            there = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in part.items()}
            outputs = model(there)
            assert len(outputs.keys) == int(part["user_mask"].sum()) > 0
            assert model.sums(outputs, there)["keys"].cross_entropy.device.type == "meta"
            if COUNTS_KEY in there:
                model.loss(outputs, there)["total"].backward()
                assert model.policy.out_token.grad is not None


@pytest.fixture
def one_process() -> Iterator[DeviceMesh]:
    """A mesh over this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
def test_each_kind_of_layer_is_compiled_once_per_shape_however_many_layers_there_are(
    one_process: DeviceMesh, recompute: bool
) -> None:
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(len(inputs))
        return module.forward

    torch.manual_seed(0)
    policy = Policy(replace(CONFIG, num_layers=3, decoder_num_layers=2))
    batches = [*split_batch(make_batch(5), 3), *split_eval_batch(make_batch(4), 4), *split_eval_batch(make_batch(2), 4)]
    model = ComposerPolicy(policy)
    expected = losses(model, batches)
    parallelize(policy, ParallelConfig(compile=True, activation_checkpointing=recompute), backend)
    for module in (*sharding_units(policy), policy):
        fully_shard(module, mesh=one_process)
    model.validation_chunks = 4
    assert losses(model, batches) == pytest.approx(expected, rel=1e-5)
    first = len(compiled)
    assert losses(model, batches) == pytest.approx(expected, rel=1e-5)
    assert len(compiled) == first
    kinds, shapes = 3, 3  # tokenizer, layer, last layer; microbatches of 3 and 2, validation batches of 4
    assert (
        kinds * shapes < first <= kinds * shapes + 4
    )  # the decoder: its first number of frames, any number, without gradients


def losses(model: ComposerPolicy, batches: list[dict[str, Any]]) -> list[float]:
    """Microbatches are learned from, validation batches only seen."""
    found = []
    for batch in batches:
        model.train(COUNTS_KEY in batch)
        with torch.set_grad_enabled(model.training):
            sums = model.sums(model(batch), batch)
            loss = torch.stack([part.cross_entropy for part in sums.values()]).sum()
        if model.training:
            loss.backward()
        found.append(float(loss))
    return found
