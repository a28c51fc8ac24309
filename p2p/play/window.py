"""Play in a window, in real time: an agent plays until a person takes over, or a person plays and is recorded.

    p2p play POLICY --game doom:health_gathering --window --seconds 60
    p2p play POLICY --game "program:crispy-doom -window -iwad freedoom1.wad" --seconds 60
    p2p record --game doom:basic --window --hours 0.5 --out runs/raw

Pixels are grabbed from the window at 20 Hz, keys and mouse go to it as real input events. When a person presses a
key or a mouse button the model yields, and takes over again on F9.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2p.actions import FRAME_RATE_HZ
from p2p.agents.controls import IdleAgent
from p2p.agents.remote import RemoteAgent
from p2p.config import FRAME_SIZE
from p2p.console import duration_text
from p2p.environments.registry import find_game, make_env
from p2p.environments.window import WindowedProgram, WindowEnv
from p2p.play.clock import RealtimeClock, TickStatistics
from p2p.play.rollout import Step, Subscriber, rollout
from p2p.play.subscribers import Film, Recorder
from p2p.recording import RecordingWriter, repair_recordings
from p2p.recording.film import VideoWriter
from p2p.text import Instruction

Say = Callable[[str], None]


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
class WindowStatistics:
    """What happened in the window; a subscriber."""

    program: WindowedProgram
    ticks: TickStatistics
    scores: list[float] = field(default_factory=list)
    num_keys: int = 0  # events of keys and buttons that were sent
    num_distinct_frames: int = 0
    num_person_ticks: int = 0
    num_takeovers: int = 0
    states: list[str] = field(default_factory=list)
    _last: bytes = b""

    def __call__(self, step: Step) -> None:
        if not self.states:
            self.states.append(self.program.state())
        small = step.observation[::8, ::8].tobytes()
        self.num_distinct_frames += small != self._last
        self._last = small
        self.num_person_ticks += step.outcome["user"] is not None

    def lines(self) -> list[str]:
        """A fact a line."""
        found = [self.ticks.summary()]
        found.append(f"{self.num_distinct_frames} distinct frames, {self.num_keys} key and button events sent")
        if self.num_takeovers:
            found.append(f"a person took over {self.num_takeovers} times, for {self.num_person_ticks} ticks")
        if self.scores:
            found.append("finished episodes, tics alive: " + ", ".join(f"{score:.0f}" for score in self.scores))
        if self.states and self.states[0]:
            found.append(f"the game's own state: {self.states[0]} at the start, {self.states[-1]} at the end")
        return found


def open_window(settings: WindowSettings, say: Say) -> WindowEnv:
    """The game in its window, which has the focus.

    Raises:
        ValueError: when the display, the program or its window cannot be had.
    """
    env = make_env(settings.game, window=True, title=settings.title, scale=settings.scale)
    if not isinstance(env, WindowEnv):
        raise ValueError(f"--game {settings.game}: it has no window; play it without --window")
    env.person.yield_to_motion = settings.yield_to_motion
    say(env.description)
    return env


def play_in_window(settings: WindowSettings, say: Say = lambda line: None) -> WindowStatistics:
    """Play for `seconds` on the display of the environment, or on a virtual one when there is none.

    Raises:
        ValueError: when the display, the program or its window cannot be had, or the server goes away.
    """
    clock = RealtimeClock(settings.seconds)
    with ExitStack() as stack:
        env = stack.enter_context(closing(open_window(settings, say)))
        agent = RemoteAgent(settings.address, any_user=settings.any_user, one_session=True)
        stack.callback(agent.close)
        agent.reset()
        agent.act(env.render(), {})  # the server is awake before the clock starts
        statistics = WindowStatistics(env.program, clock.statistics)
        subscribers: list[Subscriber] = [statistics]
        if settings.video:
            film = stack.enter_context(VideoWriter(settings.video))
            subscribers.append(Film(film, (), lambda step: f"{settings.game}   {_who(step)}"))
        if settings.record is not None:
            _repair(settings.record, say)
            subscribers.append(Recorder(stack.enter_context(recording(settings.record, settings, say))))
        episodes = rollout(env, agent, subscribers, clock, None, settings.seed)
        statistics.states.append(env.program.state())
        statistics.num_keys = sum(count for (kind, _), count in env.device.sent.items() if kind != "motion")
        statistics.num_takeovers = env.person.num_takeovers
    statistics.scores = [episode.score for episode in episodes if episode.finished]
    return statistics


def _who(step: Step) -> str:
    return "the model plays" if step.outcome["user"] is None else "the person plays"


def record_person(settings: WindowSettings, say: Say = lambda line: None) -> Path | None:
    """Record what a person does in the window, for `seconds` or until KeyboardInterrupt; returns the recording.

    An earlier recording in the folder that was left unfinished is completed first.

    Raises:
        ValueError: as `play_in_window`, also when the game ends; OSError: when the disk is full. What was recorded
            until then is said, and kept.
    """
    assert settings.record is not None
    _repair(settings.record, say)
    clock = RealtimeClock(settings.seconds)
    with closing(open_window(settings, say)) as env:
        env.person.always = True
        for line in _introduction(settings):
            say(line)
        with recording(settings.record, settings, say) as writer:
            try:
                recorder = Recorder(writer, instruction=settings.instruction)
                rollout(env, IdleAgent(), [recorder], clock, None, settings.seed)
            except KeyboardInterrupt:
                if not writer.num_frames:
                    raise
            if clock.statistics.num_skipped:
                say(
                    f"{clock.statistics.num_skipped} ticks were dropped: the game or the recording was too slow "
                    f"for {FRAME_RATE_HZ} Hz"
                )
    return writer.folder if writer.num_frames else None


def _introduction(settings: WindowSettings) -> list[str]:
    game = find_game(settings.game)
    held = [*game.keys, *(["the mouse"] if game.mouse else [])]
    return [
        f"you play, with {', '.join(held)}: {game.instruction}" if held else "you play, with the program's own keys",
        f"recording for {duration_text(settings.seconds)}, below {settings.record}",
        "Ctrl-C here ends it sooner; what was played until then is kept",
    ]


def _repair(folder: Path, say: Say) -> None:
    for repaired in repair_recordings(folder):
        say(f"left unfinished by an earlier run: {repaired}")


@contextmanager
def recording(folder: Path, settings: WindowSettings, say: Say) -> Iterator[RecordingWriter]:
    """A new recording below `folder`, under a name that nobody else takes; where it is, is said however it ends."""
    name = f"{time.strftime('window-%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    writer = RecordingWriter(
        folder / name,
        name,
        size=(FRAME_SIZE, FRAME_SIZE),
        game=settings.game,
        preset="ultrafast",
        text_tokenizer=settings.text_tokenizer,
    )
    try:
        with writer:
            yield writer
    finally:
        if writer.num_frames and writer.folder.is_dir():
            say(f"{writer.folder}: {duration_text(writer.num_frames / FRAME_RATE_HZ)} recorded")
