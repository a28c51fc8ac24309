"""Real-time play in a window: what Recap does on Windows, on any X display (a virtual one when there is none).

    p2p play POLICY --game doom:health_gathering --window --seconds 60
    p2p play POLICY --game "program:crispy-doom -window -iwad freedoom1.wad" --seconds 60

Pixels are grabbed from the window at 20 Hz, keys and mouse go to it as real input events. When a person presses a
key or a mouse button the model yields, and takes over again on F9. record_person.py records a person's play.
"""

import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2p.actions import FRAME_RATE_HZ, Action
from p2p.config import FRAME_SIZE
from p2p.data.resize import resize
from p2p.play.client import Client
from p2p.play.console import duration_text
from p2p.play.games import Frame
from p2p.play.overlay import draw_action
from p2p.play.person import Controls, PersonWatch
from p2p.play.programs import WindowedProgram, open_program
from p2p.play.realtime import RealtimeLoop, TickStatistics
from p2p.play.x11 import Eyes, Hands, find_window, focus, open_display, virtual_display
from p2p.recording import RecordingWriter, repair_recordings
from p2p.recording.film import VideoWriter
from p2p.text import Instruction


@dataclass(frozen=True)
class WindowSettings:
    """What is played, for how long, and what is written down. `seed` is of the first episode.

    `instruction` is what a person who is recorded was told, `text_tokenizer` the name of its embedder, `any_user`
    whether a server of another user may play, `yield_to_motion` whether a person takes over by mouse motion too,
    `scale` how many times its own size the game's window has.

    Raises:
        ValueError: when the time is none.
    """

    game: str
    address: str
    seconds: float = 60.0
    seed: int = 0
    title: str = ""
    record: Path | None = None
    video: Path | None = None
    instruction: Instruction = Instruction()
    text_tokenizer: str = "minilm"
    any_user: bool = False
    yield_to_motion: bool = False
    scale: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"{self.seconds:g} seconds of play: expected a time above 0")


