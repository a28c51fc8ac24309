"""What is done with the steps of a rollout: they are recorded, filmed, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.play.overlay import draw_action
from p2p.play.rollout import Step
from p2p.recording import RecordingWriter
from p2p.recording.film import VideoWriter
from p2p.text import Instruction

_NO_INSTRUCTION = Instruction()
Acts = tuple[Action | None, Action | None]  # of a step: what a (person, model) did; None: that one did nothing


def who_acted(step: Step) -> Acts:
    """As the environment says; one that says nothing has no person in it."""
    return step.outcome.get("user"), step.outcome.get("system", step.action)


class Recorder:
    """Writes each step into a recording: the picture, and what was done after it.

    Args:
        acts: what is written down as the person's and as the model's action.
        instruction: in force from the first step on.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        acts: Callable[[Step], Acts] = who_acted,
        instruction: Instruction = _NO_INSTRUCTION,
    ) -> None:
        self._writer, self._acts, self._told = writer, acts, instruction
        self._begin_ns: int | None = None

    def __call__(self, step: Step) -> None:
        user, system = self._acts(step)
        seen_ns = step.info.get("time_ns")
        if self._begin_ns is None:
            self._begin_ns = seen_ns
        time_ns = None if seen_ns is None or self._begin_ns is None else seen_ns - self._begin_ns
        self._writer.add(step.observation, user, system, self._told.text, self._told.embedding, time_ns)


class Film:
    """Films each step, with its keys and a caption below the picture."""

    def __init__(self, writer: VideoWriter, keys: tuple[str, ...], caption: Callable[[Step], str]) -> None:
        self._writer, self._keys, self._caption = writer, keys, caption

    def __call__(self, step: Step) -> None:
        user, system = who_acted(step)
        self._writer.add(draw_action(step.observation, user or system or Action(), self._keys, self._caption(step)))


class Presses:
    """Counts in how many steps each key or mouse button ("mouse 0") was down."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, step: Step) -> None:
        self.counts.update([*step.action.keys, *(f"mouse {button}" for button in step.action.buttons)])


def score_caption(name: str) -> Callable[[Step], str]:
    """Of a film: the game, the time, and the score up to the picture."""
    return lambda step: f"{name}   {step.index / FRAME_RATE_HZ:5.1f} s   score {step.score:.0f}"
