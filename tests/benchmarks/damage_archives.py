"""Every bit of a .tar.gz of recordings flipped in turn. `python tests/benchmarks/damage_archives.py [--step N]`

Each copy is read as a conversion reads it: it is refused ("reported"), or gives the recordings of the whole one
("harmless"), or others ("taken", which must not be). With --step N every N-th bit.
"""

from __future__ import annotations

import argparse
import gzip
import io
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from p2p.hub.archive import BadArchive
from p2p_convert.sources import ArchiveSource, RawRecording
from tests.data.making import annotation, video_bytes


def make_archive() -> bytes:
    """Two small recordings, as the dataset has them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(2):
            files = {
                "annotation.proto": annotation(12, seed=number).SerializeToString(),
                "192x192.mp4": video_bytes(12),
            }
            for name, content in files.items():
                info = tarfile.TarInfo(f"dataset/batch/rec_{number}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue())


def recordings(path: Path) -> list[tuple[str, dict[str, object]]]:
    given = ArchiveSource(str(path), path.stat().st_size).recordings()
    return [(each.id, dict(each.files) if isinstance(each, RawRecording) else {}) for each in given]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=1, help="every how many bits (default 1: all)")
    step = parser.parse_args().step
    content, found, begin = make_archive(), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.tar.gz"
        path.write_bytes(content)
        expected = recordings(path)
        for bit in range(0, 8 * len(content), step):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                found["harmless" if recordings(path) == expected else "taken"] += 1
            except BadArchive:
                found["reported"] += 1
    print(
        f"{len(content)} bytes, {sum(found.values())} bits flipped in {time.monotonic() - begin:.0f} s: {dict(found)}"
    )
    sys.exit(1 if found["taken"] else 0)


if __name__ == "__main__":
    main()
