"""Writes tests/convert/owa_sample: an OWAMcap recording by the format's own library, and a video of its screen.

    pip install mcap-owa-support owa-msgs
    python tests/benchmarks/make_owa_sample.py

One second and a half at 60 frames a second, on a clock that began in 2025; W is held from frame 6 to 30, the left
button from 15 to 18, Control from 40 on though the keyboard's state at frame 60 knows nothing of it, and the mouse
moves 2 pixels to the right at each frame up to 45. tests/convert/test_importing_owa.py reads it.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from mcap_owa.highlevel import OWAMcapWriter
from owa.msgs.desktop.keyboard import KeyboardEvent, KeyboardState
from owa.msgs.desktop.mouse import MouseEvent, RawMouseEvent
from owa.msgs.desktop.screen import ScreenCaptured
from owa.msgs.desktop.window import WindowInfo

FOLDER = Path(__file__).resolve().parent.parent / "convert" / "owa_sample"
NUM_FRAMES, RATE_HZ = 90, 60
BEGIN_NS = 1_750_000_000_123_456_789
VK_W, VK_CONTROL, VK_LBUTTON = 0x57, 0xA2, 0x01


def write_video(path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)[:64, :64]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE_HZ, options={"crf": "30"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, 2 * number, 1), format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    write_video(FOLDER / "play.mkv")
    with OWAMcapWriter(FOLDER / "play.mcap") as writer:
        writer.write_message(WindowInfo(title="A game", rect=(0, 0, 64, 64), hWnd=1), "window", BEGIN_NS)
        for number in range(NUM_FRAMES):
            pts_ns = round(number * 1e9 / RATE_HZ / 1e6) * 1_000_000  # Matroska counts milliseconds
            now = BEGIN_NS + pts_ns
            seen = ScreenCaptured(utc_ns=now, shape=(64, 64), media_ref={"uri": "play.mkv", "pts_ns": pts_ns})
            writer.write_message(seen, "screen", now)
            after = now + 5_000_000
            if number < 45:
                flags = {15: 0x001, 18: 0x002, 20: 0x400}.get(number, 0)
                writer.write_message(RawMouseEvent(last_x=2, last_y=-1, button_flags=flags), "mouse/raw", after)
                writer.write_message(MouseEvent(event_type="move", x=30, y=30), "mouse", after)
            if number % 60 == 0:
                writer.write_message(KeyboardState(buttons={VK_LBUTTON} if number else set()), "keyboard/state", after)
            if 6 <= number < 30:
                writer.write_message(KeyboardEvent(event_type="press", vk=VK_W), "keyboard", after)  # repeats
            if number in (30, 31):
                writer.write_message(KeyboardEvent(event_type="release", vk=VK_W), "keyboard", after)
            if number == 40:
                writer.write_message(KeyboardEvent(event_type="press", vk=VK_CONTROL), "keyboard", after)


if __name__ == "__main__":
    main()
