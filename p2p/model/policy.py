"""A policy: the network, and the way it plays."""

from __future__ import annotations

from p2p.config import SamplingConfig
from p2p.model.network import Network
from p2p.model.session import Session
from p2p.text import Embedder


class Policy(Network):
    """The network with its sessions of play; see `Network` for what it computes."""

    def session(
        self,
        seed: int | None = None,
        sampling: SamplingConfig | None = None,
        mouse_sampling: str | None = None,
        clear_every: int = 0,
        embedder: Embedder | None = None,
    ) -> Session:
        """This policy at play, `policy.session(seed=0).act(frame)`: see `Session`."""
        return Session(self, seed, sampling, mouse_sampling, clear_every, embedder)
