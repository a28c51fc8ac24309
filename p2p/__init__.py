"""P2P: from recorded gameplay to a model that plays. docs/python.md is the tour.

Names load on demand: `import p2p` itself brings neither torch nor anything else that takes time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2p.actions import Action, ActionSpace
    from p2p.config import PolicyConfig, SamplingConfig
    from p2p.data.batch import collate
    from p2p.data.dataset import GameplayDataset
    from p2p.environments.registry import make_env
    from p2p.model.inference import for_inference
    from p2p.model.losses import label_mask, policy_loss
    from p2p.model.opening import load_policy
    from p2p.model.policy import Policy
    from p2p.model.session import Session
    from p2p.model.weights import save_policy
    from p2p.play.rollout import rollout

__version__ = "0.1.0"

__all__ = [
    "Action",
    "ActionSpace",
    "GameplayDataset",
    "Policy",
    "PolicyConfig",
    "SamplingConfig",
    "Session",
    "collate",
    "for_inference",
    "label_mask",
    "load_policy",
    "make_env",
    "policy_loss",
    "rollout",
    "save_policy",
]

_HOMES = {
    "p2p.actions": ("Action", "ActionSpace"),
    "p2p.config": ("PolicyConfig", "SamplingConfig"),
    "p2p.data.batch": ("collate",),
    "p2p.data.dataset": ("GameplayDataset",),
    "p2p.environments.registry": ("make_env",),
    "p2p.model.inference": ("for_inference",),
    "p2p.model.losses": ("label_mask", "policy_loss"),
    "p2p.model.opening": ("load_policy",),
    "p2p.model.policy": ("Policy",),
    "p2p.model.session": ("Session",),
    "p2p.model.weights": ("save_policy",),
    "p2p.play.rollout": ("rollout",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    globals()[name] = value = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
