"""An X display as Recap sees Windows: pixels of a window grabbed, keys and mouse sent as real input events.

Grabbing is XShm by ctypes (a copy in shared memory, the quickest way without a compositor); input is XTEST.
"""

import contextlib
import ctypes
import ctypes.util
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from p2p.actions import Action
from p2p.play.games import Frame
from p2p.play.reaper import mark_children

WINDOW_TIMEOUT_S = 30.0
MIN_WINDOW_WIDTH = 100
KEYSYMS = {
    "Space": "space",
    "DownArrow": "Down",
    "UpArrow": "Up",
    "LeftArrow": "Left",
    "RightArrow": "Right",
    "LeftShift": "Shift_L",
    "RightShift": "Shift_R",
}  # the other keys of the action space have X's own names
MOUSE_BUTTONS = {"0": 1, "1": 3, "2": 2}


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


# ------------------------------------------------------------------ eyes


class _Image(ctypes.Structure):
    """The beginning of Xlib's XImage, up to the fields that are read here."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("xoffset", ctypes.c_int),
        ("format", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("byte_order", ctypes.c_int),
        ("bitmap_unit", ctypes.c_int),
        ("bitmap_bit_order", ctypes.c_int),
        ("bitmap_pad", ctypes.c_int),
        ("depth", ctypes.c_int),
        ("bytes_per_line", ctypes.c_int),
        ("bits_per_pixel", ctypes.c_int),
    )


class _Segment(ctypes.Structure):
    """XShmSegmentInfo."""

    _fields_ = (
        ("shmseg", ctypes.c_ulong),
        ("shmid", ctypes.c_int),
        ("shmaddr", ctypes.c_void_p),
        ("readOnly", ctypes.c_int),
    )


_IPC_PRIVATE, _IPC_CREAT, _IPC_RMID, _Z_PIXMAP, _ALL_PLANES = 0, 0o1000, 0, 2, ctypes.c_ulong(-1).value


class Eyes:
    """Pixels of one window, in shared memory.

    Raises:
        ValueError: when the display or the shared memory is not to be had, or its pixels are not 32 bits wide.
    """

    def __init__(self, display_name: str, window_id: int, width: int, height: int) -> None:
        self._x, self._ext, self._libc = _libraries()
        self._display = self._x.XOpenDisplay(display_name.encode())
        if not self._display:
            raise ValueError(f"the X display {display_name!r} cannot be opened")
        self._window = window_id
        self._segment = _Segment()
        screen = self._x.XDefaultScreen(self._display)
        depth = self._x.XDefaultDepth(self._display, screen)
        self._image = self._ext.XShmCreateImage(
            self._display,
            self._x.XDefaultVisual(self._display, screen),
            depth,
            _Z_PIXMAP,
            None,
            ctypes.byref(self._segment),
            width,
            height,
        )
        if not self._image or self._image.contents.bits_per_pixel != 32:
            raise ValueError(f"display {display_name} has {depth} bit colours; 24 are needed")
        image = self._image.contents
        size = image.bytes_per_line * height
        self._segment.shmid = self._libc.shmget(_IPC_PRIVATE, size, _IPC_CREAT | 0o600)
        if self._segment.shmid < 0:
            raise ValueError(f"no shared memory of {size} bytes: {os.strerror(ctypes.get_errno())}")
        self._segment.shmaddr = image.data = self._libc.shmat(self._segment.shmid, None, 0)
        self._ext.XShmAttach(self._display, ctypes.byref(self._segment))
        self._x.XSync(self._display, 0)
        self._libc.shmctl(self._segment.shmid, _IPC_RMID, None)  # it goes when both sides have let go of it
        buffer = (ctypes.c_uint8 * size).from_address(self._segment.shmaddr)
        pixels = np.frombuffer(buffer, np.uint8).reshape(height, image.bytes_per_line // 4, 4)
        self._pixels = pixels[:, :width, 2::-1]  # blue, green, red, unused -> red, green, blue

    def grab(self) -> Frame:
        """The window now, uint8 [Y, X, 3] RGB, a copy."""
        if not self._ext.XShmGetImage(self._display, self._window, self._image, 0, 0, _ALL_PLANES):
            raise ValueError("the window cannot be grabbed: it was closed, or is not wholly on the screen")
        return np.ascontiguousarray(self._pixels)

    def close(self) -> None:
        """Let go of the shared memory and the display."""
        self._ext.XShmDetach(self._display, ctypes.byref(self._segment))
        self._x.XSync(self._display, 0)
        del self._pixels
        self._libc.shmdt(ctypes.c_void_p(self._segment.shmaddr))
        self._x.XCloseDisplay(self._display)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def _ignore_error(display: int, event: int) -> int:
    """A request that fails says so by its result."""
    return 0


def _libraries() -> tuple[Any, Any, Any]:
    names = [ctypes.util.find_library(name) for name in ("X11", "Xext")]
    if None in names:
        raise ValueError("libX11 and libXext are not installed: apt install libx11-6 libxext6")
    x, ext = (ctypes.CDLL(name, use_errno=True) for name in names)
    libc = ctypes.CDLL(None, use_errno=True)
    pointer = ctypes.c_void_p
    x.XSetErrorHandler(_ignore_error)  # Xlib's own one ends the process
    x.XOpenDisplay.restype = x.XDefaultVisual.restype = pointer
    x.XDefaultScreen.argtypes = x.XCloseDisplay.argtypes = [pointer]
    x.XDefaultDepth.argtypes = x.XDefaultVisual.argtypes = x.XSync.argtypes = [pointer, ctypes.c_int]
    ext.XShmCreateImage.restype = ctypes.POINTER(_Image)
    ext.XShmCreateImage.argtypes = [
        pointer,
        pointer,
        ctypes.c_uint,
        ctypes.c_int,
        pointer,
        pointer,
        ctypes.c_uint,
        ctypes.c_uint,
    ]
    ext.XShmAttach.argtypes = ext.XShmDetach.argtypes = [pointer, pointer]
    ext.XShmGetImage.argtypes = [
        pointer,
        ctypes.c_ulong,
        ctypes.POINTER(_Image),
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ulong,
    ]
    libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
    libc.shmat.restype, libc.shmat.argtypes = pointer, [ctypes.c_int, pointer, ctypes.c_int]
    libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, pointer]
    return x, ext, libc


# ------------------------------------------------------------------ hands


class Hands:
    """Holds keys and buttons down and moves the mouse, by events that programs take for real ones.

    `sent` counts the events by (kind, code), so that whoever watches the display can tell them from a person's.
    """

    def __init__(self, connection: Any) -> None:
        from Xlib import XK, X

        self._connection, self._x = connection, X
        self._keysym = XK.string_to_keysym
        self._down: set[tuple[str, int]] = set()
        self.sent: Counter[tuple[str, int]] = Counter()
        self.unknown: Counter[str] = Counter()

    def hold(self, action: Action) -> None:
        """Exactly these keys and buttons are down from now on; the mouse moves once by (dx, dy)."""
        wanted = {code for key in action.keys if (code := self._key(key)) is not None}
        wanted |= {("button", MOUSE_BUTTONS[name]) for name in action.buttons if name in MOUSE_BUTTONS}
        for device, number in sorted(self._down - wanted):
            self._send(f"{device} up", number)
        for device, number in sorted(wanted - self._down):
            self._send(f"{device} down", number)
        self._down = wanted
        if action.dx or action.dy:
            self._send("motion", 0, action.dx, action.dy)
        self._connection.flush()

    def release(self) -> None:
        """Nothing is held any more."""
        self.hold(Action())
        self._connection.sync()

    def _key(self, name: str) -> tuple[str, int] | None:
        code = self._connection.keysym_to_keycode(self._keysym(KEYSYMS.get(name, name)))
        if not code:
            self.unknown[name] += 1
            return None
        return "key", code

    def _send(self, kind: str, code: int, dx: int = 0, dy: int = 0) -> None:
        from Xlib.ext import xtest

        types = {
            "key down": self._x.KeyPress,
            "key up": self._x.KeyRelease,
            "button down": self._x.ButtonPress,
            "button up": self._x.ButtonRelease,
            "motion": self._x.MotionNotify,
        }
        self.sent[kind, code] += 1
        detail = 1 if kind == "motion" else code  # for motion: relative
        xtest.fake_input(self._connection, types[kind], detail, x=dx, y=dy)
