"""A policy in this process as an agent."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from p2p.actions import Action
from p2p.environments.game import Frame, Info


@runtime_checkable
class PolicySession(Protocol):
    """What of `p2p.Session` is needed here."""

    def act(self, frame: Frame, text: str | None = None) -> Action: ...

    def forget(self) -> None: ...


class SessionAgent:
    """A session of a policy; it forgets its history before each episode, what it draws goes on.

    Args:
        text: the instruction in force; None: none.
    """

    def __init__(self, session: PolicySession, text: str | None = None) -> None:
        self._session, self._text = session, text

    def reset(self, seed: int) -> None:
        self._session.forget()

    def act(self, observation: Frame, info: Info) -> Action:
        return self._session.act(observation, self._text)
