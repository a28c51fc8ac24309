"""Opens an exported dataset with LeRobot's own reader, and compares frames and actions with the shards.

pip install lerobot
p2p export-dataset SHARDS --lerobot OUT
python tests/benchmarks/check_lerobot.py SHARDS OUT
"""

from __future__ import annotations

import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from p2p.data.video import SegmentDecoder
from p2p_convert.lerobot_dataset import CAMERA, action_vectors
from p2p_convert.reading import read_index, read_segments, stream_names
from p2p_convert.storage import open_store

EVERY = 20  # frames


def main(shards: str, out: str) -> int:
    dataset = LeRobotDataset("exported", root=out, video_backend="pyav")
    store = open_store(shards)
    first = num_compared = num_different = 0
    for stream in stream_names(store):
        for entry in read_index(store, stream)[0]:
            for segment in read_segments(store, stream, entry):
                actions = action_vectors([segment])
                for number, frame in enumerate(SegmentDecoder().rgb(segment, 0, segment.num_frames)):
                    if number % EVERY == 0:
                        row = dataset[first + number]
                        picture = np.rint(row[CAMERA].numpy().transpose(1, 2, 0) * 255)
                        same = np.array_equal(picture, frame) and np.array_equal(row["action"].numpy(), actions[number])
                        num_different += not same
                        num_compared += 1
                first += segment.num_frames
    print(f"{dataset.num_episodes} episodes, {dataset.num_frames} frames; {num_different} of {num_compared} differ")
    return int(num_different > 0 or first != dataset.num_frames)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
