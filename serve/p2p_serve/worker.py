"""The inference thread: takes the newest frame of each session, lets its player answer, hands the answer on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from p2p.protocol import Frame, encode_action
from p2p_serve.latency import Marks
from p2p_serve.players import Player
from p2p_serve.quiet import QuietLog

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Channel:
    """One session as the inference thread sees it. Only the worker changes it, under its lock.

    `deliver(message, marks)` gets each answer, `fail()` is called when the player broke, `release()` when the
    player is free for another session; all from the inference thread.
    """

    player: Player
    deliver: Callable[[bytes, Marks], None]
    fail: Callable[[], None]
    release: Callable[[], None]
    pending: tuple[Frame, Marks] | None = None
    num_dropped: int = 0
    begun: bool = False
    forget: bool = False
    ended: bool = False
    queued: bool = field(default=False, repr=False)


class Worker:
    """One thread for all sessions: a model has one device, and turns are short."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Channel] = deque()
        self._stopping = False
        self._say = QuietLog(log)
        self._warming: list[Player] = []
        self._on_warm: Callable[[bool], None] = lambda _: None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self, players: list[Player], on_warm: Callable[[bool], None]) -> None:
        """Begin, with the warm-up of the players; frames that come meanwhile wait.

        `on_warm` is called from the thread, with whether every player could be warmed up.
        """
        self._warming, self._on_warm = list(players), on_warm
        self._thread.start()

    def submit(self, channel: Channel, frame: Frame, marks: Marks) -> None:
        """The newest frame of a session; one that still waits is dropped."""
        with self._changed:
            if channel.ended:
                return
            if channel.pending is not None:
                channel.num_dropped += 1
            channel.pending = (frame, marks)
            self._enqueue(channel)

    def forget(self, channel: Channel) -> None:
        """Forget the session's history before its next frame."""
        with self._changed:
            channel.forget = True

    def end(self, channel: Channel) -> None:
        """The session is over; a frame that still waits is not answered."""
        with self._changed:
            channel.ended, channel.pending = True, None
            self._enqueue(channel)

    def stop(self, timeout_s: float) -> bool:
        """End every session that was ended before, then the thread; False when it did not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _enqueue(self, channel: Channel) -> None:
        if not channel.queued:
            channel.queued = True
            self._queue.append(channel)
            self._changed.notify()

    def _run(self) -> None:
        all_well = True
        while self._warming and not self._stopping:
            all_well &= self._guard(self._warming.pop().warm_up)
        self._on_warm(all_well)
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                channel = self._queue.popleft()
                channel.queued = False
                ended, work, channel.pending = channel.ended, channel.pending, None
                forget, channel.forget = channel.forget, False
            if ended:
                self._end(channel)
            elif work is not None and not self._guard(partial(self._answer, channel, *work, forget)):
                channel.fail()

    def _answer(self, channel: Channel, frame: Frame, marks: Marks, forget: bool) -> None:
        marks.end("queue")
        if not channel.begun:
            channel.begun = True
            channel.player.start()
        if forget:
            channel.player.forget()
        action = channel.player.act(frame, marks)
        message = encode_action(action, frame.id)
        marks.end("sampling")
        channel.deliver(message, marks)
        channel.player.after_answer()

    def _end(self, channel: Channel) -> None:
        if channel.begun:
            self._guard(channel.player.end)
        channel.release()

    def _guard(self, work: Callable[[], None]) -> bool:
        """The one edge where any error of a player is caught: it costs that session, not the server."""
        try:
            work()
        except Exception:  # noqa: BLE001 (the named edge; reported below)
            self._say.exception("the player failed")
            return False
        return True
