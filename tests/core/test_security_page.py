"""SECURITY.md says the bounds that the code has."""

from __future__ import annotations

from pathlib import Path

from p2p import plain_yaml, protocol, text
from p2p.actions import FRAME_RATE_HZ
from p2p.checkpoints.layout import MAX_BYTES as MAX_METADATA_BYTES
from p2p.format import MAX_RECORDING_FRAMES
from p2p.format.columns import MAX_SAMPLE_BYTES
from p2p.format.index import MAX_INDEX_BYTES
from p2p.hub.archive import MAX_RATIO
from p2p.model.original_file import MAX_PICKLE_BYTES
from p2p.model.tensor_file import MAX_HEADER_BYTES
from p2p.recording.annotation import MAX_ANNOTATION_BYTES
from p2p.recording.memory import MAX_MEMORY_BYTES
from p2p.text import MAX_INSTRUCTION_CHARACTERS

MIB, GIB = 1 << 20, 1 << 30


def test_the_bounds_of_the_page_are_those_of_the_code(repository: Path) -> None:
    page = (repository / "SECURITY.md").read_text()
    for bound in (
        f"header {MAX_HEADER_BYTES // MIB} MiB",
        f"configuration {plain_yaml.MAX_BYTES >> 10} KiB",
        f"metadata {MAX_METADATA_BYTES // MIB} MiB",
        f"pickle {MAX_PICKLE_BYTES // MIB} MiB",
        f"sample {MAX_SAMPLE_BYTES // GIB} GiB",
        f"index {MAX_INDEX_BYTES // MIB} MiB",
        f"recording {MAX_RECORDING_FRAMES // FRAME_RATE_HZ // 3600} hours",
        f"annotation {MAX_ANNOTATION_BYTES // MIB} MiB",
        f"{MAX_MEMORY_BYTES // GIB} GiB of memory",
        f"{MAX_RATIO} times the packed size",
        f"{text.MAX_TABLE_ENTRIES:,} arrays, {text.MAX_TABLE_BYTES // GIB} GiB",
        f"{protocol.MAX_MESSAGE_BYTES // MIB} MiB a message",
        f"{MAX_INSTRUCTION_CHARACTERS:,} characters",
    ):
        assert bound in page, bound
    width, height = (int(side) for side in page.split("a message, ")[1].split(" pixels")[0].split(" x "))
    assert width * height == protocol.MAX_FRAME_PIXELS
