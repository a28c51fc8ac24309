"""The policy network: what it computes, the folder that holds its weights, and how it plays."""

from p2p.model.network import ActionLogits
from p2p.model.opening import load_policy
from p2p.model.policy import Policy
from p2p.model.weights import save_policy

__all__ = ["ActionLogits", "Policy", "load_policy", "save_policy"]
