"""What a GPU asks of a training step, as far as it shows without one."""

from __future__ import annotations

from typing import Any

import torch

from p2p.config import PolicyConfig
from p2p.model.policy import Policy

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
    from p2p.train.composer_policy import COUNTS_KEY, ComposerPolicy, split_batch, split_eval_batch

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
