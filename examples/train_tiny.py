"""Train a tiny policy without the launcher: `python examples/train_tiny.py shards/train OUT [UPDATES]`."""

import sys

import torch
from torch.utils.data import DataLoader

import p2p

BATCH_SIZE = 8
CONFIG = p2p.PolicyConfig(
    dim=64, num_layers=2, num_heads=2, num_timesteps=16, attention_history=16, frame_height=48, frame_width=48,
    image_encoder="small_cnn", decoder_num_layers=1, decoder_num_heads=2,
)  # fmt: skip


def main(place: str, out: str, num_updates: int = 100) -> None:
    torch.manual_seed(0)
    dataset = p2p.GameplayDataset.for_policy(CONFIG, place, phase="random", shuffle=True, batch_size=BATCH_SIZE)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, collate_fn=p2p.collate)
    policy = p2p.Policy(CONFIG)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    update = 0
    while update < num_updates:
        for batch in loader:  # every pass cuts the recordings into chunks anew
            logits = policy(batch["frames"], batch["actions"], batch["text"])
            loss = p2p.policy_loss(logits, batch["actions"], p2p.label_mask(batch), CONFIG.action_space)["total"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update += 1
            print(f"update {update}: loss {loss.item():.4f}")
    print(f"policy: {p2p.save_policy(policy, out)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
