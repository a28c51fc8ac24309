"""An X display: one of one's own if there is none, and the window of a program on it."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from p2p.processes.reaper import mark_children

WINDOW_TIMEOUT_S = 30.0
MIN_WINDOW_WIDTH = 100


@contextlib.contextmanager
def virtual_display(width: int = 1280, height: int = 1024) -> Iterator[str]:
    """The name of a display of Xvfb, such as ":3", that ends with the block.

    Raises:
        ValueError: when Xvfb is not installed or does not start.
    """
    mark_children()
    reader, writer = os.pipe()
    command = [
        "Xvfb",
        "-displayfd",
        str(writer),
        "-screen",
        "0",
        f"{width}x{height}x24",
        "-nolisten",
        "tcp",
        "-noreset",
    ]
    try:
        process = subprocess.Popen(
            command,
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C must not end it before what it shows
        )
    except FileNotFoundError as error:
        os.close(reader)
        raise ValueError(
            "Xvfb is not installed: apt install xvfb, or set DISPLAY to use the display that is there"
        ) from error
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            number = pipe.readline().strip()  # written when it listens; nothing when it ended
        if not number:
            raise ValueError(f"Xvfb did not start (status {process.wait()})")
        yield f":{number}"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def open_display(name: str) -> Any:
    """A connection to a display, as python-xlib's Display.

    Raises:
        ValueError: when there is no such display.
    """
    from Xlib import display, error

    try:
        return display.Display(name)
    except (error.DisplayError, OSError) as problem:
        raise ValueError(f"the X display {name!r} cannot be opened: {problem}") from problem


def find_window(connection: Any, title: str, process: "subprocess.Popen[bytes] | None" = None) -> Any:
    """The first visible window whose title contains `title`; waits for it, at most 30 s.

    Raises:
        ValueError: when none appears, or `process`, which was to open it, ends.
    """
    deadline_s = time.monotonic() + WINDOW_TIMEOUT_S
    while time.monotonic() < deadline_s:
        for window, name, width in _windows(connection.screen().root):
            if title.lower() in name.lower() and width >= MIN_WINDOW_WIDTH:
                return window
        if process is not None and process.poll() is not None:
            raise ValueError(f"the program ended with status {process.returncode} before it opened a window")
        time.sleep(0.05)
    raise ValueError(f"no window with {title!r} in its title appeared within {WINDOW_TIMEOUT_S:g} s")


def _windows(window: Any) -> Iterator[tuple[Any, str, int]]:
    """The visible windows with a title below a window: (window, title, width). What closes meanwhile is left out."""
    from Xlib import X, error

    for child in window.query_tree().children:
        try:
            if child.get_attributes().map_state == X.IsViewable:
                name = child.get_wm_name()
                if name:
                    yield child, str(name), child.get_geometry().width
                yield from _windows(child)
        except (error.BadWindow, error.BadDrawable):
            continue


def focus(connection: Any, window: Any) -> None:
    """Give the window the keyboard, and put the pointer into it."""
    from Xlib import X

    geometry = window.get_geometry()
    window.set_input_focus(X.RevertToParent, X.CurrentTime)
    window.warp_pointer(geometry.width // 2, geometry.height // 2)
    connection.sync()
