"""Real-time play in a window: what Recap does on Windows, on any X display (a virtual one when there is none).

    p2p play POLICY --game doom:health_gathering --window --seconds 60
    p2p play POLICY --game "program:crispy-doom -window -iwad freedoom1.wad" --seconds 60

Pixels are grabbed from the window at 20 Hz, keys and mouse go to it as real input events. When a person touches the
keyboard or the mouse the model yields, and takes over again on F9. `p2p record --window` records a person's play.
"""

import os
import secrets
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from p2p.actions import Action
from p2p.data.resize import resize
from p2p.play.client import Client
from p2p.play.games import FRAME_SIZE, Frame, GameInfo, game_info
from p2p.play.overlay import VideoWriter, draw_action
from p2p.play.person import PersonWatch
from p2p.play.realtime import RealtimeLoop, Ticker, TickStatistics
from p2p.play.reaper import mark_children
from p2p.play.x11 import Eyes, Hands, find_window, focus, open_display, virtual_display
from p2p.recording import RecordingWriter
from p2p.text import Instruction

PROGRAM = "program:"
DOOM_TITLE = "VIZDOOM"
TICRATE = 40  # of the engine: two tics are 1/20 s

DOOM_BINDINGS = {
    "w": "+forward",
    "s": "+back",
    "a": "+moveleft",
    "d": "+moveright",
    "leftarrow": "+left",
    "rightarrow": "+right",
    "space": "+attack",
    "mouse1": "+attack",
    "shift": "+speed",
}


class WindowedProgram(Protocol):
    """What has the window; it goes on by itself."""

    @property
    def title(self) -> str:
        """Part of the window's title."""

    @property
    def process(self) -> "subprocess.Popen[bytes] | None":
        """The process whose end means that no window will come, if there is one."""

    def new_episode(self, seed: int) -> None: ...

    @property
    def done(self) -> bool: ...

    @property
    def score(self) -> float: ...

    def state(self) -> str:
        """What the program itself says of the game, in a few words; empty where it says nothing."""

    def close(self) -> None: ...


