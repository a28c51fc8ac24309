"""What answers the frames of one session: a policy, an echo, or a recording played back."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from p2p.actions import Action
from p2p.protocol import Frame
from p2p_serve.latency import Marks
from p2p_serve.text import TextSource

if TYPE_CHECKING:
    from p2p.model.session import Session
    from p2p.recording import RecordingWriter

log = logging.getLogger(__name__)


class Player(Protocol):
    """Serves one session at a time; every method is called from the inference thread."""

    def warm_up(self) -> None:
        """Make the first answers as quick as the later ones."""

    def start(self) -> None:
        """A session begins: nothing of an earlier one may be left."""

    def act(self, frame: Frame, marks: Marks) -> Action:
        """The answer to a frame."""

    def after_answer(self) -> None:
        """Work that can wait until the answer is on its way."""

    def forget(self) -> None:
        """Forget the history of the session."""

    def end(self) -> None:
        """The session is over."""


class EchoPlayer:
    """Answers every frame at once with one and the same action: for trying a connection."""

    def __init__(self, action: Action = Action()) -> None:  # noqa: B008 (frozen)
        self._action = action

    def warm_up(self) -> None: ...

    def start(self) -> None: ...

    def act(self, frame: Frame, marks: Marks) -> Action:
        return self._action

    def after_answer(self) -> None: ...

    def forget(self) -> None: ...

    def end(self) -> None: ...


class PlaybackPlayer:
    """Answers with the actions of a recording, by how far the frames' ids have counted since the session began."""

    def __init__(self, actions: Sequence[Action]) -> None:
        self._actions = actions
        self._first_id: int | None = None
        self._ended = False

    def warm_up(self) -> None: ...

    def start(self) -> None:
        self._first_id, self._ended = None, False

    def act(self, frame: Frame, marks: Marks) -> Action:
        if self._first_id is None:
            self._first_id = frame.id
        index = frame.id - self._first_id
        if 0 <= index < len(self._actions):
            return self._actions[index]
        if not self._ended:
            log.info("the recording has ended after %d actions; no key is held from here on", len(self._actions))
            self._ended = True
        return Action()

    def after_answer(self) -> None: ...

    def forget(self) -> None:
        self._first_id = None

    def end(self) -> None: ...


def recorded_actions(path: Path) -> list[Action]:
    """The actions of a recording's steps, with the exact motion in pixels; unknown ones become no action.

    Raises:
        ValueError: when there is no readable annotation at `path` (a folder or the file), or it has no step.
    """
    from p2p.recording import executed_action, read_annotation

    actions = [executed_action(frame)[0] or Action() for frame in read_annotation(path).frame_annotations[1:]]
    if not actions:
        raise ValueError(f"{path}: holds no step to play back; a recording needs at least two annotated frames")
    return actions


class SessionRecorder:
    """Writes each session into a folder of its own: frames as the model saw them, actions as system actions.

    What an earlier server left unfinished in `folder` is completed first.
    """

    def __init__(self, folder: Path, size: tuple[int, int], text_embedder: str = "gemma") -> None:
        from p2p.recording import repair_recordings

        self._folder = folder
        self._size = size
        self._text_embedder = text_embedder
        self._writer: RecordingWriter | None = None
        self._begin_ns: int | None = None
        for repaired in repair_recordings(folder):
            log.info("repaired: %s", repaired)

    def start(self) -> None:
        from p2p.recording import RecordingWriter

        self._begin_ns = None
        name = f"session-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        try:
            self._writer = RecordingWriter(
                self._folder / name, name, size=self._size, preset="ultrafast", text_tokenizer=self._text_embedder
            )
        except OSError as error:
            self._writer = None
            log.warning("this session is not recorded: %s", error)

    def add(
        self,
        frame: np.ndarray,  # type: ignore[type-arg]
        action: Action,
        instruction: str,
        embedding: np.ndarray | None,  # type: ignore[type-arg]
        time_s: float,
    ) -> None:
        """The next frame and its answer; `time_s` is when the frame came, by any clock that runs on."""
        if self._writer is None:
            return
        now_ns = int(time_s * 1e9)
        self._begin_ns = now_ns if self._begin_ns is None else self._begin_ns
        try:
            self._writer.add(frame, None, action, instruction, embedding, now_ns - self._begin_ns)
        except (OSError, ValueError) as error:  # a full disk costs the rest of the recording, not the session
            log.warning("the recording of this session ends here: %s", error)
            self.end()

    def end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            folder = writer.close()
        except ValueError as error:
            log.warning("%s", error)
        else:
            if folder is not None:
                log.info("recorded: %s, %d frames", folder, writer.num_frames)


class PolicyPlayer:
    """A policy at play: a session of it, with the server's clock, instruction and recorder.

    Args:
        text: where the instruction in force is read from, once a frame.
        forget_after_s: forget the history when frames have stopped for longer than this; 0: never.
        recorder: writes the session down.
    """

    def __init__(
        self,
        session: Session,
        text: TextSource,
        forget_after_s: float = 0.0,
        recorder: SessionRecorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._text = text
        self._forget_after_s = forget_after_s
        self._recorder = recorder
        self._clock = clock
        self._last_frame_s = float("-inf")
        self._to_record: tuple[np.ndarray, Action, str, np.ndarray | None, float] | None = None  # type: ignore[type-arg]

    def warm_up(self) -> None:
        self._session.warm_up()

    def start(self) -> None:
        self._session.restart()
        self._last_frame_s = float("-inf")
        if self._recorder is not None:
            self._recorder.start()

    def forget(self) -> None:
        self._session.forget()

    def act(self, frame: Frame, marks: Marks) -> Action:
        now = self._clock()
        if 0 < self._forget_after_s < now - self._last_frame_s:
            self._session.forget()
        self._last_frame_s = now
        image = self._session.fit(frame.image)
        marks.end("resize")
        instruction = self._text.current
        begin = time.monotonic()
        action = self._session.act(image, instruction.embedding)
        marks.end("model", begin + self._session.last_timing.model_s)
        marks.end("sampling")
        if self._recorder is not None:
            self._to_record = (image, action, instruction.text, instruction.embedding, now)
        return action

    def after_answer(self) -> None:
        self._session.finish_step()
        if self._recorder is not None and self._to_record is not None:
            self._recorder.add(*self._to_record)
            self._to_record = None

    def end(self) -> None:
        if self._recorder is not None:
            self._recorder.end()
