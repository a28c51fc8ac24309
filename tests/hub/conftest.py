"""The stand-in for the Hub, and the command pointed at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.hub.stand_in import HubStandIn

Repositories = dict[tuple[str, str], dict[str, bytes]]


@pytest.fixture
def make_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Repositories], HubStandIn]]:
    """Starts a stand-in that serves the given repositories; HF_ENDPOINT points at the newest one."""
    started: list[HubStandIn] = []

    def make(repositories: Repositories) -> HubStandIn:
        hub = HubStandIn(repositories)
        started.append(hub)
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        return hub

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield make
    for hub in started:
        hub.close()
