"""`p2p record --window`: a person plays in a window; what was played is a recording, however it ends.

p2p record --game doom:basic --window --hours 0.5 --out runs/raw
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from p2p.actions import FRAME_RATE_HZ
from p2p.play.console import duration_text
from p2p.play.games import GAMES
from p2p.play.person import PersonWatch
from p2p.play.programs import WindowedProgram
from p2p.play.realtime import Ticker
from p2p.play.window import WindowSettings, look, open_recording, open_window, tell_of
from p2p.play.x11 import Eyes
from p2p.recording import RecordingWriter, repair_recordings


def record_person(settings: WindowSettings, say: Callable[[str], None] = lambda line: None) -> Path | None:
    """Record what a person does in the window, for `seconds` or until KeyboardInterrupt; returns the recording.

    An earlier recording in the folder that was left unfinished is completed first.

    Raises:
        ValueError: as `play_in_window`, also when the game ends; OSError: when the disk is full. What was recorded
            until then is said, and kept.
    """
    assert settings.record is not None
    for repaired in repair_recordings(settings.record):
        say(f"left unfinished by an earlier run: {repaired}")
    with ExitStack() as stack:
        program, eyes, _, person = open_window(settings, stack, say)
        for line in _introduction(settings):
            say(line)
        writer = open_recording(settings.record, settings)
        stack.callback(tell_of, writer, say)
        with writer:
            try:
                _record(settings, program, eyes, person, writer, say)
            except KeyboardInterrupt:
                if not writer.num_frames:
                    raise
    return writer.folder if writer.num_frames else None


def _introduction(settings: WindowSettings) -> list[str]:
    info = GAMES.get(settings.game)
    held = [*info.keys, *(["the mouse"] if info.mouse else [])] if info else []
    return [
        f"you play, with {', '.join(held)}: {info.instruction}" if info else "you play, with the program's own keys",
        f"recording for {duration_text(settings.seconds)}, below {settings.record}",
        "Ctrl-C here ends it sooner; what was played until then is kept",
    ]


def _record(
    settings: WindowSettings,
    program: WindowedProgram,
    eyes: Eyes,
    person: PersonWatch,
    writer: RecordingWriter,
    say: Callable[[str], None],
) -> None:
    seed, num_skipped, told = settings.seed, 0, settings.instruction
    program.new_episode(seed)
    ticker = Ticker()
    begin_ns = time.monotonic_ns()
    end_s = time.monotonic() + settings.seconds
    while time.monotonic() < end_s:
        seen_ns = time.monotonic_ns()
        frame = look(program, eyes)
        time.sleep(max(0.0, ticker.deadline_s - time.monotonic()))
        num_skipped += ticker.advance()
        writer.add(frame, person.update(), None, told.text, told.embedding, seen_ns - begin_ns)
        if program.done:
            seed += 1
            program.new_episode(seed)
    if num_skipped:
        say(f"{num_skipped} ticks were dropped: the game or the recording was too slow for {FRAME_RATE_HZ} Hz")
