"""The pixels of a window, grabbed by XShm: a copy in shared memory, the quickest way without a compositor."""

import ctypes
import ctypes.util
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Image(ctypes.Structure):
    """The beginning of Xlib's XImage, up to the fields that are read here."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ["width", "height", "xoffset", "format"]),
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ["byte_order", "bitmap_unit", "bitmap_bit_order", "bitmap_pad", "depth"]),
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


class WindowCapture:
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

    def grab(self) -> NDArray[np.uint8]:
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
    pointer, number, unsigned, image = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Image)
    x.XSetErrorHandler(_ignore_error)  # Xlib's own one ends the process
    x.XOpenDisplay.restype = x.XDefaultVisual.restype = libc.shmat.restype = pointer
    x.XDefaultScreen.argtypes = x.XCloseDisplay.argtypes = [pointer]
    x.XDefaultDepth.argtypes = x.XDefaultVisual.argtypes = x.XSync.argtypes = [pointer, number]
    ext.XShmCreateImage.restype = image
    ext.XShmCreateImage.argtypes = [pointer, pointer, unsigned, number, pointer, pointer, unsigned, unsigned]
    ext.XShmAttach.argtypes = ext.XShmDetach.argtypes = [pointer, pointer]
    ext.XShmGetImage.argtypes = [pointer, ctypes.c_ulong, image, number, number, ctypes.c_ulong]
    libc.shmget.argtypes = [number, ctypes.c_size_t, number]
    libc.shmat.argtypes = [number, pointer, number]
    libc.shmctl.argtypes = [number, number, pointer]
    return x, ext, libc
