"""Damage in videos: how much of it a conversion finds. `python tests/benchmarks/damage.py [--places N]`

A small MP4 is damaged in one place after another, and each copy is converted: it is rejected ("reported"), or gives the
pictures of the whole one ("harmless"), or others ("taken"). The places are spread over all packets. Each copy is then
converted once more beside the manifest of the whole recording ("manifest": how many are rejected then).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.manifest import MANIFEST, FileRecord, Manifest
from p2p.recording import ANNOTATION_FILE, MANIFEST_KIND, VIDEO_FILE
from p2p_convert.decoding import NONE
from p2p_convert.errors import Rejected
from p2p_convert.packets import read_packets
from p2p_convert.segments import RawRecording, convert_recording
from p2p_convert.verify import decode_segments
from tests.data.making import annotation, video_bytes

NUM_FRAMES = 60
VIDEOS = {
    "no arithmetic coding (CAVLC), 4:2:0": {"preset": "ultrafast"},
    "no arithmetic coding (CAVLC), RGB": {"preset": "ultrafast", "codec": "libx264rgb", "pix_fmt": "rgb24"},
    "arithmetic coding (CABAC), 4:2:0": {"preset": "veryfast", "crf": "17"},
    "arithmetic coding (CABAC), RGB": {"preset": "veryfast", "codec": "libx264rgb", "pix_fmt": "rgb24"},
}
KINDS = {"one bit": 0, "24 bytes": 24, "512 bytes": 512, "4096 bytes": 4096, "4096 zeros": -4096}


def damaged(video: bytes, place: int, num_bytes: int, rng: np.random.Generator) -> bytes:
    """A copy with random bytes (a negative number: zeros) at a place, or for 0 with one bit flipped there."""
    copy = bytearray(video)
    if num_bytes == 0:
        copy[place] ^= 1 << int(rng.integers(8))
    else:
        end = min(place + abs(num_bytes), len(copy))
        copy[place:end] = rng.bytes(end - place) if num_bytes > 0 else bytes(end - place)
    return bytes(copy)


def is_rejected(files: Mapping[str, bytes]) -> bool:
    try:
        convert_recording(RawRecording("r", "r", files), decode=NONE)
    except Rejected:
        return True
    return False


def count(video: bytes, num_bytes: int, num_places: int) -> Counter[str]:
    """What becomes of copies with damage of one kind."""
    files = {ANNOTATION_FILE: annotation(NUM_FRAMES).SerializeToString(), VIDEO_FILE: video}
    described = {name: FileRecord(len(file), sha256(file).hexdigest()) for name, file in files.items()}
    manifest = Manifest(MANIFEST_KIND, described).encode()
    packets = read_packets(video, "the video")
    places = np.concatenate(
        [np.arange(at, at + size) for at, size in zip(packets.places, packets.sizes.astype(int), strict=True)]
    )
    expected: list[bytes] | None = None
    found: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    for place in [None, *places[np.linspace(0, len(places) - 1, num_places).astype(int)].tolist()]:
        copy = files | {VIDEO_FILE: video if place is None else damaged(video, place, num_bytes, rng)}
        found["manifest"] += is_rejected(copy | {MANIFEST: manifest})
        try:
            frames = decode_segments(convert_recording(RawRecording("r", "r", copy)).segments)
        except Rejected:
            found["reported"] += 1
            continue
        if expected is None:
            expected = frames
        else:
            found["harmless" if frames == expected else "taken"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=300, help="of each kind of damage in each video")
    args = parser.parse_args()
    print(f"{'video':38} {'damage':>12} {'reported':>9} {'harmless':>9} {'taken':>6} {'manifest':>9}")
    for name, options in VIDEOS.items():
        video = video_bytes(NUM_FRAMES, gop=30, size=96, **options)  # type: ignore[arg-type]
        for kind, num_bytes in KINDS.items():
            found = count(video, num_bytes, args.places)
            counts = f"{found['reported']:>9} {found['harmless']:>9} {found['taken']:>6} {found['manifest']:>9}"
            print(f"{name:38} {kind:>12} {counts}", flush=True)


if __name__ == "__main__":
    main()
