"""The policy network: what it computes, and the folder that holds its weights."""

from p2p.model.policy import ActionLogits, Policy
from p2p.model.weights import load_policy, save_policy

__all__ = ["ActionLogits", "Policy", "load_policy", "save_policy"]