class DoomWindow:
    """ViZDoom in a window, with the keyboard and the mouse; the engine still tells time and pose."""

    def __init__(self, info: GameInfo) -> None:
        from p2p.play.doom import make_engine

        self.title, self.process = DOOM_TITLE, None
        self._folder = tempfile.TemporaryDirectory(prefix="p2p-doom-")
        settings = "\n".join(f"{key}={command}" for key, command in DOOM_BINDINGS.items())
        # The engine reads bindings from this file only: as command-line arguments it ignores them without a word.
        path = Path(self._folder.name) / "engine.ini"
        path.write_text(f"[GlobalSettings]\nUse_Mouse=true\n[Doom.Bindings]\n{settings}\n")
        mark_children()
        self._engine = make_engine(info, path, window=True, ticrate=TICRATE)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="doom", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        """The engine runs by itself; what is known of it goes on only when it is asked to advance."""
        while not self._closing.is_set():
            with self._lock:
                if not self._engine.is_episode_finished():
                    self._engine.advance_action(1)
            self._closing.wait(0.002)

    def new_episode(self, seed: int) -> None:
        with self._lock:
            self._engine.set_seed(seed % 2**31)
            self._engine.new_episode()

    @property
    def done(self) -> bool:
        with self._lock:
            return bool(self._engine.is_episode_finished())

    @property
    def score(self) -> float:
        with self._lock:  # this mode loses rewards; the time alive does not lie
            return float(self._engine.get_episode_time())

    def state(self) -> str:
        import vizdoom

        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        with self._lock:
            x, y, angle = (self._engine.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        return f"position {x:.0f} {y:.0f}, angle {angle:.0f}"

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._engine.close()
        self._folder.cleanup()


class Program:
    """Any program that opens a window; nothing is known of it but its pixels."""

    def __init__(self, command: str, title: str = "") -> None:
        arguments = shlex.split(command)
        if not arguments:
            raise ValueError(f"--game {PROGRAM!r}: name a command, such as program:'crispy-doom -window'")
        mark_children()
        self.title = title
        self.done, self.score = False, float("nan")
        self._folder = tempfile.TemporaryDirectory(prefix="p2p-program-")
        environment = {**os.environ, "SDL_AUDIODRIVER": "dummy"}
        try:
            self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                arguments,
                cwd=self._folder.name,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            self._folder.cleanup()
            raise ValueError(f"{arguments[0]}: cannot be started: {error.strerror or error}") from error

    def new_episode(self, seed: int) -> None:
        return

    def state(self) -> str:
        return ""

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


@dataclass(frozen=True)
class WindowSettings:
    """What is played, for how long, and what is written down. `seed` is of the first episode.

    `instruction` is what a person who is recorded was told, `text_tokenizer` the name of its embedder, `any_user`
    whether a server of another user may play.
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


def open_program(settings: WindowSettings) -> WindowedProgram:
    """Start what `--game` names."""
    if settings.game.startswith(PROGRAM):
        return Program(settings.game.removeprefix(PROGRAM), settings.title)
    return DoomWindow(game_info(settings.game))


def play_in_window(settings: WindowSettings, say: Callable[[str], None] = lambda line: None) -> WindowReport:
    """Play for `seconds` on the display of the environment, or on a virtual one when there is none.

    Raises:
        ValueError: when the display, the program or its window cannot be had, or the server goes away.
    """
    with ExitStack() as stack:
        program, eyes, hands, person = _open(settings, stack, say)
        client = stack.enter_context(Client(settings.address, any_user=settings.any_user))
        client.ask(resize(eyes.grab(), FRAME_SIZE, FRAME_SIZE))  # the server is awake before the clock starts
        hands.hold(Action(dx=1))  # the first motion after the focus is swallowed
        return _Session(settings, program, eyes, hands, person, client).run(stack)


def record_person(settings: WindowSettings, say: Callable[[str], None] = lambda line: None) -> tuple[Path | None, int]:
    """Record what a person does in the window for `seconds`; returns the recording and how many of its ticks were late.

    Raises:
        ValueError: as `play_in_window`.
    """
    assert settings.record is not None
    with ExitStack() as stack:
        program, eyes, _, person = _open(settings, stack, say)
        seed, num_skipped = settings.seed, 0
        program.new_episode(seed)
        told = settings.instruction
        writer = stack.enter_context(_writer(settings.record, settings))
        ticker = Ticker()
        end_s = time.monotonic() + settings.seconds
        while time.monotonic() < end_s:
            frame = resize(eyes.grab(), FRAME_SIZE, FRAME_SIZE)
            time.sleep(max(0.0, ticker.deadline_s - time.monotonic()))
            num_skipped += ticker.advance()
            writer.add(frame, person.update(), None, told.text, told.embedding)
            if program.done:
                seed += 1
                program.new_episode(seed)
    return writer.folder, num_skipped


def _open(
    settings: WindowSettings, stack: ExitStack, say: Callable[[str], None]
) -> tuple[WindowedProgram, Eyes, Hands, PersonWatch]:
    """The program in its window with the focus, and eyes, hands and a watch for it; all end with the stack."""
    name = os.environ.get("DISPLAY") or stack.enter_context(_own_display())
    program = open_program(settings)
    stack.callback(program.close)
    connection = open_display(name)
    stack.callback(connection.close)
    window = find_window(connection, program.title, program.process)
    geometry = window.get_geometry()
    eyes = Eyes(name, window.id, geometry.width, geometry.height)
    stack.callback(eyes.close)
    hands = Hands(connection)
    stack.callback(hands.release)
    person = PersonWatch(name, hands)
    stack.callback(person.close)
    focus(connection, window)
    say(f"display {name}, window {window.get_wm_name()!r}, {geometry.width} x {geometry.height}")
    return program, eyes, hands, person


def _writer(folder: Path, settings: WindowSettings) -> RecordingWriter:
    name = f"{time.strftime('window-%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    return RecordingWriter(
        folder / name,
        name,
        size=(FRAME_SIZE, FRAME_SIZE),
        game=settings.game,
        preset="ultrafast",
        text_tokenizer=settings.text_tokenizer,
    )


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
    """The loop: grab, send, wait for the tick, execute."""

    def __init__(
        self,
        settings: WindowSettings,
        program: WindowedProgram,
        eyes: Eyes,
        hands: Hands,
        person: PersonWatch,
        client: Client,
    ) -> None:
        self._settings, self._program, self._eyes = settings, program, eyes
        self._hands, self._person, self._client = hands, person, client
        self._report = WindowReport()

    def run(self, stack: ExitStack) -> WindowReport:
        settings, report, program = self._settings, self._report, self._program
        film = stack.enter_context(VideoWriter(settings.video)) if settings.video else None
        writer = stack.enter_context(_writer(settings.record, settings)) if settings.record else None
        seed, last = settings.seed, b""
        program.new_episode(seed)
        report.states.append(program.state())
        loop = RealtimeLoop(self._client, report.ticks)
        end_s = time.monotonic() + settings.seconds
        while time.monotonic() < end_s:
            frame = self._look()
            small = frame[::8, ::8].tobytes()
            report.num_distinct_frames += small != last
            last = small
            intended = loop.tick(frame)
            user, system = self._execute(intended)
            executed = user or system or Action()
            if writer is not None:
                writer.add(frame, user, system)
            if film is not None:
                who = "the person plays" if user is not None else "the model plays"
                film.add(draw_action(frame, executed, (), f"{settings.game}   {who}"))
            if program.done:
                report.scores.append(program.score)
                seed += 1
                self._hands.release()
                program.new_episode(seed)
        report.states.append(program.state())
        sent = self._hands.sent
        report.num_keys = sum(count for (kind, _), count in sent.items() if kind != "motion")
        report.num_takeovers = self._person.num_takeovers
        return report

    def _look(self) -> Frame:
        return resize(self._eyes.grab(), FRAME_SIZE, FRAME_SIZE)

    def _execute(self, intended: Action) -> tuple[Action | None, Action | None]:
        """Let the model act unless a person does; returns what the (person, model) did."""
        done = self._person.update()
        if self._person.active:
            self._report.num_person_ticks += 1
            return done, None
        self._hands.hold(intended)
        return None, intended
