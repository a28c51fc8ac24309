"""What handing on Y, U and V planes would save. `python tests/benchmarks/bench_planes.py`

They would be converted to RGB on the device. Compares, per frame of random chunks, decoding alone, with RGB (what the
loader does), and with a copy of the Y, U and V planes; then the conversion in torch on this CPU; and whether that
conversion equals PyAV's rgb24, for all 2^24 combinations and for the kinds of frames that differ. CPU seconds of one
process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.data.video import RgbConverter
from p2p_convert.plan import Options
from p2p_convert.run import convert
from tests.benchmarks.bench_data import T, cpu_seconds, folder, make_raw, open_dataset

SIZE = 192
Picture = NDArray[np.uint8]


def rgb_from_planes(planes: Tensor) -> Tensor:
    """uint8 [T, 3 * Y / 2, X], the rows of Y, then those of U and V (I420), to RGB uint8 [T, 3, Y, X].

    swscale's integers: BT.601, limited range; each product is shifted on its own.
    """
    num_frames, rows, width = planes.shape
    height = rows * 2 // 3
    flat = planes.flatten(1)
    light = flat[:, : height * width].view(num_frames, height // 2, 2, width // 2, 2)
    u, v = (8 * flat[:, height * width :].view(num_frames, 2, height // 2, 1, width // 2, 1).int() - 1024).unbind(1)
    grey = _product(8 * light.int() - 128, 9539)
    offsets = _product(v, 13075), _product(u, -3209) + _product(v, -6660), _product(u, 16525)
    out = torch.empty((num_frames, 3, height, width), dtype=torch.uint8, device=planes.device)
    for channel, offset in enumerate(offsets):
        out[:, channel] = (grey + offset).clamp_(0, 255).view(num_frames, height, width)
    return out


def _product(values: Tensor, gain: int) -> Tensor:
    return ((values * gain) >> 16).short()


def copy_planes(converter: RgbConverter, frame: VideoFrame, out: Picture) -> None:
    """In place of RgbConverter.planes; `out` has room for twice as much."""
    flat, place = out.reshape(-1), 0
    for plane in frame.planes:
        size = plane.width * plane.height
        values = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        flat[place : place + size].reshape(plane.height, plane.width)[...] = values[:, : plane.width]
        place += size


def drop_frame(converter: RgbConverter, frame: VideoFrame, out: Picture) -> None:
    """In place of RgbConverter.planes: decoding alone."""


def bench_loader(stream: Path, num_chunks: int = 12, rounds: int = 3) -> None:
    """The three in turn, so that all meet the same machine; the least of the rounds counts."""
    dataset = open_dataset(stream, phase="random", shuffle=True)
    ids = np.random.default_rng(0).integers(0, dataset.size, num_chunks).tolist()
    ways = {"decode": drop_frame, "rgb": RgbConverter.planes, "yuv": copy_planes}
    best = dict.fromkeys(ways, float("inf"))

    def read() -> None:
        for sample_id in ids:
            dataset[sample_id]

    read()
    for _ in range(rounds):
        for name, way in ways.items():
            with patch.object(RgbConverter, "planes", way):
                best[name] = min(best[name], cpu_seconds(read, 1))
    decode, rgb, yuv = (1e6 * best[name] / num_chunks / T for name in ("decode", "rgb", "yuv"))
    print(
        f"  {stream.parent.name:12} {decode:6.0f} us a frame to decode, {rgb - decode:4.0f} more for RGB, "
        f"{yuv - decode:4.0f} more for planes: {rgb / yuv:.2f} x"
    )


def bench_torch() -> None:
    torch.set_num_threads(1)
    planes = torch.randint(0, 256, (T, SIZE * 3 // 2, SIZE), dtype=torch.uint8)
    print(f"  conversion in torch on this CPU {1e6 * cpu_seconds(lambda: rgb_from_planes(planes)) / T:,.0f} us a frame")


def share_equal(y: Picture, u: Picture, v: Picture, colorspace: int, color_range: int) -> float:
    """The share of pixels that torch and PyAV's rgb24 convert alike."""
    height, width = y.shape
    frame = av.VideoFrame(width, height, "yuv420p")
    frame.colorspace, frame.color_range = colorspace, color_range
    for plane, values in zip(frame.planes, (y, u, v), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded.tobytes())
    expected = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    planes = np.concatenate([y.reshape(-1), u.reshape(-1), v.reshape(-1)]).reshape(1, height * 3 // 2, width)
    found = rgb_from_planes(torch.from_numpy(planes))[0].permute(1, 2, 0).numpy()
    return float((found == expected).all(-1).mean())


def all_combinations() -> tuple[Picture, Picture, Picture]:
    """Planes of one frame in which every (Y, U, V) occurs."""
    v, u = np.indices((256, 256), dtype=np.uint8)
    block = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(256, 0).repeat(256, 1)
    y = np.empty((4096, 4096), np.uint8)
    for number in range(4):
        y[number // 2 :: 2, number % 2 :: 2] = 4 * block + number
    return y, np.tile(u, (8, 8)), np.tile(v, (8, 8))


def bench_equality() -> None:
    y, u, v = all_combinations()
    kinds: dict[str, tuple[int, int]] = {
        "no tags": (2, 0),
        "BT.601, limited": (5, 1),
        "BT.709, limited": (1, 1),
        "no tags, full range": (2, 2),
    }
    for name, (colorspace, color_range) in kinds.items():
        print(f"  {name:24} {share_equal(y, u, v, colorspace, color_range):8.2%} of all 2^24 combinations are equal")


def main() -> None:
    print("conversion against PyAV's rgb24")
    bench_equality()
    print("loading")
    with folder() as root:
        for name, gop, crf in (("GOP 250", 250, "17"), ("GOP 30", 30, "17"), ("GOP 30 crf 35", 30, "35")):
            raw = make_raw(root / f"raw {name}", 1, 1200, gop, crf)
            convert([raw], root / name, Options(val_fraction=0))
            bench_loader(root / name / "train")
    bench_torch()


if __name__ == "__main__":
    main()