@dataclass
class WindowReport:
    """What happened."""

    ticks: TickStatistics = field(default_factory=TickStatistics)
    scores: list[float] = field(default_factory=list)
    num_keys: int = 0  # events of keys and buttons that were sent
    num_distinct_frames: int = 0
    num_person_ticks: int = 0
    num_takeovers: int = 0
    states: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, a fact a line."""
        found = [self.ticks.summary()]
        found.append(f"{self.num_distinct_frames} distinct frames, {self.num_keys} key and button events sent")
        if self.num_takeovers:
            found.append(f"a person took over {self.num_takeovers} times, for {self.num_person_ticks} ticks")
        if self.scores:
            found.append("finished episodes, tics alive: " + ", ".join(f"{score:.0f}" for score in self.scores))
        if self.states and self.states[0]:
            found.append(f"the game's own state: {self.states[0]} at the start, {self.states[-1]} at the end")
        return found


def play_in_window(settings: WindowSettings, say: Callable[[str], None] = lambda line: None) -> WindowReport:
    """Play for `seconds` on the display of the environment, or on a virtual one when there is none.

    Raises:
        ValueError: when the display, the program or its window cannot be had, or the server goes away.
    """
    with ExitStack() as stack:
        program, eyes, hands, person = open_window(settings, stack, say)
        client = stack.enter_context(Client(settings.address, any_user=settings.any_user))
        client.ask(look(program, eyes))  # the server is awake before the clock starts
        hands.hold(Action(dx=1))  # the first motion after the focus is swallowed
        return _Session(settings, program, eyes, hands, person, client, say).run(stack)


def open_window(
    settings: WindowSettings, stack: ExitStack, say: Callable[[str], None]
) -> tuple[WindowedProgram, Eyes, Hands, PersonWatch]:
    """The program in its window with the focus, and eyes, hands and a watch for it; all end with the stack."""
    name = os.environ.get("DISPLAY") or stack.enter_context(_own_display())
    program = open_program(settings.game, settings.title, settings.scale)
    stack.callback(program.close)
    connection = open_display(name)
    stack.callback(connection.close)
    window = find_window(connection, program.title, program.process)
    geometry = window.get_geometry()
    eyes = Eyes(name, window.id, geometry.width, geometry.height)
    stack.callback(eyes.close)
    hands = Hands(connection)
    stack.callback(hands.release)
    person = PersonWatch(name, hands, settings.yield_to_motion)
    stack.callback(person.close)
    focus(connection, window)
    say(f"display {name}, window {window.get_wm_name()!r}, {geometry.width} x {geometry.height}")
    return program, eyes, hands, person


def open_recording(folder: Path, settings: WindowSettings) -> RecordingWriter:
    """A new recording below `folder`, under a name that nobody else takes."""
    name = f"{time.strftime('window-%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    return RecordingWriter(
        folder / name,
        name,
        size=(FRAME_SIZE, FRAME_SIZE),
        game=settings.game,
        preset="ultrafast",
        text_tokenizer=settings.text_tokenizer,
    )


def tell_of(writer: RecordingWriter, say: Callable[[str], None]) -> None:
    """Say where the recording is, once it was closed, and how long."""
    if writer.num_frames and writer.folder.is_dir():
        say(f"{writer.folder}: {duration_text(writer.num_frames / FRAME_RATE_HZ)} recorded")


def look(program: WindowedProgram, eyes: Eyes) -> Frame:
    """The window now, uint8 [192, 192, 3] RGB.

    Raises:
        ValueError: when it is gone, with how the program ended if it did.
    """
    try:
        picture = eyes.grab()
    except ValueError as error:
        raise ValueError(program.ended() or str(error)) from error
    return resize(picture, FRAME_SIZE, FRAME_SIZE)


@contextmanager
def _own_display() -> Iterator[str]:
    """A virtual display, which the programs started meanwhile find in their environment."""
    with virtual_display() as name:
        os.environ["DISPLAY"] = name
        try:
            yield name
        finally:
            del os.environ["DISPLAY"]


class _Session:
    """The loop: grab, send, execute each answer when it comes, until the tick is over."""

    def __init__(
        self,
        settings: WindowSettings,
        program: WindowedProgram,
        eyes: Eyes,
        hands: Hands,
        person: PersonWatch,
        client: Client,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._program, self._eyes = settings, program, eyes
        self._hands, self._person, self._client = hands, person, client
        self._controls = Controls(hands, person)
        self._say = say
        self._report = WindowReport()

    def run(self, stack: ExitStack) -> WindowReport:
        settings, report, program = self._settings, self._report, self._program
        film = stack.enter_context(VideoWriter(settings.video)) if settings.video else None
        writer = self._recording(stack)
        seed, last = settings.seed, b""
        program.new_episode(seed)
        report.states.append(program.state())
        loop = RealtimeLoop(self._client, report.ticks)
        begin_ns = time.monotonic_ns()
        end_s = time.monotonic() + settings.seconds
        while time.monotonic() < end_s:
            seen_ns = time.monotonic_ns()
            frame = look(self._program, self._eyes)
            small = frame[::8, ::8].tobytes()
            report.num_distinct_frames += small != last
            last = small
            loop.tick(frame, self._controls.execute)
            user, system = self._controls.done()
            report.num_person_ticks += user is not None
            if writer is not None:
                writer.add(frame, user, system, time_ns=seen_ns - begin_ns)
            if film is not None:
                who = "the person plays" if user is not None else "the model plays"
                film.add(draw_action(frame, user or system or Action(), (), f"{settings.game}   {who}"))
            if program.done:
                report.scores.append(program.score)
                seed += 1
                self._controls.release()
                program.new_episode(seed)
        report.states.append(program.state())
        sent = self._hands.sent
        report.num_keys = sum(count for (kind, _), count in sent.items() if kind != "motion")
        report.num_takeovers = self._person.num_takeovers
        return report

    def _recording(self, stack: ExitStack) -> RecordingWriter | None:
        """Where what happens is written down, if it is; closed and told of when the stack ends, however it does."""
        folder = self._settings.record
        if folder is None:
            return None
        for repaired in repair_recordings(folder):
            self._say(f"left unfinished by an earlier run: {repaired}")
        writer = open_recording(folder, self._settings)
        stack.callback(tell_of, writer, self._say)
        return stack.enter_context(writer)
