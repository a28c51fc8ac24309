"""Chunks side by side: the batch that a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import default_collate


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack samples of GameplayDataset.

    Returns frames uint8 [B, T, 3, Y, X], actions int64 [B, T, A], user_mask, system_mask, valid_mask bool
    [B, T], text float32 [B, T, n_text, D], recording, replaced (lists of B strings), start int64 [B].
    """
    batch: dict[str, Any] = {
        # In a loader's worker this stacks right into the shared memory that the batch travels in.
        name: default_collate([sample[name] for sample in samples])
        for name in samples[0]
        if isinstance(samples[0][name], torch.Tensor)
    }
    batch["recording"] = [sample["recording"] for sample in samples]
    batch["replaced"] = [sample.get("replaced", "") for sample in samples]
    batch["start"] = torch.tensor([sample["start"] for sample in samples], dtype=torch.int64)
    return batch
