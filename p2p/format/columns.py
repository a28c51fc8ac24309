"""The columns of a stored sample, the version of the format, and how much of anything there may be."""

from __future__ import annotations

from p2p.actions import FRAME_RATE_HZ

FORMAT_NAME = "p2p-segments"
FORMAT_VERSION = (1, 0)  # major: an older reader cannot read it; minor: it can, and ignores what is new
MAX_KEYS, MAX_BUTTONS = 6, 3  # stored slots; a reader takes the first few of them
UNKNOWN, USER, SYSTEM = 0, 1, 2  # whose action a row holds
INDEX_FILE = "index.json"
INDEX_KEY = "p2p"  # where index.json keeps what is ours

COLUMNS = {
    "annotation": "bytes",  # zstd of the recording's whole annotation.proto; first segment only, else empty
    "buttons": "bytes",  # uint8 [n, MAX_BUTTONS] ids, ascending, padded with 0
    "first_frame": "int",  # number in the recording of this segment's first frame
    "keys": "bytes",  # uint8 [n, MAX_KEYS] ids, ascending, padded with 0
    "mouse_px": "bytes",  # int32 [n, 2] motion right and down
    "num_frames": "int",  # n
    "packet_frames": "bytes",  # int32 [p] frame (0 = first_frame) that each packet becomes, -1: decoded, never shown
    "packet_sizes": "bytes",  # uint32 [p] in decoding order
    "packet_starts": "bytes",  # int32 [k] packets at which decoding can start, ascending, the first is 0
    "packets": "bytes",  # the packets, one after another
    "recording": "str",
    "segment": "int",  # 0, 1, ...
    "source": "json",  # the files it was made from and their SHA-256; first segment only, else {}
    "taken": "bytes",  # uint8 [n] UNKNOWN, USER or SYSTEM
    "text_frames": "bytes",  # int32 [e] frame of the recording whose row is the first of each instruction
    "text_rows": "bytes",  # int32 [e] how many rows it holds for
    "text_values": "bytes",  # float32, all embeddings one after another
    "texts": "json",  # [e] {version, provider, instruction, embeddings: {tokenizer: [offset, [shape]]}}
    "video": "json",  # codec, width, height, colour tags, extradata (hex), reordered
}
FIXED_SIZE = {"int": 8}

Layout = tuple[tuple[str, int | None], ...]  # (name, bytes) of the columns in their order; None: the sample says
LAYOUT: Layout = tuple((name, FIXED_SIZE.get(COLUMNS[name])) for name in sorted(COLUMNS))

# What a reader takes at most (docs/format.md lists them); a writer gives less, or says so.
MAX_RECORDING_FRAMES = 24 * 3600 * FRAME_RATE_HZ
MAX_SAMPLE_BYTES = 1 << 30
MAX_ANNOTATION_BYTES = 1 << 29  # unpacked
MAX_JSON_COLUMN_BYTES = 1 << 24
MAX_TEXT_CHARACTERS = 1 << 16  # of an instruction, a version, a provider
MAX_TEXTS = 1 << 17  # of a segment
MAX_EXTRADATA_BYTES = 1 << 16
MAX_VIDEO_SIDE = 4096  # pixels
CODEC = "h264"


def version_text(version: tuple[int, int] = FORMAT_VERSION) -> str:
    return f"{version[0]}.{version[1]}"
