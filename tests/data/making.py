"""Small raw recordings, made on the spot."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from p2p.proto import video_annotation_pb2 as messages

SIZE = 64


def pictures(num_frames: int, seed: int = 0, size: int = SIZE) -> NDArray[np.uint8]:
    """uint8 [n, Y, X, 3]: patterns that move, so that no two frames are alike."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    base = base.repeat(4, 0).repeat(4, 1)[:size, :size]
    return np.stack([np.roll(base, (3 * i, 5 * i), (0, 1)) for i in range(num_frames)])


def video_bytes(
    num_frames: int,
    gop: int = 30,
    b_frames: int = 2,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    seed: int = 0,
    size: int = SIZE,
    container_options: dict[str, str] | None = None,
    rate: int = 20,
    **options: str,
) -> bytes:
    """An MP4 file of `pictures`, `rate` a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        _write_video(
            path, num_frames, gop, b_frames, codec, pix_fmt, seed, size, rate, container_options or {}, options
        )
        return path.read_bytes()


def _write_video(
    path: Path,
    num_frames: int,
    gop: int,
    b_frames: int,
    codec: str,
    pix_fmt: str,
    seed: int,
    size: int,
    rate: int,
    container_options: dict[str, str],
    options: dict[str, str],
) -> None:
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(
            codec, rate=rate, options={"preset": "ultrafast", "crf": "20", "bf": str(b_frames), **options}
        )
        stream.width = stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(pictures(num_frames, seed, size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def without_reorder_depth(video: bytes) -> bytes:
    """An MP4 of x264 as an encoder would write it that does not say how far frames are out of order.

    Ends its SPS (H.264, 7.3.2.1.1) before the VUI parameters, which promise num_reorder_frames.
    """
    place = video.index(b"avcC") + 10
    size = int.from_bytes(video[place : place + 2], "big")
    begin = place + 2
    bits = _Bits(video[begin : begin + size])
    assert bits.take(8) & 31 == 7  # an SPS
    profile = bits.take(8)
    bits.take(16)
    bits.number()
    if profile in (100, 110, 122, 244):
        bits.take(int(bits.number() == 3))
        bits.number()
        bits.number()
        assert bits.take(2) & 1 == 0  # no scaling matrix
    bits.number()
    if bits.number() == 0:
        bits.number()
    bits.number()
    bits.take(1)
    bits.number()
    bits.number()
    if not bits.take(1):
        bits.take(1)
    bits.take(1)
    if bits.take(1):
        for _ in range(4):
            bits.number()
    kept = bits.text[: bits.position] + "01"  # no VUI; the stop bit
    assert bits.take(1) == 1
    sps = int(kept.ljust(8 * size, "0"), 2).to_bytes(size, "big")
    return video[:begin] + sps + video[begin + size :]


class _Bits:
    """Reads numbers of fixed and of variable length (Exp-Golomb), most significant bit first."""

    def __init__(self, content: bytes) -> None:
        self.text = "".join(f"{byte:08b}" for byte in content)
        self.position = 0

    def take(self, count: int) -> int:
        self.position += count
        return int(self.text[self.position - count : self.position] or "0", 2)

    def number(self) -> int:
        zeros = self.text.index("1", self.position) - self.position
        self.position += zeros
        return self.take(zeros + 1) - 1


def annotation(
    num_annotations: int, taken: str = "user", game: str = "doom", seed: int = 0
) -> messages.VideoAnnotation:
    """`taken`: "user", "system" or "nothing" for all annotations."""
    rng = np.random.default_rng(seed)
    made = messages.VideoAnnotation()
    made.metadata.id, made.metadata.env.env = "some-id", game
    for _ in range(num_annotations):
        frame = made.frame_annotations.add()
        for kind, action in (("user", frame.user_action), ("system", frame.system_action)):
            action.is_known = taken == kind
            action.keyboard.keys.extend(rng.choice(["w", "a", "s", "d", "Space", "F5"], 2).tolist())
            action.mouse.mouse_delta_px.x, action.mouse.mouse_delta_px.y = rng.integers(-20, 20, 2).tolist()
            action.mouse.buttons_down.extend(["0"][: int(rng.integers(2))])
    return made


def add_text(
    made: messages.VideoAnnotation,
    index: int,
    duration: float,
    value: float,
    version: str = "gemini-2.5-flash",
    dim: int = 8,
    embedded: bool = True,
) -> None:
    """An instruction on an annotation, its embedding `value` in all numbers."""
    text = made.frame_annotations[index].frame_text_annotation.add(instruction="go", duration=duration)
    text.frame_text_annotator.version = version
    if embedded:
        tensor = text.text_embedding_dict[version].text_embeddings["gemma"]
        tensor.shape.extend([1, dim])
        tensor.values.extend([value] * dim)


def write_recording(
    folder: Path,
    video: bytes | None,
    made: messages.VideoAnnotation | bytes | None,
) -> Path:
    """A recording folder; None leaves a file out."""
    folder.mkdir(parents=True)
    if video is not None:
        (folder / "192x192.mp4").write_bytes(video)
    if made is not None:
        content = made if isinstance(made, bytes) else made.SerializeToString(deterministic=True)
        (folder / "annotation.proto").write_bytes(content)
    return folder


def write_recordings(root: Path, count: int, num_frames: int, **options: Any) -> Path:
    """So many recordings of one video, each with actions of its own: `root`/rec_00 and so on; returns `root`."""
    video = video_bytes(num_frames, **options)
    for number in range(count):
        write_recording(root / f"rec_{number:02}", video, annotation(num_frames, seed=number))
    return root


def decoded(video: bytes) -> NDArray[np.uint8]:
    """uint8 [n, 3, Y, X]: all frames as PyAV gives them."""
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).transpose(0, 3, 1, 2)


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def tree_digest(folder: Path, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """{relative path: SHA-256} of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in leave_out
    }
