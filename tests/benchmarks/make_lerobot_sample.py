"""Writes tests/convert/lerobot_sample: a dataset by LeRobot's own library.

    pip install lerobot
    python tests/benchmarks/make_lerobot_sample.py

Two episodes of 45 and 60 frames, 30 a second, in one video and one table. In episode k, W is held in frames 0 to 14,
the left button in frames 15 to 29, and the mouse moves k + 1 pixels to the right and 1 up at each frame;
tests/convert/test_importing_lerobot.py reads it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FOLDER = Path(__file__).resolve().parent.parent / "convert" / "lerobot_sample"
NAMES = ["key.w", "key.left_control", "button.left", "mouse.dx", "mouse.dy", "gripper.pos"]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    features = {
        "observation.images.screen": {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (len(NAMES),), "names": NAMES},
    }
    dataset = LeRobotDataset.create("sample", 30, features, root=FOLDER, use_videos=True)
    rng = np.random.default_rng(0)
    for episode, num_frames in enumerate((45, 60)):
        picture = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        for number in range(num_frames):
            held = [number < 15, number >= 40, 15 <= number < 30]
            action = np.array([*held, episode + 1, -1, 0.7], np.float32)
            frame = np.roll(picture, 2 * number, 1)
            dataset.add_frame({"observation.images.screen": frame, "action": action, "task": "play"})
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    main()
