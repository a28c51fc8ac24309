"""Play in a window on a virtual X display: real pixels, real input events, a person who interferes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.actions import Action
from p2p.desktop.capture import WindowCapture
from p2p.desktop.display import find_window, focus, open_display
from p2p.desktop.input import InputDevice
from p2p.desktop.person import PersonWatch, SharedControls
from p2p.play.window import WindowSettings, open_window, play_in_window, record_person
from p2p.processes.reaper import MARK_VARIABLE
from p2p.recording import VIDEO_FILE, read_annotation, read_frames, text_spans
from p2p.text import Instruction

PROGRAM = Path(__file__).with_name("window_program.py")
RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def window(screen: str) -> Iterator[tuple[Any, Any]]:
    """A connection to the display, and the window of the program there."""
    environment = {**os.environ, "DISPLAY": screen}
    with subprocess.Popen([sys.executable, str(PROGRAM)], env=environment) as process:
        try:
            connection = open_display(screen)
            found = find_window(connection, "red and green", process)
            focus(connection, found)
            yield connection, found
            connection.close()
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


def test_pixels_are_rgb_and_keys_reach_the_program(screen: str, window: tuple[Any, Any]) -> None:
    connection, found = window
    capture, device = WindowCapture(screen, found.id, 400, 300), InputDevice(connection)

    def colour() -> tuple[int, ...]:
        frame = capture.grab()
        assert frame.shape == (300, 400, 3)
        assert frame.dtype == np.uint8
        return tuple(frame[150, 200])

    assert wait_until(lambda: colour() == RED)
    device.hold(Action(("w",)))
    assert wait_until(lambda: colour() == GREEN)
    device.hold(Action(("w", "d")))  # w stays down
    device.hold(Action(("w",)))
    assert device.sent["key down", connection.keysym_to_keycode(ord("w"))] == 1
    assert colour() == GREEN
    device.release()
    assert wait_until(lambda: colour() == RED)
    capture.close()


def test_a_window_that_is_not_wholly_on_the_screen_is_one_clear_message(screen: str, window: tuple[Any, Any]) -> None:
    connection, found = window
    capture = WindowCapture(screen, found.id, 400, 300)
    found.configure(x=1200)
    connection.sync()
    with pytest.raises(ValueError, match="not wholly on the screen"):
        capture.grab()
    capture.close()


def test_the_mouse_moves_by_the_pixels_of_the_action(window: tuple[Any, Any]) -> None:
    connection, found = window
    root = connection.screen().root
    focus(connection, found)
    before = root.query_pointer()
    InputDevice(connection).hold(Action(dx=17, dy=-9))
    connection.sync()
    after = root.query_pointer()
    assert (after.root_x - before.root_x, after.root_y - before.root_y) == (17, -9)


def test_a_key_that_the_keyboard_lacks_is_counted_and_left_out(window: tuple[Any, Any]) -> None:
    device = InputDevice(window[0])
    device.hold(Action(("NoSuchKey",)))
    assert device.unknown == {"NoSuchKey": 1}
    assert not device.sent


def test_the_model_yields_to_a_person_and_takes_over_on_the_key(screen: str, window: tuple[Any, Any]) -> None:
    connection, _ = window
    device = InputDevice(connection)
    watch = PersonWatch(screen, device)
    person = InputDevice(open_display(screen))  # somebody else at the same keyboard

    for _ in range(20):  # the model's own events are nobody's
        device.hold(Action(("w", "LeftArrow"), ("0",), 5, 3))
        device.hold(Action(("w",), (), -5, -3))
    connection.sync()
    assert watch.update() == Action()
    assert not watch.active

    person.hold(Action(("d",), ("1",), 12, -7))
    done: list[Action] = []
    assert wait_until(lambda: (done.append(watch.update()) or watch.active) and len(done[-1].buttons) == 1)
    assert watch.active
    assert watch.num_takeovers == 1
    assert done[-1].keys == ("d",)
    assert (sum(a.dx for a in done), sum(a.dy for a in done)) == (12, -7)
    assert device._down == set()  # what the model held is let go

    person.release()
    assert wait_until(lambda: watch.update() == Action())
    assert watch.active  # it stays the person's until the key
    person.hold(Action(("F9",)))
    assert wait_until(lambda: watch.update() == Action() and not watch.active)
    person.release()
    watch.update()
    assert not watch.active
    watch.close()


def test_an_answer_that_comes_while_a_person_plays_is_thrown_away(screen: str, window: tuple[Any, Any]) -> None:
    connection, _ = window
    device = InputDevice(connection)
    watch = PersonWatch(screen, device)
    controls = SharedControls(device, watch)
    person = InputDevice(open_display(screen))

    controls.execute(Action(("w",), (), 5, 3))
    controls.execute(Action(("w", "a"), (), -1, 2))
    assert controls.done() == (None, Action(("w", "a"), (), 4, 5))
    assert controls.done() == (None, Action(("w", "a")))  # held on, and moved once

    controls.execute(Action(("w",), (), 5, 3))
    person.hold(Action(("d",), (), 7, 0))
    person._connection.sync()
    before = device.sent.total()
    controls.execute(Action(("s",), ("0",), 9, 9))  # the person was quicker, in the same tick
    assert device._down == set()
    assert device.sent.total() == before + 1  # w was let go
    assert controls.done() == (Action(("d",), (), 7, 0), None)
    assert controls.done() == (Action(("d",)), None)

    person.hold(Action(("F9",)))
    person._connection.sync()
    assert controls.done() == (None, Action())  # nothing is held until the next answer
    controls.execute(Action(("w",)))
    assert controls.done() == (None, Action(("w",)))
    device.release()
    person.release()
    watch.close()


@pytest.mark.parametrize("yields", [False, True])
def test_the_model_yields_to_motion_only_if_it_is_told_to(screen: str, window: tuple[Any, Any], yields: bool) -> None:
    watch = PersonWatch(screen, InputDevice(window[0]), yields)
    person = InputDevice(open_display(screen))
    person._send("button down", 4)  # a notch of the wheel is no button
    person._send("button up", 4)
    person.hold(Action(dx=30))
    moved: list[Action] = []
    assert wait_until(lambda: (moved.append(watch.update()) or True) and sum(action.dx for action in moved) == 30)
    assert watch.active == yields
    person.hold(Action(("d",)))
    person.release()
    assert wait_until(lambda: (watch.update() or True) and watch.active)  # the key is enough
    assert watch.num_takeovers == 1
    watch.close()


def test_what_was_executed_is_recorded_with_model_and_person_apart(
    screen: str, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    settings = WindowSettings(
        f"program:{sys.executable} {PROGRAM}", echo, seconds=4, title="red and green", record=tmp_path
    )
    person = InputDevice(open_display(screen))
    said: list[str] = []

    def interfere(line: str) -> None:
        said.append(line)

    import threading

    def take_over() -> None:
        assert wait_until(lambda: bool(said))
        timer = threading.Event()
        timer.wait(1.5)
        person.hold(Action(("d",)))
        timer.wait(1.0)
        person.release()

    thread = threading.Thread(target=take_over)
    thread.start()
    report = play_in_window(settings, interfere)
    thread.join()
    assert "'red and green', 400 x 300" in said[0]
    assert report.num_takeovers == 1
    assert 0 < report.num_person_ticks < report.ticks.num_ticks
    (folder,) = tmp_path.glob("window-*")
    frames = read_annotation(folder).frame_annotations[1:]
    system = [frame for frame in frames if frame.system_action.is_known]
    user = [frame for frame in frames if frame.user_action.is_known]
    assert len(system) + len(user) == len(frames)
    assert {tuple(frame.system_action.keyboard.keys) for frame in system} <= {("w",), ()}
    assert ("d",) in {tuple(frame.user_action.keyboard.keys) for frame in user}
    assert not any(frame.user_action.is_known and frame.system_action.is_known for frame in frames)


def test_a_person_s_play_is_recorded(screen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    person = InputDevice(open_display(screen))
    told = Instruction("make it green", np.full((1, 4), 0.5, np.float32))
    settings = WindowSettings(
        f"program:{sys.executable} {PROGRAM}",
        "",
        seconds=2,
        title="red and green",
        record=tmp_path,
        instruction=told,
    )

    def press(line: str) -> None:  # the window is there
        person.hold(Action(("w",)))

    folder = record_person(settings, press)
    person.release()
    assert folder is not None
    annotation = read_annotation(folder)
    (span,) = text_spans(annotation, ["p2p"], "minilm")
    assert (span.index, span.instruction) == (1, told.text)
    np.testing.assert_array_equal(span.embedding, told.embedding)
    frames = annotation.frame_annotations[1:]
    assert all(frame.user_action.is_known and not frame.system_action.is_known for frame in frames)
    assert [tuple(frame.user_action.keyboard.keys) for frame in frames[1:]] == [("w",)] * (len(frames) - 1)
    pictures = list(read_frames(folder / VIDEO_FILE))
    assert pictures[-1][100, 100, 1] > 200  # green


def test_the_game_s_window_hears_the_keys_and_leaves_nothing(screen: str, echo: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    report = play_in_window(WindowSettings("doom:health_gathering", echo, seconds=3))
    assert report.states[0] != report.states[-1]  # the player walks
    assert report.num_distinct_frames > 5
    assert report.ticks.num_ticks + report.ticks.num_skipped >= 55
    connection = open_display(screen)
    assert not [w for w in connection.screen().root.query_tree().children if w.get_wm_name()]
    connection.close()


def test_a_larger_window_shows_the_same_picture(screen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    said: list[str] = []
    pictures = []
    for scale in (1, 2):
        with closing(open_window(WindowSettings("doom:basic", "", scale=scale), said.append)) as env:
            env.reset(seed=1)
            assert wait_until(lambda: env.render().std() > 10)
            pictures.append(env.render().astype(int))
    assert ["320 x 240" in said[0], "640 x 480" in said[1]] == [True, True]
    assert pictures[1].shape == (192, 192, 3)
    assert np.abs(pictures[0] - pictures[1]).mean() < 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "doom:basic", "scale": 3}, "--scale 3: .* 1, 2, 4 times"),
        ({"game": "program:xterm", "scale": 2}, "--scale 2: a program decides itself"),
        ({"game": "doom:basic", "seconds": float("nan")}, "nan seconds"),
        ({"game": "doom:basic", "seconds": -1.0}, "-1 seconds"),
    ],
)
def test_a_window_that_cannot_be_had_is_one_clear_message(
    screen: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    with pytest.raises(ValueError, match=message):
        play_in_window(WindowSettings(**{"address": "/nowhere", **settings}))


def started_by(pid: int) -> list[int]:
    """Processes that carry the mark of the process `pid`."""
    wanted, found = f"{MARK_VARIABLE}={pid}-".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_everything_ends_when_the_client_is_killed(screen: str, echo: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    command = ["play", "--socket", echo, "--game", "doom:health_gathering", "--window", "--seconds", "60"]
    with subprocess.Popen(
        [sys.executable, "-m", "p2p.cli", *command], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "VIZDOOM" in process.stdout.readline()
        assert len(started_by(process.pid)) >= 2  # the display and the engine
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
    assert wait_until(lambda: not started_by(process.pid))


@pytest.mark.parametrize(
    ("game", "message"),
    [("program:", "name a command"), ("program:/no/such/program", "cannot be started"), ("doom:x", "no such game")],
)
def test_a_program_that_cannot_be_played_is_one_clear_message(
    screen: str, game: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    with pytest.raises(ValueError, match=message):
        play_in_window(WindowSettings(game, "/nowhere"))


def test_a_program_that_ends_before_its_window_opens_is_reported(screen: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("DISPLAY", screen)
    with pytest.raises(ValueError, match="ended with status 1"):
        play_in_window(WindowSettings("program:false", "/nowhere"))


def test_no_display_is_one_clear_message() -> None:
    with pytest.raises(ValueError, match="':987'"):
        open_display(":987")
