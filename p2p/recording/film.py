"""A video for people to watch: of pictures as they come, lossy, played by browsers. No recording."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from p2p.actions import FRAME_RATE_HZ
from p2p.files import sync, temporary_path

_OPTIONS = {"movflags": "faststart"}  # the index in front: a page plays it before it is there as a whole


class VideoWriter:
    """An H.264 file of RGB pictures of one size; it appears under its name when it is complete."""

    def __init__(self, path: Path, frame_rate_hz: int = FRAME_RATE_HZ, crf: int = 20) -> None:
        import av

        self._path = path
        self._partial = temporary_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(f"file:{self._partial}", mode="w", format="mp4", options=_OPTIONS)
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(frame_rate_hz), options={"preset": "veryfast", "crf": str(crf)}
        )
        self._stream.pix_fmt = "yuv420p"
        self._num_frames = 0

    def add(self, picture: NDArray[np.uint8]) -> None:
        """Append a picture uint8 [Y, X, 3] with even sides."""
        import av

        if self._num_frames == 0:
            self._stream.height, self._stream.width = picture.shape[:2]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts = self._num_frames
        self._num_frames += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        sync(self._partial)
        self._partial.replace(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()
            self._partial.unlink(missing_ok=True)
