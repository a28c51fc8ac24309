"""Shards to batches. Names load on demand: `p2p.data.resize` must come without streaming, av or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2p.data.batch import collate
    from p2p.data.dataset import GameplayDataset
    from p2p.data.errors import ShardError
    from p2p.data.stream import GameplayStream

__all__ = ["GameplayDataset", "GameplayStream", "ShardError", "collate"]

_HOMES = {
    "GameplayDataset": "p2p.data.dataset",
    "GameplayStream": "p2p.data.stream",
    "ShardError": "p2p.data.errors",
    "collate": "p2p.data.batch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
